"""Where does a fact come back when its subject was drowned in noise? Causal tracing.

The embeddings of a subject's tokens get Gaussian noise of three times the standard deviation of all elements of the
subjects' embeddings; one clean state is put back at a time, and the probability of the right word is read:

    TE = P(clean) - P(corrupted),    IE(site, layer, token) = P(corrupted, one state restored) - P(corrupted)

MLP and attention outputs are restored in windows of layers. A severed path holds a token's later MLP (or attention)
outputs at their corrupted values while the stream before them is restored: what is then lost went through them.
Only facts that the model knows are traced. Source: Meng et al. (2022), "Locating and
editing factual associations in GPT", section 2 and appendix B.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from steerlab.activations import (
    Cell,
    Cost,
    Noise,
    PatchMeasure,
    PatchSweep,
    Probability,
    Run,
    StatePatch,
    capture,
    window,
)
from steerlab.activations.measures import LogProbability
from steerlab.datasets import Statement, StatementSet
from steerlab.errors import DatasetError, SiteError
from steerlab.models import LanguageModel, Prompt, Site, Span
from steerlab.models.laws import exact
from steerlab.models.positions import overlapping

FACT_ROLES = (
    "first subject",
    "middle subject",
    "last subject",
    "after subject",
    "further",
    "last token",
)
KINDS = ("resid_post", "mlp_out", "attn_out")
Measured = Literal["probability", "log-probability"]
LEVEL = 3.0  # standard deviations of the subjects' embeddings
_SPAN = 10 / 48  # of the depth: ten layers of GPT-2 XL


class Window(NamedTuple):
    """So many layers of one kind of state, restored together around a layer."""

    kind: str
    layer: int
    width: int


@dataclass(frozen=True, eq=False)
class NoiseEffects:
    """Causal tracing of one model, fact by fact; the mean over a fact's copies everywhere.

    Attributes:
        rows: what each row restores.
        roles: of the columns.
        clean, corrupted: what is measured of the right word, [fact].
        by_role: indirect effects [fact, row, role]; NaN where a fact has no token of a role.
        severed: by path, the effects of restoring the stream at the subject's last token [fact, layer].
        unknown: facts whose word the model does not say.
        noise: standard deviation of what was added.
        cost: token-layers that the sweep took.
    """

    rows: tuple[Window, ...]
    roles: tuple[str, ...]
    clean: Float[np.ndarray, " fact"]
    corrupted: Float[np.ndarray, " fact"]
    by_role: Float[np.ndarray, "fact row role"]
    severed: Mapping[str, Float[np.ndarray, "fact layer"]]
    unknown: int
    noise: float
    cost: Cost


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
    facts: dict[str, Fact] = {}
    for item in statements:
        if not item.label or item.polarity < 0 or item.form != "simple" or not _ends_in_object(item):
            continue
        cut = item.text[: item.spans["object"][0]].rstrip()
        whole, part = model.tokenize([item.text]), model.tokenize([cut])
        length = part.lengths[0]
        ids = [tokens.input_ids[0, tokens.column(0, 0) :].tolist() for tokens in (whole, part)]
        if ids[0][:length] == ids[1] and len(ids[0]) > length:
            prompt = Prompt(cut, {"subject": item.spans["subject"]})
            facts.setdefault(cut, Fact(prompt, ids[0][length]))
    if not facts:
        raise DatasetError(
            f"None of the {len(statements)} statements is a fact whose object stands at its end behind a marked "
            "subject; give true statements like 'The city of Lyon is in France.' with both spans."
        )
    return list(facts.values())


def known_facts(model: LanguageModel, facts: Sequence[Fact]) -> list[Fact]:
    """Facts whose right word is the model's own first choice."""
    words = model.logits(
        [fact.prompt for fact in facts], reduce=lambda logits: logits.argmax(dim=-1)
    ).tolist()
    return [fact for fact, word in zip(facts, words, strict=True) if word == fact.answer]


