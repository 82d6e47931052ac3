"""Does post-training move the direction of a contrast of one's own, and does it steer?"""

from steerlab.registry import Study, register_study

register_study(
    Study(
        name="contrast",
        title="Contrasts",
        question="Does post-training move the direction of a contrast of one's own, and does it steer?",
        reads=("contrasts", "plain_text"),
        function="steerlab.studies._contrast.study:contrast",
        result="steerlab.studies._contrast.result:ContrastResult",
        stage="steerlab.studies._contrast.stage:stage",
        order=6,
        needs="contrasts",
    )
)
