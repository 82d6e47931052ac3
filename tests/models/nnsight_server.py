"""What nnsight's server does with a request, in a process in which nothing of steerlab's can be imported.

    python nnsight_server.py FOLDER     # then one line a request on stdin: the file of its payload

The payload is unpacked and run by nnsight's own code on the model in FOLDER; the file is replaced by the saved values.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


class NothingOfOurs:
    """An importer that finds no steerlab."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in ("steerlab", "jaxtyping", "families", "conftest"):
            raise ModuleNotFoundError(f"{name} is not on the server")


def main(folder: str) -> None:
    sys.meta_path.insert(0, NothingOfOurs())  # type: ignore[arg-type]
    import nnsight
    import torch
    from nnsight.schema.request import RequestModel
    from nnsight.tracing.tracer import dec, inc
    from transformers import AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = nnsight.TransformersModel(folder, task="text-generation", tokenizer=tokenizer, dispatch=True)
    for line in sys.stdin:
        file = Path(line.strip())
        tracer = RequestModel.deserialize(
            file.read_bytes(), model._remoteable_persistent_objects(), compress=True
        )
        inc()
        before = set(tracer.info.frame.f_locals)
        tracer.execute(tracer.info.code)
        dec()
        saved = {name: value for name, value in tracer.info.frame.f_locals.items() if name not in before}
        torch.save(saved, file)
        print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
