"""Each family in each way: read, steered, ablated, baked, streamed, sampled, swept, against what is not ours.

A cell that cannot be is listed with its cause, and refuses in a sentence that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch
from families import FAMILIES, MORE, tiny
from torch import Tensor

import steerlab as sl
from steerlab.activations import LogitDifference, StatePatch, Zero
from steerlab.directions import fit_direction
from steerlab.errors import SteerlabError
from steerlab.models import LanguageModel
from steerlab.readouts.laws import SamplingLaw
from steerlab.readouts.sampling import sample_tokens

TEXT, OTHER = "The capital of France is", "Is a cat"
WORDS = ("Rome", "a dog", "we like", "red", "one two", "it sat")
SITE = sl.Site("resid_post", 1)


def close(found: Tensor, right: Tensor) -> None:
    """Equal to float32 rounding, relative to the largest entry."""
    scale = float(right.abs().max()) or 1.0
    assert float((found - right).abs().max()) <= 2e-4 * scale


def vector(model: LanguageModel) -> Tensor:
    return torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))


def direction(model: LanguageModel) -> sl.Direction:
    return sl.Direction({SITE: vector(model)}, model.name, model.fingerprint)


def reads(model: LanguageModel) -> None:
    """transformers' own hidden states are ours."""
    ids = model.tokenize(TEXT).input_ids
    theirs = model.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    states = sl.capture(model, TEXT, "resid_post", positions=sl.All())
    first = 0 if model.model.config.model_type.startswith("mamba") else 1  # else the embedding comes first
    close(states["resid_post.0"], theirs[first][0].float())


def steers(model: LanguageModel) -> None:
    """A hook of plain torch on the block does the same."""
    added = vector(model)

    def hook(module: Any, args: Any, output: Any) -> Any:
        return output + added if isinstance(output, Tensor) else (output[0] + added, *output[1:])

    handle = model.anatomy.blocks[1].register_forward_hook(hook)
    right = model.logits(TEXT)
    handle.remove()
    with model.steering(sl.Add(added, sites=SITE)):
        close(model.logits(TEXT), right)


def ablates(model: LanguageModel) -> None:
    """The stream stays orthogonal to the direction behind every block and between its parts."""
    unit = torch.nn.functional.normalize(vector(model), dim=0)
    names = [name for name in ("resid_mid", "resid_post") if name in model.site_names()]
    with model.steering(sl.Ablate(direction(model))):
        states = sl.capture(model, [TEXT, OTHER], names, positions=sl.All())
    for site in states.sites:
        assert float((states[site] @ unit).norm() / states[site].norm()) < 1e-5, site


def keeps_others(model: LanguageModel) -> None:
    """What it takes out is at right angles to what it keeps: that component is as without it, at one site alone."""
    kept = torch.randn(model.d_model, generator=torch.Generator().manual_seed(1))
    edit = sl.Ablate(direction(model), keep=[kept.numpy()], sites=SITE)
    outside = vector(model) - kept * (vector(model) @ kept) / (kept @ kept)
    plain = sl.capture(model, [TEXT, OTHER], SITE, positions=sl.All())[SITE]
    with model.steering(edit):
        states = sl.capture(model, [TEXT, OTHER], SITE, positions=sl.All())[SITE]
    close(states @ kept, plain @ kept)
    assert float((states @ outside).abs().max()) <= 1e-5 * float(states.norm() * outside.norm())


def erases(model: LanguageModel) -> None:
    """The states that a label was erased from have no covariance with it, and hooks do what the formula says."""
    texts, labels = [*WORDS, *(f"{TEXT} {word}" for word in WORDS)], [0] * len(WORDS) + [1] * len(WORDS)
    states = sl.capture(model, texts, SITE)
    label = fit_direction(states, labels, "leace", hold_out=False)
    with model.steering(sl.Erase(label)):
        erased = sl.capture(model, texts, SITE)[SITE].double()
    rows, ones = states[SITE].double(), torch.tensor(labels, dtype=torch.float64)
    difference = rows[ones == 1].mean(0) - rows[ones == 0].mean(0)
    reads = label[SITE].double()
    along = (rows - rows.mean(0)) @ reads / (reads @ difference)
    close(erased, rows - along[:, None] * difference)
    left = erased[ones == 1].mean(0) - erased[ones == 0].mean(0)
    assert float(left.norm()) <= 1e-3 * float(difference.norm())


def bakes(model: LanguageModel) -> None:
    """Changed weights give what hooks give."""
    edit = sl.Ablate(direction(model))
    baked = sl.bake(model, edit)
    with model.steering(edit):
        close(baked.logits(TEXT), model.logits(TEXT))


def keeps_lengths(model: LanguageModel) -> None:
    """So do weights that lose a direction and keep their length."""
    edit = sl.Ablate(direction(model), preserve="norm")
    baked = sl.bake(model, edit)
    with model.steering(edit):
        close(baked.logits(TEXT), model.logits(TEXT))


def streams(model: LanguageModel) -> None:
    """Token by token, alone and in a padded batch, and by hand without a cache, the same steered text comes."""
    added = vector(model)
    with model.steering(sl.Add(added, 1.0, sites=SITE, positions=sl.Generated())):
        alone = model.generate(TEXT, max_new_tokens=6).token_ids
        assert [text.token_ids for text in model.generate([OTHER, TEXT], max_new_tokens=6)][1] == alone
        assert _read(model.stream(TEXT, max_new_tokens=6)) == alone
    rows = model.tokenize(TEXT).input_ids
    prompt = rows.shape[1]

    def hook(module: Any, args: Any, output: Any) -> Any:
        state = (output if isinstance(output, Tensor) else output[0]).clone()
        state[:, prompt:] += added
        return state if isinstance(output, Tensor) else (state, *output[1:])

    handle = model.anatomy.blocks[1].register_forward_hook(hook)
    for token in alone:  # every step from the beginning again
        with torch.no_grad():
            logits = model.model(input_ids=rows, use_cache=False).logits[0, -1, : model.vocab_size]
        assert float(logits.max() - logits[token]) <= 1e-3 * float(logits.abs().max())
        rows = torch.cat([rows, torch.tensor([[token]])], dim=1)
    handle.remove()


