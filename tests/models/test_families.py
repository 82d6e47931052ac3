"""Every family: sites read, written, padded, cut and generated from, against values computed without our hooks.

The reference runs the plain transformers model with `output_hidden_states`, records what goes in and out
of attention by wrapping `forward`, and computes the rest of each block by the family's formula.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from families import FAMILIES, LAYERS, tiny
from tolerances import close
from torch import Tensor, nn

from steerlab.models import All, LanguageModel, Site, SiteError

TEXTS = ["The capital of France is Paris.", "Is a cat an animal?", "TRUE"]


@dataclass(frozen=True)
class Layout:
    """How a family's block is written, told again independently of the package."""

    stack: str = "model.layers"
    attention: str = "self_attn"
    output: str = "o_proj"
    kind: str = "sequential"  # or parallel, sandwich (Gemma-2/3), post (OLMo-2), bloom
    mlp_norm: str = "post_attention_layernorm"
    neurons: str = "gated"  # or joint, plain, none
    up: str = "fc1"
    activation: str = "act_fn"
    down: str = "mlp.down_proj"
    final_norm: str = "model.norm"


LLAMA = Layout()
EXPERTS = Layout(neurons="none")
GPT2 = Layout(
    "transformer.h", "attn", "c_proj", mlp_norm="ln_2", neurons="plain", up="mlp.c_fc", activation="mlp.act",
    down="mlp.c_proj", final_norm="transformer.ln_f",
)  # fmt: skip
NEOX = Layout(
    "gpt_neox.layers", "attention", "dense", neurons="plain", up="mlp.dense_h_to_4h", activation="mlp.act",
    down="mlp.dense_4h_to_h", final_norm="gpt_neox.final_layer_norm",
)  # fmt: skip
FALCON = Layout(
    "transformer.h", "self_attention", "dense", neurons="plain", up="mlp.dense_h_to_4h", activation="mlp.act",
    down="mlp.dense_4h_to_h", final_norm="transformer.ln_f",
)  # fmt: skip


def _with(layout: Layout, **changes: str) -> Layout:
    return Layout(**{**layout.__dict__, **changes})


LAYOUTS = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "olmo", "stablelm", "granite", "smollm3"), LLAMA),
    **dict.fromkeys(("mixtral", "gpt_oss"), EXPERTS),
    "qwen3_moe": LLAMA,
    **dict.fromkeys(("gemma2", "gemma3"), _with(LLAMA, kind="sandwich", mlp_norm="pre_feedforward_layernorm")),
    "phi": Layout(
        output="dense", kind="parallel", mlp_norm="input_layernorm", neurons="plain", up="mlp.fc1",
        activation="mlp.activation_fn", down="mlp.fc2", final_norm="model.final_layernorm",
    ),
    "phi3": _with(LLAMA, neurons="joint"),
    "gpt2": GPT2,
    "gpt_neo": _with(GPT2, attention="attn.attention", output="out_proj"),
    "gpt_neox": _with(NEOX, kind="parallel"),
    "gpt_neox_sequential": NEOX,
    "gptj": _with(GPT2, output="out_proj", kind="parallel", mlp_norm="ln_1", up="mlp.fc_in", down="mlp.fc_out"),
    "opt": Layout(
        "model.decoder.layers", output="out_proj", mlp_norm="final_layer_norm", neurons="plain", up="fc1",
        activation="activation_fn", down="fc2", final_norm="model.decoder.final_layer_norm",
    ),
    "bloom": _with(FALCON, kind="bloom", activation="mlp.gelu_impl"),
    "falcon": _with(FALCON, kind="parallel", mlp_norm="ln_mlp"),
    "falcon_7b": _with(FALCON, kind="parallel", mlp_norm="input_layernorm"),
    "falcon_alibi": FALCON,
    "olmo2": _with(LLAMA, kind="post"),
    "stablelm_parallel": _with(LLAMA, kind="parallel", mlp_norm="input_layernorm"),
    "cohere": _with(LLAMA, kind="parallel", mlp_norm="input_layernorm"),
}  # fmt: skip


@cache
def language_model(family: str) -> LanguageModel:
    return tiny(family)


