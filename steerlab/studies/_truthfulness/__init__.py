"""Does post-training move the direction along which true and false statements differ?"""

from steerlab.registry import Study, register_study

register_study(
    Study(
        name="truthfulness",
        title="Truthfulness",
        question="Does post-training move the direction along which true and false statements differ?",
        reads=("statements", "plain_text"),
        function="steerlab.studies._truthfulness.study:truthfulness",
        result="steerlab.studies._truthfulness.result:TruthfulnessResult",
        stage="steerlab.studies._truthfulness.stage:stage",
        order=1,
    )
)
