"""Where does a fact come back when its subject was drowned in noise? Causal tracing.

The embeddings of a subject's tokens get Gaussian noise of three times the standard deviation of all elements of the
subjects' embeddings; one clean state is put back at a time, and the probability of the right word is read:

    TE = P(clean) - P(corrupted),    IE(site, layer, token) = P(corrupted, one state restored) - P(corrupted)

MLP and attention outputs are restored in windows of layers. A severed path holds a token's later MLP (or attention)
outputs at their corrupted values while the stream before them is restored: what is then lost went through them.
Averages run over the facts that the model knows, by the token's role. Source: Meng et al. (2022), "Locating and
editing factual associations in GPT", section 2 and appendix B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from steerlab.activations import (
    Cell,
    Noise,
    Patch,
    PatchMeasure,
    PatchSweep,
    Probability,
    Run,
    capture,
    window,
)
from steerlab.activations.measures import LogProbability
from steerlab.datasets import Statement, StatementSet
from steerlab.errors import DatasetError, SiteError
from steerlab.models import LanguageModel, Prompt, Site, Span
from steerlab.models.positions import overlapping
from steerlab.record import Record
from steerlab.statistics import Estimate, bootstrap_curve, bootstrap_mean

FACT_ROLES = (
    "first subject",
    "middle subject",
    "last subject",
    "after subject",
    "further",
    "last token",
)
KINDS = ("resid_post", "mlp_out", "attn_out")
_LEVEL = 3.0  # standard deviations of the subjects' embeddings
_SPAN = 10 / 48  # of the depth: ten layers of GPT-2 XL


class RestoredBy(Record):
    """Average indirect effects of restoring one kind of state.

    layers: of every row; the middle of its window. effects: [row][role].
    """

    kind: str
    window: int
    layers: tuple[int, ...]
    effects: tuple[tuple[Estimate, ...], ...]


class NoiseTrace(Record):
    """Causal tracing of one model.

    facts: known ones, which were traced. unknown: whose word the model does not say. copies: draws of noise a fact.
    clean, corrupted, total: mean probability of the right word, and the mean difference. severed: the effect of
    restoring the stream at the subject's last token, by layer, whole and with paths severed.
    """

    model: str
    facts: int
    unknown: int
    copies: int
    noise: float
    measure: str
    clean: Estimate
    corrupted: Estimate
    total: Estimate
    roles: tuple[str, ...]
    restored: tuple[RestoredBy, ...]
    severed: dict[str, tuple[Estimate, ...]]

    def by(self, kind: str) -> RestoredBy:
        """The effects of one kind of state. Raises KeyError."""
        return {one.kind: one for one in self.restored}[kind]


@dataclass(frozen=True)
class Fact:
    """A prompt that ends before the word it asks for.

    Attributes:
        prompt: its span "subject" is what it is about.
        answer: the next word's first token.
    """

    prompt: Prompt
    answer: int


def facts_of(model: LanguageModel, statements: StatementSet) -> list[Fact]:
    """True affirmed statements that end in their object, cut before it; each prompt once.

    Raises:
        DatasetError: no statement is one.
    """
    found: dict[str, Fact] = {}
    for item in statements:
        if not item.label or item.polarity < 0 or item.form != "simple" or not _ends_in_object(item):
            continue
        cut = item.text[: item.spans["object"][0]].rstrip()
        whole, part = model.tokenize([item.text]), model.tokenize([cut])
        length = part.lengths[0]
        ids = [tokens.input_ids[0, tokens.column(0, 0) :].tolist() for tokens in (whole, part)]
        if ids[0][:length] == ids[1] and len(ids[0]) > length:
            prompt = Prompt(cut, {"subject": item.spans["subject"]})
            found.setdefault(cut, Fact(prompt, ids[0][length]))
    if not found:
        raise DatasetError(
            f"None of the {len(statements)} statements is a fact whose object stands at its end behind a marked "
            f"subject; "
            "give true statements like 'The city of Lyon is in France.' with both spans."
        )
    return list(found.values())


def noise_trace(
    model: LanguageModel,
    facts: Sequence[Fact],
    *,
    name: str = "",
    limit: int | None = None,
    copies: int = 10,
    kinds: Sequence[str] = KINDS,
    span: int | None = None,
    level: float = _LEVEL,
    measure: Literal["probability", "log-probability"] = "probability",
    severed: bool = True,
    seed: int = 0,
    kept_in: Path | None = None,
) -> NoiseTrace:
    """Trace the facts that the model knows.

    Args:
        limit: at most so many facts.
        copies: draws of noise for each fact (ten as published).
        kinds: sites restored; `resid_post` singly, the others in windows of `span` layers (a fifth of the depth).
        level: noise in standard deviations of the subjects' embeddings.
        measure: as published the probability, which confident facts dominate.

    Raises:
        DatasetError: the model knows none of the facts.
        SiteError: a kind that the model has not.
    """
    known = _known(model, facts)
    chosen = known[:limit]
    if not chosen:
        raise DatasetError(
            f"{model.name} says the right word of none of {len(facts)} facts, so nothing can be traced; give "
            f"facts that "
            "it knows."
        )
    scale = level * _spread(model, chosen)
    prompts = [fact.prompt for fact in chosen for _ in range(copies)]
    answers = [fact.answer for fact in chosen for _ in range(copies)]
    subjects = [_subject(model, prompt) for prompt in prompts]
    roles = [_roles(model, prompt) for prompt in prompts]
    noise, clean = Noise(scale, seed), Run(model, prompts)
    base: list[Cell] = [(Patch(Site("embed"), at, noise),) for at in subjects]
    wide = max(1, round(_SPAN * model.n_layers)) if span is None else span
    laid = [
        (kind, layer, 1 if kind == "resid_post" else wide) for kind in kinds for layer in _layers(model, kind)
    ]
    cells = [
        [
            window(kind, layer, width, model.n_layers, (position,), clean)
            for kind, layer, width in laid
            for position in range(at[0], at[0] + len(mine))
        ]
        for at, mine in zip(subjects, roles, strict=True)
    ]
    paths = _paths(model, kinds) if severed else {}
    corrupted = Run(model, prompts, base)
    for number, at in enumerate(subjects):
        cells[number] += [
            _severed(model, layer, at[-1], clean, corrupted, path)
            for path in paths.values()
            for layer in range(model.n_layers)
        ]
    asked: PatchMeasure = Probability(answers)
    if measure == "log-probability":
        asked = LogProbability(answers)
    sweep = PatchSweep(model, prompts, cells, asked, base=base)
    found = sweep.run(progress=f"tracing noise in {name or model.name}", kept_in=kept_in)
    effects = found.values - found.plain[:, None]
    shape = (len(chosen), copies)
    low = found.plain.reshape(shape).mean(axis=1)
    high = _clean(model, chosen, measure)
    n_cells = [len(laid) * len(mine) for mine in roles]
    by_role = _by_role(effects, roles, len(laid), shape)
    lost = {
        path: _curve(
            np.stack(
                [
                    effects[
                        row, n_cells[row] + at * model.n_layers : n_cells[row] + (at + 1) * model.n_layers
                    ]
                    for row in range(len(prompts))
                ]
            ).reshape(*shape, model.n_layers),
            seed,
        )
        for at, path in enumerate(paths)
    }
    return NoiseTrace(
        model=name or model.name,
        facts=len(chosen),
        unknown=len(facts) - len(known),
        copies=copies,
        noise=scale,
        measure=measure,
        clean=bootstrap_mean(high, seed=seed),
        corrupted=bootstrap_mean(low, seed=seed),
        total=bootstrap_mean(high - low, seed=seed),
        roles=FACT_ROLES,
        restored=tuple(_restored(by_role, laid, kind, wide, seed) for kind in kinds),
        severed=lost,
    )


# -- private, in the order they are called --


def _ends_in_object(item: Statement) -> bool:
    spans = item.spans
    return (
        {"subject", "object"} <= set(spans)
        and spans["subject"][1] <= spans["object"][0]
        and not item.text[spans["object"][1] :].strip(" .'\"")
        and bool(item.text[: spans["object"][0]].strip())
    )


def _known(model: LanguageModel, facts: Sequence[Fact]) -> list[Fact]:
    """Facts whose right word is the model's own first choice."""
    said = model.logits([fact.prompt for fact in facts]).argmax(dim=-1).tolist()
    return [fact for fact, word in zip(facts, said, strict=True) if word == fact.answer]