@contextmanager
def wrapped(module: nn.Module, around: Callable[..., Any]) -> Iterator[None]:
    """Replace `module.forward` by `around(original, *args, **kwargs)`: changing a model without any hook."""
    original = module.forward
    module.forward = lambda *args, **kwargs: around(original, *args, **kwargs)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.forward


def _recorder(seen: dict[Any, list[Any]], key: Any) -> Callable[..., Any]:
    def around(original: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        # Copies: Falcon adds to its MLP's output in place.
        seen[key] = [
            args[0].clone() if args else None,
            (output if isinstance(output, Tensor) else output[0]).clone(),
        ]
        return output

    return around


def plain_inputs(model: LanguageModel, texts: list[str]) -> dict[str, Tensor]:
    tokens = model.tokenize(texts)
    return {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}


@torch.no_grad()
def reference(family: str, text: str = TEXTS[0]) -> dict[Site, Tensor]:
    """Every site's state on one unpadded prompt, by the family's formula."""
    layout, model = LAYOUTS[family], language_model(family).model
    blocks = model.get_submodule(layout.stack)
    seen: dict[Any, list[Tensor]] = {}
    with ExitStack() as stack:
        for layer, block in enumerate(blocks):
            attention = block.get_submodule(layout.attention)
            stack.enter_context(wrapped(attention, _recorder(seen, ("attention", layer))))
            stack.enter_context(
                wrapped(attention.get_submodule(layout.output), _recorder(seen, ("output", layer)))
            )
        output = model(**plain_inputs(language_model(family), [text]), output_hidden_states=True)
    states: dict[Site, Tensor] = {}
    stream = output.hidden_states[0]
    for layer, block in enumerate(blocks):
        close(stream, output.hidden_states[layer])  # the formula reproduces the model
        states.update(_block(layout, block, layer, stream, seen, model.config))
        stream = states[Site("resid_post", layer)]
    states[Site("ln_final_in")] = stream
    close(model.get_submodule(layout.final_norm)(stream), output.hidden_states[-1])
    states[Site("embed")] = model.get_input_embeddings()(
        plain_inputs(language_model(family), [text])["input_ids"]
    )
    return states


def _block(
    layout: Layout, block: nn.Module, layer: int, stream: Tensor, seen: dict[Any, list[Tensor]], config: Any
) -> dict[Site, Tensor]:
    times = getattr(config, "residual_multiplier", 1.0)
    z, raw = seen["output", layer]
    attention = seen["attention", layer][1] * times
    if layout.kind == "bloom":  # attention returns the stream with its part added
        close(attention, stream + raw)
        attention = raw
    if layout.kind in ("sandwich", "post"):
        attention = block.get_submodule("post_attention_layernorm")(attention)
    middle = stream + attention
    mlp_input = middle if layout.kind != "parallel" else stream
    if layout.kind != "post":
        mlp_input = block.get_submodule(layout.mlp_norm)(mlp_input)
    neurons, mlp = _mlp(layout, block, mlp_input)
    mlp = mlp * times
    if layout.kind in ("sandwich", "post"):
        mlp = block.get_submodule("post_feedforward_layernorm")(mlp)
    found = {"resid_pre": stream, "z": z, "attn_out": attention, "mlp_out": mlp, "resid_post": middle + mlp}
    if layout.kind != "parallel":
        found["resid_mid"] = middle
    if neurons is not None:
        found["mlp_post"] = neurons
    return {Site(name, layer): state for name, state in found.items()}


def _mlp(layout: Layout, block: nn.Module, entering: Tensor) -> tuple[Tensor | None, Tensor]:
    kind = layout.neurons
    if kind == "gated" and not hasattr(block.mlp, "gate_proj"):  # Qwen3-MoE's expert layers
        kind = "none"
    if kind == "none":
        output = block.mlp(entering)
        return None, output if isinstance(output, Tensor) else output[0]
    if kind == "gated":
        neurons = block.mlp.act_fn(block.mlp.gate_proj(entering)) * block.mlp.up_proj(entering)
    elif kind == "joint":
        gate, up = block.mlp.gate_up_proj(entering).chunk(2, dim=-1)
        neurons = up * block.mlp.activation_fn(gate)
    else:
        up = block.get_submodule(layout.up)
        activation = block.get_submodule(layout.activation) if layout.activation != "mlp.act" else None
        activation = activation or block.mlp.act
        neurons = activation(up(entering))
    return neurons, block.get_submodule(layout.down)(neurons)


def read(
    model: LanguageModel, texts: list[str], sites: list[Site], *, side: str = "left"
) -> list[dict[Site, Tensor]]:
    """States of the real tokens of each text."""
    tokens = model.tokenize(texts, padding_side=side)
    found: dict[Site, Tensor] = {}
    model.run(tokens, read={site: lambda state, site=site: found.__setitem__(site, state) for site in sites})
    return [
        {
            site: state[row, tokens.column(row, 0) : tokens.column(row, length - 1) + 1].clone()
            for site, state in found.items()
        }
        for row, length in enumerate(tokens.lengths)
    ]


def every_site(model: LanguageModel) -> list[Site]:
    return [site for name in model.site_names() for site in model.sites(name)]


class AddVector:
    """The simplest edit: one vector at given sites."""

    def __init__(self, vector: Tensor, *sites: Site, positions: Any = None) -> None:
        self.vector, self.sites, self.positions = vector, sites, positions or All()

    def apply(self, state: Tensor, site: Site) -> Tensor:
        return state + self.vector

    def check(self, model: LanguageModel) -> None:
        return None


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_each_site_has_the_value_of_the_formula(family: str) -> None:
    model = language_model(family)
    expected = reference(family)
    assert sorted(expected) == sorted(every_site(model))
    (found,) = read(model, TEXTS[:1], list(expected))
    for site, state in expected.items():
        close(found[site][None], state)
        assert model.width(site) == state.shape[-1]


def test_padding_on_either_side_and_cutting_change_nothing(family: str) -> None:
    model = language_model(family)
    sites = [site for site in every_site(model) if site.layer != LAYERS - 1 and site != Site("ln_final_in")]
    alone = [read(model, [text], every_site(model))[0] for text in TEXTS]
    for side in ("left", "right"):
        for row, states in enumerate(read(model, TEXTS, sites, side=side)):
            for site in sites:
                close(states[site], alone[row][site])


def test_logits_are_the_models_own(family: str) -> None:
    model = language_model(family)
    with torch.no_grad():
        own = [model.model(**plain_inputs(model, [text])).logits[0, -1, : model.vocab_size] for text in TEXTS]
    close(model.logits(TEXTS), torch.stack(own))
    final = read(model, TEXTS, [Site("ln_final_in")])
    for row, states in enumerate(final):
        close(model.unembed(states[Site("ln_final_in")])[-1], own[row])


def _steered_logits(model: LanguageModel, *edits: AddVector) -> Tensor:
    with model.steering(*edits):
        return model.logits(TEXTS)


def _vector(model: LanguageModel, site: Site, seed: int = 1) -> Tensor:
    return torch.randn(model.width(site), generator=torch.Generator().manual_seed(seed))


def test_writing_the_stream_changes_the_next_blocks_input(family: str) -> None:
    model = language_model(family)
    blocks = model.model.get_submodule(LAYOUTS[family].stack)
    vector = _vector(model, Site("resid_post", 0))
    around = lambda original, state, *args, **kwargs: original(state + vector, *args, **kwargs)  # noqa: E731
    with wrapped(blocks[1], around):
        expected = model.logits(TEXTS)
    for site in (Site("resid_post", 0), Site("resid_pre", 1), Site("mlp_out", 0)):
        close(_steered_logits(model, AddVector(vector, site)), expected)
    assert (expected - model.logits(TEXTS)).abs().max() > 1e-3
    with wrapped(model.model.get_submodule(LAYOUTS[family].final_norm), around):
        expected = model.logits(TEXTS)
    for site in (Site("resid_post", LAYERS - 1), Site("ln_final_in")):
        close(_steered_logits(model, AddVector(vector, site)), expected)
    embedded = lambda original, ids: original(ids) + vector  # noqa: E731
    with wrapped(model.model.get_input_embeddings(), embedded):
        expected = model.logits(TEXTS)
    close(_steered_logits(model, AddVector(vector, Site("embed"))), expected)


def test_writing_between_attention_and_mlp(family: str) -> None:
    model = language_model(family)
    layout = LAYOUTS[family]
    vector = _vector(model, Site("attn_out", 1))
    if layout.kind == "parallel":
        with pytest.raises(SiteError, match="parallel"):
            model.require(Site("resid_mid", 1))
        same = Site("resid_post", 1)  # the MLP does not see the attention's part
    else:
        same = Site("resid_mid", 1)
    expected = _steered_logits(model, AddVector(vector, Site("attn_out", 1)))
    close(_steered_logits(model, AddVector(vector, same)), expected)
    if layout.kind == "parallel":
        return
    # By hand: the MLP reads the changed stream, and the changed stream goes on.
    block = model.model.get_submodule(layout.stack)[1]
    (plain,) = read(model, TEXTS[:1], [Site("resid_mid", 1)])
    with torch.no_grad():
        middle = plain[Site("resid_mid", 1)][None] + vector
        entering = middle if layout.kind == "post" else block.get_submodule(layout.mlp_norm)(middle)
        mlp = _mlp(layout, block, entering)[1] * getattr(model.model.config, "residual_multiplier", 1.0)
        if layout.kind in ("sandwich", "post"):
            mlp = block.get_submodule("post_feedforward_layernorm")(mlp)
    with model.steering(AddVector(vector, Site("resid_mid", 1))):
        (steered,) = read(model, TEXTS[:1], [Site("resid_mid", 1), Site("mlp_out", 1), Site("resid_post", 1)])
    close(steered[Site("resid_mid", 1)][None], middle)
    close(steered[Site("mlp_out", 1)][None], mlp)
    close(steered[Site("resid_post", 1)][None], middle + mlp)


@pytest.mark.parametrize("inner", ["z", "mlp_post"])
def test_writing_inside_attention_and_mlp_goes_through_the_projection(family: str, inner: str) -> None:
    model = language_model(family)
    layout = LAYOUTS[family]
    if inner == "mlp_post" and layout.neurons == "none":
        with pytest.raises(SiteError, match="mixture of experts"):
            model.require(Site("mlp_post", 1))
        return
    site, outer = Site(inner, 1), Site("attn_out" if inner == "z" else "mlp_out", 1)
    vector = _vector(model, site)
    block = model.model.get_submodule(layout.stack)[1]
    name = f"{layout.attention}.{layout.output}" if inner == "z" else layout.down
    around = lambda original, state: original(state + vector)  # noqa: E731
    with wrapped(block.get_submodule(name), around):
        (expected,) = read(model, TEXTS[:1], [outer])
        logits = model.logits(TEXTS)
    with model.steering(AddVector(vector, site)):
        (found,) = read(model, TEXTS[:1], [outer])
    close(found[outer], expected[outer])
    close(_steered_logits(model, AddVector(vector, site)), logits)


def test_batched_generation_equals_one_by_one_and_recomputing_everything(family: str) -> None:
    model = language_model(family)
    vector = _vector(model, Site("resid_post", 1))
    with model.steering(AddVector(vector, Site("resid_post", 1))):
        together = model.generate(TEXTS, max_new_tokens=4)
        alone = [model.generate([text], max_new_tokens=4)[0] for text in TEXTS]
    assert together == alone
    written = together[0].token_ids
    ids = model.tokenize(TEXTS[:1]).input_ids
    with torch.no_grad(), model.steering(AddVector(vector, Site("resid_post", 1))):
        for token in written:  # without a cache, on the raw model
            logits = model.model(input_ids=ids, use_cache=False).logits[0, -1, : model.vocab_size]
            assert int(logits.argmax()) == token
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)


def test_the_gain_of_the_final_norm(family: str) -> None:
    model = language_model(family)
    norm = model.model.get_submodule(LAYOUTS[family].final_norm)
    stored = getattr(norm, "weight", None)
    expected = torch.ones(model.d_model) if stored is None else stored.detach()
    if family.startswith("gemma"):
        expected = 1 + expected
    close(model.final_norm_gain, expected)
