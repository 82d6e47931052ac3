from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from families import FAMILIES, tiny
from tolerances import close
from torch import Tensor

from steerlab.activations import Activations, capture
from steerlab.directions import DifferenceInMeans, Direction, fit_direction
from steerlab.errors import DirectionError, SiteError, SteeringError
from steerlab.models import AfterInstruction, All, Edit, Generated, Index, LanguageModel, Last, Site, Span
from steerlab.steering import Ablate, Add, edit_from_dict, stream_writes

PROMPTS = ["The capital of France is Paris.", "A cat", "Two plus two is four; three plus four is seven.", "x"]
MID = Site("resid_post", 1)
READ = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "ln_final_in")


def direction(model: LanguageModel, *sites: Site, seed: int = 0, k: int = 1) -> Direction:
    generator = torch.Generator().manual_seed(seed)
    vectors = {site: torch.randn(k, model.width(site), generator=generator) for site in sites or (MID,)}
    return Direction(vectors, model.name, model.fingerprint)


def fitted(model: LanguageModel) -> Direction:
    acts = capture(model, PROMPTS, model.sites("resid_post"))
    return fit_direction(acts, [0, 1, 0, 1], DifferenceInMeans(), model=model)


def number_of_hooks(model: LanguageModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.model.modules())


def all_sites(model: LanguageModel) -> list[Site]:
    return [site for name in READ if name in model.site_names() for site in model.sites(name)]


def families(*names: str) -> Any:
    return pytest.mark.parametrize("family", names)


def of(family: str) -> LanguageModel:
    return tiny(family, bos=family != "gpt2")


# ------------------------------------------------------------------------------------------------------ ablation


@families(*FAMILIES)
@pytest.mark.parametrize("k", [1, 3])
def test_the_whole_stream_stays_orthogonal_in_every_family(family: str, k: int) -> None:
    model = of(family)
    made = direction(model, Site("resid_pre", 1), k=k)
    basis = torch.linalg.qr(made.vectors[Site("resid_pre", 1)].double().T).Q
    plain = capture(model, PROMPTS, all_sites(model), positions=All())
    with model.steering(Ablate(made)):
        acts = capture(model, PROMPTS, all_sites(model), positions=All())
    for site in acts.sites:
        size = acts[site].norm(dim=1).max().item()
        assert (acts[site].double() @ basis).abs().max().item() <= 2e-6 * size, site
    last = Site("resid_post", model.n_layers - 1)
    assert (plain[last].double() @ basis).abs().max().item() > 0.01


@families("llama", "gemma2", "gpt2")
def test_ablation_equals_orthogonalised_logits_of_the_projected_stream(family: str) -> None:
    """Ablating only where the stream is last read: the logits are those of the projected final state."""
    model = of(family)
    made = direction(model, Site("ln_final_in"))
    unit = made[Site("ln_final_in")] / made[Site("ln_final_in")].norm()
    final = capture(model, PROMPTS, [Site("ln_final_in")])[Site("ln_final_in")]
    with model.steering(Ablate(made, sites=[Site("ln_final_in")])):
        steered = model.logits(PROMPTS)
    close(steered, model.unembed(final - (final @ unit)[:, None] * unit).cpu())


def test_named_sites_use_their_own_vectors(tiny_llama: LanguageModel) -> None:
    first, second = Site("resid_post", 0), Site("resid_post", 2)
    made = direction(tiny_llama, first, second)
    with tiny_llama.steering(Ablate(made, sites=[first, second])):
        acts = capture(tiny_llama, PROMPTS, tiny_llama.sites("resid_post"), positions=All())
    for site in (first, second):
        assert (acts[site] @ made[site]).abs().max() < 1e-4
    assert (acts[MID] @ made[second]).abs().max() > 0.1


def test_everywhere_needs_one_vector(tiny_llama: LanguageModel) -> None:
    with pytest.raises(
        SteeringError, match=r"2 sites and does not know where it works best; name some.*layers="
    ):
        Ablate(direction(tiny_llama, Site("resid_post", 0), MID))


def test_every_write_to_the_stream_is_named() -> None:
    llama = of("llama")
    expected = {str(site) for name in ("resid_pre", "attn_out", "mlp_out") for site in llama.sites(name)}
    assert {str(site) for site in stream_writes(llama)} == {*expected, "ln_final_in"}


# ------------------------------------------------------------------------------------------------------ addition


