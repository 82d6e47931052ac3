"""Where do two models differ, and is there a narrow topic in it?"""

from steerlab.registry import Study, register_study

register_study(
    Study(
        name="difference",
        title="Where two models differ",
        question="Where do two models differ on unrelated text, and does the difference name a narrow topic?",
        reads=("plain_text",),
        function="steerlab.studies._difference.study:difference",
        result="steerlab.studies._difference.result:DifferenceResult",
        in_compare=False,
        order=7,
    )
)
