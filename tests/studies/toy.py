"""Networks with known laws: a Markov chain, and one fixed law at every step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel


class ToyConfig(PretrainedConfig):
    model_type = "steerlab-toy"

    def __init__(self, states: int = 2, **kwargs: Any) -> None:
        self.hidden_size, self.num_hidden_layers, self.num_attention_heads = 4, 1, 1
        self.states = states
        super().__init__(**kwargs)


class Chain(PreTrainedModel):
    """The next token depends on the last one only: `rows[last]` is its law. Fills the cache as a transformer does."""

    config_class = ToyConfig

    def __init__(self, rows: Tensor) -> None:
        super().__init__(ToyConfig(states=len(rows)))
        self.rows = torch.nn.Parameter(rows.double().log().float(), requires_grad=False)
        self.tokens_read = 0

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        past_key_values: Any,
        use_cache: bool = True,
        **_: Any,
    ) -> Any:
        self.tokens_read += input_ids.numel()
        states = input_ids[:, None, :, None].float()
        past_key_values.update(states, states, 0)
        assert attention_mask.shape[1] == past_key_values.get_seq_length()
        return SimpleNamespace(logits=self.rows[input_ids])


def fixed(law: list[float]) -> Chain:
    """Every step has the same law."""
    return Chain(torch.tensor([law] * len(law)))