@families("llama", "gemma2", "gpt2", "granite")
@pytest.mark.parametrize("name", ["resid_pre", "resid_post", "attn_out", "mlp_out"])
def test_addition_moves_the_state_by_the_vector_and_no_other(family: str, name: str) -> None:
    model = of(family)
    site = Site(name, 1)
    made = direction(model, site)
    plain = capture(model, PROMPTS, [site, Site("resid_pre", 0)], positions=All())
    with model.steering(Add(made, strength=-1.5, layers="all")):
        moved = capture(model, PROMPTS, [site, Site("resid_pre", 0)], positions=All())
    close(moved[site], plain[site] - 1.5 * made[site])
    assert torch.equal(moved[Site("resid_pre", 0)], plain[Site("resid_pre", 0)])


def test_units_say_how_far_one_is(tiny_llama: LanguageModel) -> None:
    made = fitted(tiny_llama)
    before = capture(tiny_llama, PROMPTS, [MID])[MID]

    def shift(**how: Any) -> Tensor:
        with tiny_llama.steering(Add(made.at(MID), **how)):
            return capture(tiny_llama, PROMPTS, [MID])[MID] - before

    unit = made[MID] / made[MID].norm()
    for got, length in [
        (shift(strength=2.0), 2 * float(made[MID].norm())),
        (shift(strength=0.5, unit="class_gap"), 0.5 * made.class_gap[MID]),
        (shift(strength=0.1, unit="norm"), 0.1 * float(before.norm(dim=1).mean())),
    ]:
        close(got, (length * unit).expand_as(got))


def test_adding_then_subtracting_is_the_identity(tiny_llama: LanguageModel) -> None:
    made = fitted(tiny_llama)
    plain = tiny_llama.logits(PROMPTS)
    with tiny_llama.steering(Add(made, layers="all"), Add(-made, layers="all")):
        close(tiny_llama.logits(PROMPTS), plain)
    with (
        tiny_llama.steering(Add(made, layers="all")),
        tiny_llama.steering(Add(made, strength=-1.0, layers="all")),
    ):
        close(tiny_llama.logits(PROMPTS), plain)
    with tiny_llama.steering(Add(made, layers="all")):
        assert (tiny_llama.logits(PROMPTS) - plain).abs().max() > 0.1


@families("llama", "gemma2", "gpt2", "granite")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_strength_changes_no_bit(family: str, dtype: torch.dtype) -> None:
    model = of(family)
    model.model.to(dtype)
    made = direction(model, *model.sites("resid_post"), *model.sites("attn_out"))
    plain = model.logits(PROMPTS, last_only=False)
    with model.steering(Add(made, strength=0.0, layers="all")):
        assert torch.equal(model.logits(PROMPTS, last_only=False), plain)


def test_arithmetic_is_float32_in_a_half_precision_model() -> None:
    """x + v rounded once: the same as float32 addition cast back, not an addition of two rounded numbers."""
    model = of("llama")
    model.model.to(torch.bfloat16)
    made = direction(model)
    plain = capture(model, PROMPTS, [MID])[MID]
    with model.steering(Add(made, strength=0.01, layers="all")):
        moved = capture(model, PROMPTS, [MID])[MID]
    assert torch.equal(moved, (plain + (0.01 * made[MID].double()).float()).bfloat16().float())


def test_states_held_elsewhere_are_not_touched(tiny_llama: LanguageModel) -> None:
    for edit in (
        Add(direction(tiny_llama)),
        Add(direction(tiny_llama), strength=0.0),
        Ablate(direction(tiny_llama)),
    ):
        state = torch.randn(2, 3, 32)
        before = state.clone()
        after = edit.apply(state, MID)
        assert torch.equal(state, before)
        assert after.data_ptr() != state.data_ptr()


# ------------------------------------------------------------------------------------------------------ generation


def step_by_step(model: LanguageModel, prompt: str, steps: int, *edits: Edit) -> list[int]:
    """Greedy tokens from whole forward passes without a cache; the prompt's length says which tokens are generated."""
    ids = model.tokenize([prompt]).input_ids
    length = ids.shape[1]
    with model.steering(*(_fixed(edit, length) for edit in edits)):
        for _ in range(steps):
            with torch.no_grad():
                logits = model.model(ids, use_cache=False).logits[0, -1]
            ids = torch.cat([ids, logits[: model.vocab_size].argmax()[None, None]], dim=1)
    return ids[0, length:].tolist()


