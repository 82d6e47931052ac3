"""The same reading with other tools: each gives ``read(input_ids)``, the last token's
states [layer, batch, width].

Every tool loads its own copy of the checkpoint and is used the way its documentation shows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

Read = Callable[[Tensor], Tensor]


def hidden_states(folder: Path) -> Read:
    """transformers: ``model(..., output_hidden_states=True)``; the last entry is after the final norm."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def read(input_ids: Tensor) -> Tensor:
        with torch.inference_mode():
            states = model(input_ids, use_cache=False, output_hidden_states=True).hidden_states
            return torch.stack([state[:, -1] for state in states[1:]])

    return read


def transformer_lens(folder: Path) -> Read:
    """TransformerLens 4: the bridge's ``run_with_cache`` with a filter on the blocks' outputs, last position only."""
    from transformer_lens.model_bridge import TransformerBridge

    bridge: Any = TransformerBridge.boot_transformers(str(folder), device="cpu")
    names = [f"blocks.{layer}.hook_out" for layer in range(bridge.cfg.n_layers)]

    def read(input_ids: Tensor) -> Tensor:
        with torch.inference_mode():
            _, cache = bridge.run_with_cache(input_ids, names_filter=names)
            return torch.stack([cache[name][:, -1] for name in names])

    return read


def nnsight(folder: Path) -> Read:
    """nnsight: a trace that saves the last token of every block's output."""
    from nnsight import NNsight

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    traced: Any = NNsight(model)

    def read(input_ids: Tensor) -> Tensor:
        with torch.inference_mode(), traced.trace(input_ids, use_cache=False):
            saved = list().save()
            for layer in traced.model.layers:
                saved.append(layer.output[:, -1])
        return torch.stack(list(saved))

    return read


PEERS: dict[str, Callable[[Path], Read]] = {
    "transformers output_hidden_states": hidden_states,
    "TransformerLens run_with_cache": transformer_lens,
    "nnsight trace": nnsight,
}
