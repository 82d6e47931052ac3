"""Which stage of training changed what?"""

from steerlab.registry import Study, register_study

register_study(
    Study(
        name="stages",
        title="Stages of training",
        question="Which stage of training changed what, and more than everything else?",
        reads=("statements", "requests", "open_prompts", "plain_text", "contrasts"),
        function="steerlab.studies._stages.study:stages",
        result="steerlab.studies._stages.result:StagesResult",
        in_compare=False,
        order=0,
    )
)