class _fixed:
    """The reference edit: computes its columns from the prompt's length, on whole sequences."""

    def __init__(self, edit: Any, length: int) -> None:
        self.edit, self.length = edit, length
        self.positions = All()

    @property
    def sites(self) -> Any:
        return self.edit.sites

    def check(self, model: LanguageModel) -> None:
        self.edit.check(model)

    def apply(self, state: Tensor, site: Site) -> Tensor:
        new = self.edit.apply(state, site)
        column = torch.arange(state.shape[1])
        wanted = {
            "All()": column >= 0,
            "Last()": column == self.length - 1,
            "Generated()": column >= self.length,
            "Index(index=0)": column == 0,
        }[repr(self.edit.positions)]
        return torch.where(wanted[None, :, None], new, state)


@families("llama", "gemma2", "gpt2", "bloom", "falcon")
@pytest.mark.parametrize("positions", [All(), Last(), Generated(), Index(0)], ids=str)
def test_generation_with_the_cache_equals_whole_forward_passes(family: str, positions: Any) -> None:
    model = of(family)
    model.model.generation_config.eos_token_id = None
    add = Add(direction(model, Site("resid_pre", 1)), strength=2.0, positions=positions)
    ablate = Ablate(direction(model, seed=1), positions=positions)
    for edits in ([add], [ablate, add]):
        with model.steering(*edits):
            alone = [model.generate([prompt], max_new_tokens=6)[0].token_ids for prompt in PROMPTS]
        with model.steering(*edits):
            together = [g.token_ids for g in model.generate(PROMPTS, max_new_tokens=6)]
        expected = [step_by_step(model, prompt, 6, *edits) for prompt in PROMPTS]
        assert [list(ids) for ids in alone] == [e[: len(a)] for e, a in zip(expected, alone, strict=True)]
        assert together == alone


def test_left_padded_rows_equal_single_rows(tiny_gpt2: LanguageModel) -> None:
    for positions in (All(), Last(), Index(0)):
        edit = Add(direction(tiny_gpt2), strength=3.0, positions=positions)
        with tiny_gpt2.steering(edit):
            together = tiny_gpt2.logits(tiny_gpt2.tokenize(PROMPTS, padding_side="left"))
            alone = torch.cat([tiny_gpt2.logits([prompt]) for prompt in PROMPTS])
        close(together, alone)


def test_generated_leaves_the_prompt_alone(tiny_llama: LanguageModel) -> None:
    """The first new token is decided by the prompt only, so it stays; later ones may change."""
    made = direction(tiny_llama)
    plain = [g.token_ids for g in tiny_llama.generate(PROMPTS, max_new_tokens=8)]
    with tiny_llama.steering(Add(made, strength=50.0, positions=Generated())):
        steered = [g.token_ids for g in tiny_llama.generate(PROMPTS, max_new_tokens=8)]
    assert [ids[0] for ids in steered] == [ids[0] for ids in plain]
    assert steered != plain
    with (
        pytest.raises(SteeringError, match="never acted"),
        tiny_llama.steering(Add(made, positions=Generated())),
    ):
        tiny_llama.logits(PROMPTS)


@families("llama", "gpt2")
def test_one_token_prompts(family: str) -> None:
    model = tiny(family, bos=False)
    assert model.tokenize(["x"]).lengths == (1,)
    made = direction(model)
    plain = capture(model, ["x"], [MID])
    with model.steering(Add(made, positions=Last())):
        moved = capture(model, ["x"], [MID])
        assert len(model.generate(["x"], max_new_tokens=3)[0].token_ids) >= 1
    close(moved[MID], plain[MID] + made[MID])


# ------------------------------------------------------------------------------------------- hooks and misuse


def test_hooks_are_gone_after_success_exception_and_misuse(tiny_llama: LanguageModel) -> None:
    before, plain = number_of_hooks(tiny_llama), tiny_llama.logits(PROMPTS)
    made = direction(tiny_llama)
    with tiny_llama.steering(Add(made), Ablate(made)):
        tiny_llama.logits(PROMPTS)
        assert number_of_hooks(tiny_llama) > before
    assert number_of_hooks(tiny_llama) == before
    with pytest.raises(KeyError, match="mine"), tiny_llama.steering(Add(made)):
        raise KeyError("mine")
    assert number_of_hooks(tiny_llama) == before
    with (
        pytest.raises(SteeringError, match=r"Add at resid_post\.1 never acted"),
        tiny_llama.steering(Add(made)),
    ):
        pass
    assert number_of_hooks(tiny_llama) == before
    assert torch.equal(tiny_llama.logits(PROMPTS), plain)


