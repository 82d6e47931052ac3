"""How many continuations does each model see ahead, and what narrows them?"""

from steerlab.registry import Study, register_study

register_study(
    Study(
        name="branching",
        title="Branching factor",
        question="How many continuations does each model see ahead, and what narrows them?",
        reads=("open_prompts",),
        function="steerlab.studies._branching.study:branching",
        result="steerlab.studies._branching.result:BranchingResult",
        stage="steerlab.studies._branching.stage:stage",
        order=4,
    )
)