def _spread(model: LanguageModel, facts: Sequence[Fact]) -> float:
    """Standard deviation over all elements of all subject tokens' embeddings, where the noise is added."""
    states = capture(model, [fact.prompt for fact in facts], Site("embed"), positions=Span("subject"))
    return float(states[Site("embed")].double().std(correction=0))


def _subject(model: LanguageModel, prompt: Prompt) -> tuple[int, ...]:
    return tuple(overlapping(model.tokenize([prompt]), 0, "subject"))


def _roles(model: LanguageModel, prompt: Prompt) -> list[str]:
    """Of every token from the subject's first on."""
    tokens = model.tokenize([prompt])
    subject = overlapping(tokens, 0, "subject")
    after = tokens.lengths[0] - subject[-1] - 1
    names = ["middle subject"] * len(subject) + ["further"] * after
    names[0], names[len(subject) - 1] = "first subject", "last subject"
    if after:
        names[len(subject)] = "after subject"
    names[-1] = "last token"
    return names


def _layers(model: LanguageModel, kind: str) -> list[int]:
    return [site.layer for site in model.sites(kind) if site.layer is not None]


def _paths(model: LanguageModel, kinds: Sequence[str]) -> dict[str, str | None]:
    """What is severed, by name: nothing, and the site whose later outputs are held."""
    found: dict[str, str | None] = {"whole": None}
    for kind, said in (("mlp_out", "MLPs severed"), ("attn_out", "attention severed")):
        try:
            model.sites(kind)
        except SiteError:
            continue
        if kind in kinds:
            found[said] = kind
    return found