def test_directions_of_another_model_width_or_layer_are_refused(
    tiny_llama: LanguageModel, tiny_gpt2: LanguageModel
) -> None:
    before = number_of_hooks(tiny_llama)
    other = Direction({MID: torch.ones(tiny_llama.width(MID))}, tiny_gpt2.name, "another fingerprint")
    narrow = Direction({MID: torch.ones(5)}, tiny_llama.name, tiny_llama.fingerprint)
    for edit, sentence in [
        (Add(other), "was made in tiny-gpt2"),
        (Ablate(other), "was made in tiny-gpt2"),
        (Add(narrow), "has width 5 but"),
        (Ablate(narrow), "has width 5 but"),
        (
            Add(direction(tiny_llama), sites=[Site("mlp_post", 0)]),
            r"has width 32 but mlp_post\.0 .* width 48",
        ),
    ]:
        with pytest.raises(DirectionError, match=sentence), tiny_llama.steering(edit):
            pass
    deep = Direction({Site("resid_post", 8): torch.ones(32)}, tiny_llama.name, tiny_llama.fingerprint)
    with pytest.raises((SiteError, DirectionError), match="layers 0 to 2"), tiny_llama.steering(Add(deep)):
        pass
    assert number_of_hooks(tiny_llama) == before


def test_missing_vectors_scales_and_units_are_named(tiny_llama: LanguageModel) -> None:
    several = direction(tiny_llama, Site("resid_post", 0), MID)
    with pytest.raises(DirectionError, match=r"no vector at resid_post\.2"):
        Add(several, sites=[Site("resid_post", 2)])
    with pytest.raises(DirectionError, match="class means at"):
        Add(several, unit="class_gap", layers="all")
    with pytest.raises(DirectionError, match="stream norm at"):
        Add(several, unit="norm", layers="all")
    with pytest.raises(SteeringError, match="no unit 'metres'"):
        Add(several, unit="metres", layers="all")  # type: ignore[arg-type]
    with pytest.raises(DirectionError, match="subspace of 2"):
        Add(direction(tiny_llama, k=2))


# ---------------------------------------------------------------------------------------------------- edits as data


@pytest.mark.parametrize(
    "positions",
    [All(), Last(), Index(-2), Span("subject"), Last() | Generated(), AfterInstruction() | Index(0)],
    ids=str,
)
def test_edits_are_data(tiny_llama: LanguageModel, positions: Any) -> None:
    several = direction(tiny_llama, Site("resid_post", 0), MID)
    one = several.at(MID)
    for edit in (
        Add(several, strength=0.5, layers="all", positions=positions),
        Add(one, sites=[Site("resid_pre", 2)], positions=positions),
        Ablate(one, positions=positions),
        Ablate(several, sites=[MID], positions=positions),
    ):
        data = json.loads(json.dumps(edit.to_dict()))
        again = edit_from_dict(data, [several, one])
        assert type(again) is type(edit)
        assert again.to_dict() == data
        assert again.positions == positions


def test_data_that_means_nothing_is_refused(tiny_llama: LanguageModel) -> None:
    one = direction(tiny_llama)
    data = Add(one).to_dict()
    for change, sentence in [
        ({"edit": "multiply"}, "no edit 'multiply'"),
        ({"direction": "beef"}, "direction beef, which is not among"),
        ({"positions": "__import__('os').getcwd()"}, "not a position selector"),
        ({"positions": "load('x')"}, "not a position selector"),
        ({"positions": "Index('a', 'b', 'c')"}, "not a position selector"),
        ({"positions": "Index("}, "not a position selector"),
    ]:
        with pytest.raises(SteeringError, match=sentence):
            edit_from_dict({**data, **change}, [one])


def test_edits_satisfy_the_protocol(tiny_llama: LanguageModel) -> None:
    for edit in (Add(direction(tiny_llama)), Ablate(direction(tiny_llama))):
        assert isinstance(edit, Edit)
        with pytest.raises(AttributeError):
            edit.positions = Last()  # type: ignore[misc]


def test_steered_states_can_be_captured_and_fitted(tiny_llama: LanguageModel) -> None:
    made = fitted(tiny_llama).at(MID)
    with tiny_llama.steering(Ablate(made)):
        acts = capture(tiny_llama, PROMPTS, [MID])
    assert isinstance(acts, Activations)
    again = fit_direction(acts, [0, 1, 0, 1], DifferenceInMeans(), model=tiny_llama)
    assert abs(again.cosine(made)[MID]) < 1e-4
