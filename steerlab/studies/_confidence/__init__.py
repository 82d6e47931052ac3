"""How sure is each model, is it calibrated, and do entropy neurons explain the change?"""

from steerlab.registry import Study, register_study

register_study(
    Study(
        name="confidence",
        title="Confidence",
        question="How sure is each model, is it calibrated, and do entropy neurons explain the change?",
        reads=("statements", "plain_text", "questions"),
        function="steerlab.studies._confidence.study:confidence",
        result="steerlab.studies._confidence.result:ConfidenceResult",
        stage="steerlab.studies._confidence.stage:stage",
        order=3,
    )
)
