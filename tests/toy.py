"""Networks with known laws: a Markov chain, and one fixed law at every step; and samples of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from steerlab.models.hooks import Frames
from steerlab.readouts.laws import SamplingLaw
from steerlab.readouts.sampling import Trajectories, sample_tokens

NONE = SamplingLaw(1.0, "none", 1.0)
MARKOV = torch.tensor([[0.9, 0.1, 0.0], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5]])


class ToyConfig(PretrainedConfig):
    model_type = "steerlab-toy"

    def __init__(self, states: int = 2, **kwargs: Any) -> None:
        self.hidden_size, self.num_hidden_layers, self.num_attention_heads = 4, 1, 1
        self.states = states
        super().__init__(**kwargs)


class Chain(PreTrainedModel, GenerationMixin):
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
        past_key_values: Any = None,
        use_cache: bool = True,
        **_: Any,
    ) -> Any:
        self.tokens_read += input_ids.numel()
        states = input_ids[:, None, :, None].float()
        past_key_values = DynamicCache() if past_key_values is None else past_key_values
        past_key_values.update(states, states, 0)
        assert attention_mask.shape[1] == past_key_values.get_seq_length()
        return CausalLMOutputWithPast(logits=self.rows[input_ids], past_key_values=past_key_values)


def fixed(law: list[float]) -> Chain:
    """Every step has the same law."""
    return Chain(torch.tensor([law] * len(law)))


def sample(
    network: Chain, start: int = 0, *, n: int, steps: int, law: SamplingLaw = NONE, **kwargs: Any
) -> Trajectories:
    stops = kwargs.pop("stop_ids", ())
    size = network.rows.shape[1]
    return sample_tokens(
        network,
        [[start]],
        vocab_size=size,
        stop_ids=stops,
        samples=n,
        max_new_tokens=steps,
        law=law,
        **kwargs,
    )


class Letters:
    """A tokenizer whose token n is the letter n."""

    def __init__(self, size: int) -> None:
        self.size = size

    def get_vocab(self) -> dict[str, int]:
        return {chr(97 + n): n for n in range(self.size)}

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(chr(97 + int(n)) for n in ids)


def model_of(network: Chain, stops: tuple[int, ...] = ()) -> Any:
    """What the studies ask of a `LanguageModel`, around a network with a known law."""
    size = network.rows.shape[1]
    network.config.eos_token_id = list(stops) or None
    return SimpleNamespace(
        model=network,
        source=network,
        vocab_size=size,
        tokenizer=Letters(size),
        name="toy",
        frames=Frames(),
        anatomy=SimpleNamespace(config=network.config),
        end_token_ids=stops,
    )
