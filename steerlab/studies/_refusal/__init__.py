"""Does the base model already have the direction that makes its post-trained version refuse?"""

from steerlab.registry import Study, register_study

register_study(
    Study(
        name="refusal",
        title="Refusal",
        question="Does the base model already have the direction that makes its post-trained version refuse?",
        reads=("requests", "plain_text", "statements"),
        function="steerlab.studies._refusal.study:refusal",
        result="steerlab.studies._refusal.result:RefusalResult",
        stage="steerlab.studies._refusal.stage:stage",
        order=2,
    )
)