def _severed(
    model: LanguageModel, layer: int, position: int, clean: Run, corrupted: Run, path: str | None
) -> Cell:
    """The clean stream at one token, and there what the path adds later as in the corrupted run."""
    restored = Patch(Site("resid_post", layer), (position,), clean)
    if path is None:
        return (restored,)
    held = [Patch(site, (position,), corrupted) for site in model.sites(path) if (site.layer or 0) > layer]
    return (restored, *held)


def _clean(model: LanguageModel, facts: Sequence[Fact], measure: str) -> Float[np.ndarray, " fact"]:
    law = model.logits([fact.prompt for fact in facts]).double().log_softmax(dim=-1)
    of = law.numpy()[np.arange(len(facts)), [fact.answer for fact in facts]]
    return of if measure == "log-probability" else np.exp(of)


def _by_role(
    effects: Float[np.ndarray, "prompt cell"],
    roles: Sequence[Sequence[str]],
    rows: int,
    shape: tuple[int, int],
) -> Float[np.ndarray, "fact row role"]:
    """Mean over a fact's copies and over tokens of one role; NaN where it has none."""
    table = np.full((len(roles), rows, len(FACT_ROLES)), np.nan)
    for number, mine in enumerate(roles):
        values = effects[number, : rows * len(mine)].reshape(rows, len(mine))
        for column, role in enumerate(FACT_ROLES):
            at = [place for place, one in enumerate(mine) if one == role]
            if at:
                table[number, :, column] = values[:, at].mean(axis=1)
    means: Float[np.ndarray, "fact row role"] = table.reshape(*shape, *table.shape[1:]).mean(axis=1)
    return means


def _curve(effects: Float[np.ndarray, "fact copy layer"], seed: int) -> tuple[Estimate, ...]:
    return tuple(bootstrap_curve(effects.mean(axis=1), seed=seed))


def _restored(
    by_role: Float[np.ndarray, "fact row role"],
    laid: Sequence[tuple[str, int, int]],
    kind: str,
    wide: int,
    seed: int,
) -> RestoredBy:
    rows = [at for at, one in enumerate(laid) if one[0] == kind]
    part = by_role[:, rows]
    flat = bootstrap_curve(part.reshape(len(part), -1), seed=seed)
    n = len(FACT_ROLES)
    return RestoredBy(
        kind=kind,
        window=1 if kind == "resid_post" else wide,
        layers=tuple(laid[row][1] for row in rows),
        effects=tuple(tuple(flat[at * n : (at + 1) * n]) for at in range(len(rows))),
    )
