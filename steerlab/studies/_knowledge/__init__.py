"""Where does each model store what it knows, and does post-training move it?"""

from steerlab.registry import Study, register_study

register_study(
    Study(
        name="knowledge",
        title="Where knowledge is stored",
        question="Where does each model store what it knows, and does post-training move it?",
        reads=("statements",),
        function="steerlab.studies._knowledge.study:knowledge",
        result="steerlab.studies._knowledge.result:KnowledgeResult",
        stage="steerlab.studies._knowledge.stage:stage",
        order=5,
    )
)
