"""Does a capability of one model unlock another?"""

from steerlab.registry import Study, register_study

register_study(
    Study(
        name="transfer",
        title="Transfer of a capability",
        question="Does a capability of one model unlock another?",
        reads=("task",),
        function="steerlab.studies._transfer.study:transfer",
        result="steerlab.studies._transfer.result:TransferResult",
        in_compare=False,
        order=6,
    )
)