def _read(pieces: Generator[str, None, sl.Generation]) -> tuple[int, ...]:
    """The tokens of a stream that is read to its end."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            return tuple(end.value.token_ids)


def samples(model: LanguageModel) -> None:
    """At temperature zero the sampler writes what `generate` writes; batches and streams change no sample."""
    prompts = [model.tokenize(text).input_ids[0].tolist() for text in (TEXT, OTHER)]
    drawn = sample_tokens(
        model.model,
        prompts,
        vocab_size=model.vocab_size,
        stop_ids=[],
        samples=2,
        max_new_tokens=5,
        law=SamplingLaw(0),
    )
    for row, prompt in ((0, TEXT), (1, TEXT), (2, OTHER), (3, OTHER)):
        written = list(model.generate(prompt, max_new_tokens=5).token_ids)
        assert drawn.tokens[row].tolist()[: len(written)] == written
    law: dict[str, Any] = {
        "max_new_tokens": 5,
        "do_sample": True,
        "temperature": 1.3,
        "top_p": 0.9,
        "seed": 4,
    }
    together, one_by_one = (
        [text.token_ids for text in model.generate([TEXT, OTHER], token_budget=budget, **law)]
        for budget in (8192, 1)
    )
    assert together == one_by_one
    assert _read(model.stream(TEXT, **law)) == together[0]


def sweeps(model: LanguageModel) -> None:
    """A patched cell is the run with that state zeroed."""
    right, wrong = 5, 9
    found = sl.PatchSweep(
        model, [TEXT], [[(StatePatch(SITE, (2,), Zero()),)]], LogitDifference([right], [wrong])
    ).run()

    def zeroed(state: Tensor) -> Tensor:
        state[:, 2] = 0
        return state

    with model.edit(SITE, zeroed):
        logits = model.logits(TEXT)[0]
    close(torch.tensor(float(found.values[0][0])), logits[right] - logits[wrong])


def optimises(model: LanguageModel) -> None:
    """A vector found by gradient does with hooks what the search says of it, and raises what it was to raise."""
    texts, token = [TEXT, OTHER], 7
    found = sl.optimise_direction(model, SITE, texts, [token], max_norm=0.3, steps=2, held_out=0)
    plain = model.logits(texts).double().log_softmax(-1)[:, token]
    with model.steering(sl.Add(found)):
        steered = model.logits(texts).double().log_softmax(-1)[:, token]
    gain, said = float((steered - plain).mean()), found.parameters["in_sample"]
    assert isinstance(said, dict)
    assert gain > 0
    assert abs(gain - float(said["value"])) <= 2e-4 * float(plain.abs().max())  # type: ignore[arg-type]


WAYS: dict[str, Callable[[LanguageModel], None]] = {
    way.__name__: way
    for way in (
        reads,
        steers,
        ablates,
        keeps_others,
        erases,
        bakes,
        keeps_lengths,
        streams,
        samples,
        sweeps,
        optimises,
    )
}

#: Cells that cannot be, with words of the sentence that says why.
_POST_NORM = "a post-norm family"
_NORMED = ("gemma2", "gemma3", "olmo2", "olmo3", "glm4", "exaone4")
_ROUTED = (
    *("mixtral", "qwen3_moe", "gpt_oss", "ernie4_5_moe", "glm4_moe", "granite_moe", "olmoe", "qwen2_moe"),
    *("deepseek_v2", "deepseek_v3", "jetmoe", "minimax_m2"),
)
_MIXED = (
    *(
        "qwen3_next",
        "qwen3_5",
        "qwen3_5_moe",
        "lfm2",
        "lfm2_moe",
        "bamba",
        "jamba",
        "falcon_h1",
        "granite_hybrid",
    ),
    *("nemotron_h", "mamba", "mamba2"),
)
REFUSED: dict[tuple[str, str], str] = {
    **{(family, way): _POST_NORM for family in _NORMED for way in ("bakes", "keeps_lengths")},
    **{(family, "keeps_lengths"): "no single map" for family in _ROUTED},
    **{(family, "keeps_lengths"): "a mixer in attention's place" for family in _MIXED},
    ("bloom", "bakes"): "A norm follows the token embedding",
    ("xglm", "bakes"): "does not start from its token embedding times a number",  # it adds sine positions
    ("jetmoe", "bakes"): "no attention with an output projection",  # experts of attention
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
def test_each_family_each_way(family: str, way: str) -> None:
    model: LanguageModel = tiny(family)
    if (family, way) in REFUSED:
        with pytest.raises(SteerlabError, match=REFUSED[family, way]):
            WAYS[way](model)
    else:
        WAYS[way](model)


def test_enough_families_go_all_ways() -> None:
    refused = {way: {family for family, other in REFUSED if other == way} for way in WAYS}
    assert len({*FAMILIES, *MORE}) >= 55
    assert len({*FAMILIES, *MORE} - refused["bakes"]) >= 45
    assert len({*FAMILIES, *MORE} - refused["keeps_lengths"]) >= 33
    assert {way for way in WAYS if refused[way]} == {"bakes", "keeps_lengths"}
