"""One peer's steered generation against plain transformers' in the same process; prints JSON.

    python _steering_peer.py PEER FOLDER TURNS NEW

FOLDER holds a checkpoint and `task.pt` (prompts' tokens, one vector a layer). The vector is added to a block's output
at every token, at one layer and at every layer. Tokens are compared with those of a plain torch hook that does the
same. It runs in the peer's own environment and imports nothing of steerlab's.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from _timing import in_turn
from torch import Tensor

Generate = Callable[[Tensor], Tensor]
Peer = Callable[[Path, Any, dict[int, Tensor], int], Generate]


def main() -> None:
    """Measure one peer."""
    name, folder, turns, new = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    transformers.utils.logging.set_verbosity_error()
    task = torch.load(folder / "task.pt", weights_only=True)
    ids, vectors = task["ids"], dict(enumerate(task["vectors"]))
    plain = load(folder)
    cases = {"one layer": {6: vectors[6]}, "every layer": vectors}
    result: dict[str, Any] = {"versions": versions(), "cases": {}}
    for case, chosen in cases.items():
        with hooked(plain, chosen):
            expected = greedy(plain, ids, new)
        steered = PEERS[name](folder, load(folder), chosen, new)
        found = steered(ids)[:, -new:]
        times = in_turn(
            {"plain": lambda: greedy(plain, ids, new), "peer": lambda steered=steered: steered(ids)}, turns
        )
        result["cases"][case] = {
            "same tokens": bool(torch.equal(found.cpu(), expected[:, -new:].cpu())),
            "times": {key: [asdict(one) for one in turn] for key, turn in times.items()},
        }
    print("RESULT " + json.dumps(result))


def load(folder: Path) -> Any:
    """The checkpoint, which never ends a text."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    return model


def greedy(model: Any, ids: Tensor, new: int, **options: Any) -> Tensor:
    """transformers' own generate."""
    with torch.inference_mode():
        found: Tensor = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
            **options,
        )
    return found


@contextmanager
def hooked(model: Any, vectors: dict[int, Tensor]) -> Iterator[None]:
    """Plain hooks on the blocks."""

    def adding(vector: Tensor) -> Callable[..., Any]:
        def hook(module: object, args: object, output: Any) -> Any:
            return output + vector if isinstance(output, Tensor) else (output[0] + vector, *output[1:])

        return hook

    handles = [model.model.layers[layer].register_forward_hook(adding(one)) for layer, one in vectors.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def repeng(folder: Path, model: Any, vectors: dict[int, Tensor], new: int) -> Generate:
    """A `ControlModel` with a `ControlVector`."""
    from repeng import ControlModel, ControlVector

    control = ControlModel(model, list(vectors))
    directions = {layer: one.numpy() for layer, one in vectors.items()}
    control.set_control(ControlVector(model_type="llama", directions=directions), 1.0)
    return lambda ids: greedy(control, ids, new)


def steering_vectors(folder: Path, model: Any, vectors: dict[int, Tensor], new: int) -> Generate:
    """A `SteeringVector` applied around generate."""
    from steering_vectors import SteeringVector

    vector = SteeringVector(layer_activations=dict(vectors), layer_type="decoder_block")

    def generate(ids: Tensor) -> Tensor:
        with vector.apply(model, multiplier=1.0):
            return greedy(model, ids, new)

    return generate


def pyvene(folder: Path, model: Any, vectors: dict[int, Tensor], new: int) -> Generate:
    """An `IntervenableModel` with a function at every block's output."""
    import pyvene as pv

    parts = [
        {
            "component": f"model.layers[{layer}].output",
            "intervention": lambda base, source, vector=vector: base + vector,
        }
        for layer, vector in vectors.items()
    ]
    steered = pv.IntervenableModel(parts, model=model)

    def generate(ids: Tensor) -> Tensor:
        with torch.inference_mode():
            _, found = steered.generate(
                {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
                unit_locations=None,
                intervene_on_prompt=True,
                max_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
            )
        return found

    return generate


def nnsight(folder: Path, model: Any, vectors: dict[int, Tensor], new: int) -> Generate:
    """A generation trace that changes every block's output at every step."""
    from nnsight import LanguageModel

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    traced: Any = LanguageModel(model, tokenizer=tokenizer)

    def generate(ids: Tensor) -> Tensor:
        with (
            torch.inference_mode(),
            traced.generate(max_new_tokens=new, do_sample=False, pad_token_id=0) as tracer,
        ):
            with tracer.invoke({"input_ids": ids, "attention_mask": torch.ones_like(ids)}):
                for _ in tracer.iter[:new]:
                    for layer, vector in vectors.items():
                        traced.model.layers[layer].output[:] += vector
            with tracer.invoke():
                found = tracer.result.save()
        return found

    return generate


def transformer_lens(folder: Path, model: Any, vectors: dict[int, Tensor], new: int) -> Generate:
    """Hooks of a bridge around its own generate."""
    from transformer_lens.model_bridge import TransformerBridge

    bridge: Any = TransformerBridge.boot_transformers(str(folder), device="cpu")
    bridge.original_model.config.eos_token_id = None
    bridge.original_model.generation_config.eos_token_id = None
    hooks = [
        (f"blocks.{layer}.hook_out", lambda state, hook, vector=vector: state + vector)
        for layer, vector in vectors.items()
    ]

    def generate(ids: Tensor) -> Tensor:
        with torch.inference_mode(), bridge.hooks(fwd_hooks=hooks):
            found: Tensor = bridge.generate(
                ids,
                max_new_tokens=new,
                do_sample=False,
                stop_at_eos=False,
                use_past_kv_cache=True,
                verbose=False,
            )
        return found

    return generate


def versions() -> dict[str, str]:
    """What the peer really ran with."""
    return {"torch": torch.__version__, "transformers": transformers.__version__}


PEERS: dict[str, Peer] = {
    "repeng": repeng,
    "steering-vectors": steering_vectors,
    "pyvene": pyvene,
    "nnsight": nnsight,
    "transformer-lens": transformer_lens,
}


if __name__ == "__main__":
    main()