# Long: a third or more of it documents its options.
def noise_effects(
    model: LanguageModel,
    facts: Sequence[Fact],
    *,
    source: LanguageModel | None = None,
    limit: int | None = None,
    copies: int = 10,
    kinds: Sequence[str] = KINDS,
    layers: Sequence[int] | None = None,
    span: int | None = None,
    level: float = LEVEL,
    measure: Measured = "probability",
    severed: bool = True,
    seed: int = 0,
    kept_in: Path | None = None,
    progress: str | None = None,
) -> NoiseEffects:
    """Trace the facts that the model knows, fact by fact.

    Args:
        source: whose clean states are put back, a model of the same shape and tokens; by default the model's own.
            Facts that it does not know are left out as well.
        layers: the middle layers of the rows; all of them by default.
        progress: name of a progress bar.
        limit, copies, kinds, span, level, measure, severed, seed, kept_in: as in `noise_trace`.

    Raises:
        DatasetError: the models know none of the facts together.
        SiteError: a kind or layer that the model has not.
    """
    known = known_facts(model, facts)
    if source is not None:
        known = known_facts(source, known) if known else known
    chosen = known[:limit]
    if not chosen:
        raise DatasetError(
            f"{model.name}{f' (with {source.name})' if source else ''} says the right word of none of {len(facts)} "
            "facts, so nothing can be traced; give facts that are known."
        )
    noised = _Noised(
        model,
        chosen,
        copies,
        Noise(level * _spread(model, chosen), seed),
        _windows(model, kinds, layers, span),
        source or model,
    )
    paths = _paths(model, kinds) if severed else {}
    answers = [fact.answer for fact in chosen for _ in range(copies)]
    read: PatchMeasure = LogProbability(answers) if measure == "log-probability" else Probability(answers)
    sweep = PatchSweep(model, noised.prompts, noised.cells(paths), read, base=noised.base)
    patched = sweep.run(progress=progress or f"tracing noise in {model.name}", kept_in=kept_in)
    effects = patched.values - patched.plain[:, None]
    return NoiseEffects(
        rows=tuple(noised.windows),
        roles=FACT_ROLES,
        clean=_clean(model, chosen, measure),
        corrupted=patched.plain.reshape(len(chosen), copies).mean(axis=1),
        by_role=noised.by_role(effects),
        severed={path: noised.path_effects(effects, number) for number, path in enumerate(paths)},
        unknown=len(facts) - len(known),
        noise=noised.noise.scale,
        cost=patched.cost,
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


def _windows(
    model: LanguageModel, kinds: Sequence[str], layers: Sequence[int] | None, span: int | None
) -> list[Window]:
    """The rows of the maps: the stream layer by layer, everything else in windows."""
    wide = max(1, round(_SPAN * model.n_layers)) if span is None else span
    return [
        Window(kind, layer, 1 if kind == "resid_post" else wide)
        for kind in kinds
        for layer in _layers(model, kind)
        if layers is None or layer in layers
    ]


class _Noised:
    """Copies of the facts' prompts with noise on their subjects, and the cells in which a clean state is restored."""

    def __init__(
        self,
        model: LanguageModel,
        facts: Sequence[Fact],
        copies: int,
        noise: Noise,
        windows: list[Window],
        source: LanguageModel,
    ) -> None:
        self.model, self.noise, self.windows, self.source = model, noise, windows, source
        self.shape = (len(facts), copies)
        self.prompts = [fact.prompt for fact in facts for _ in range(copies)]
        self.subjects = [_subject(model, prompt) for prompt in self.prompts]
        self.roles = [_roles(model, prompt) for prompt in self.prompts]
        self.base: list[Cell] = [(StatePatch(Site("embed"), tokens, noise),) for tokens in self.subjects]

    def cells(self, paths: Mapping[str, str | None]) -> list[list[Cell]]:
        """By prompt: every window at every token from the subject on, then every path at every layer."""
        model, clean = self.model, Run(self.source, self.prompts)
        corrupted = Run(model, self.prompts, self.base)
        return [
            [
                window(kind, layer, width, model.n_layers, (position,), clean)
                for kind, layer, width in self.windows
                for position in range(tokens[0], tokens[0] + len(roles))
            ]
            + [
                _severed(model, layer, tokens[-1], clean, corrupted, path)
                for path in paths.values()
                for layer in range(model.n_layers)
            ]
            for tokens, roles in zip(self.subjects, self.roles, strict=True)
        ]

    def by_role(self, effects: Float[np.ndarray, "prompt cell"]) -> Float[np.ndarray, "fact row role"]:
        """Mean over a fact's copies and over tokens of one role; NaN where it has none."""
        rows = len(self.windows)
        table = np.full((len(self.roles), rows, len(FACT_ROLES)), np.nan)
        for number, roles in enumerate(self.roles):
            values = effects[number, : rows * len(roles)].reshape(rows, len(roles))
            for column, role in enumerate(FACT_ROLES):
                tokens = [token for token, own in enumerate(roles) if own == role]
                if tokens:
                    table[number, :, column] = values[:, tokens].mean(axis=1)
        means: Float[np.ndarray, "fact row role"] = table.reshape(*self.shape, *table.shape[1:]).mean(axis=1)
        return means

    def path_effects(
        self, effects: Float[np.ndarray, "prompt cell"], path: int
    ) -> Float[np.ndarray, "fact layer"]:
        """Effects of restoring the stream at the subject's last token with one path severed, over a fact's copies."""
        layers = self.model.n_layers
        rows = []
        for number, roles in enumerate(self.roles):
            start = len(self.windows) * len(roles) + path * layers
            rows.append(effects[number, start : start + layers])
        means: Float[np.ndarray, "fact layer"] = np.stack(rows).reshape(*self.shape, layers).mean(axis=1)
        return means


def _paths(model: LanguageModel, kinds: Sequence[str]) -> dict[str, str | None]:
    """What is severed, by name: nothing, and the site whose later outputs are held."""
    paths: dict[str, str | None] = {"whole": None}
    for kind, name in (("mlp_out", "MLPs severed"), ("attn_out", "attention severed")):
        try:
            model.sites(kind)
        except SiteError:
            continue
        if kind in kinds:
            paths[name] = kind
    return paths


def _severed(
    model: LanguageModel, layer: int, position: int, clean: Run, corrupted: Run, path: str | None
) -> Cell:
    """The clean stream at one token, and there what the path adds later as in the corrupted run."""
    restored = StatePatch(Site("resid_post", layer), (position,), clean)
    if path is None:
        return (restored,)
    held = [
        StatePatch(site, (position,), corrupted) for site in model.sites(path) if (site.layer or 0) > layer
    ]
    return (restored, *held)


def _clean(model: LanguageModel, facts: Sequence[Fact], measure: str) -> Float[np.ndarray, " fact"]:
    words = [fact.answer for fact in facts]
    law = model.logits(
        [fact.prompt for fact in facts], reduce=lambda logits: exact(logits).log_softmax(dim=-1)[:, words]
    )
    right: Float[np.ndarray, " fact"] = law.numpy().diagonal()
    return right if measure == "log-probability" else np.exp(right)
