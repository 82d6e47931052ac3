"""How many ways on does a model see, before and after post-training?

Branching factor: BF(x) = exp(mean over samples of (1/N) sum_t h_t), h_t the entropy of exactly the law that token t was
drawn from (temperature, truncation, renormalised; nats). Printed over prompts as exp(mean log BF); the base model
writes after a plain rendering, the post-trained one in its chat format. Beside it: both in one format, the base
against itself, first answers only, entropy per byte, and the martingale check of the record. "Not identified" when the
narrowing does not outlast the format control. Source: Yang and Holtzman, arXiv 2506.17871.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from steerlab import plots
from steerlab.datasets import StudyData
from steerlab.errors import PromptError
from steerlab.models import LanguageModel
from steerlab.models.generation import end_token_ids
from steerlab.plots import Series
from steerlab.readouts.confidence import reading_gain, untrained
from steerlab.readouts.sampling import SamplingLaw, context_length, sample_tokens
from steerlab.record import Record
from steerlab.results import Headline, StudyResult, Table
from steerlab.statistics import Estimate
from steerlab.studies._branching.measures import (
    Contrast,
    Measured,
    Sampled,
    halves,
    measure,
    per_byte_ratio,
    ratio,
)
from steerlab.studies._branching.parts import parts
from steerlab.studies._branching.parts_result import Parts
from steerlab.studies._branching.sentences import verdict
from steerlab.studies._pair import Models, Pair, Preset, Size, require_known

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Rendering = Literal["chat", "plain", "raw"]
Role = Literal["BASE", "POST"]
_ROLES: tuple[Role, ...] = ("BASE", "POST")
Key = tuple[Role, Rendering]
_TEMPLATES: dict[Rendering, Literal["chat", "plain", "none"]] = {
    "chat": "chat",
    "plain": "plain",
    "raw": "none",
}

_FACTORS = {
    "BF": "factor",
    "mean of BF": "factor_mean",
    "by tokens": "factor_tokens",
    "by surprisal": "factor_surprisal",
    "first answer": "first_answer",
    "no loops": "unlooped",
    "entropy an output (nats)": "total",
    "length (tokens)": "length",
    "nats per byte": "nats_per_byte",
}
_CHECKS = {
    "prompts": "n_prompts",
    "sequences": "n_sequences",
    "tokens": "n_tokens",
    "martingale z": "martingale_z",
    "ended by itself": "ended",
    "tokens kept a step": "kept",
    "BF before truncation": "untruncated",
    "repeated 4-grams": "repetition",
}


class Budget(Record):
    """Prompts, samples of each and steps of each sample at most; sequences run together."""

    prompts: int
    samples: int
    steps: int
    rows: int = 256


BUDGETS = {
    "quick": Budget(prompts=40, samples=8, steps=48),
    "full": Budget(prompts=100, samples=32, steps=256),
}


class BranchingResult(StudyResult):
    """Branching factors of a pair with their controls."""

    study: str = "branching"
    law: str
    measured: list[Measured]
    contrasts: list[Contrast]
    gains: dict[Role, Estimate]
    same_tokenizer: bool
    steps: int
    parts: Parts | None = None

    def tables(self) -> list[Table]:
        """Factors by model and rendering, paired ratios with controls, checks, the curve by position, and the parts."""
        own = [self._factors(), self._ratios(), self._checks(), self._positions()]
        return own + (self.parts.tables() if self.parts else [])

    def figures(self) -> dict[str, Figure]:
        """Bars with controls, the local factor by position, and how many sequences each position rests on."""
        return {
            "branching_factor": self._bars(),
            "by_position": self._curves(),
            "alive": plots.curves(
                [Series(one.name, [100 * share for share in one.alive]) for one in self.measured],
                np.arange(1, self.steps + 1),
                title="Sequences still running at each position",
                x_title="Position in the output (tokens)",
                y_title="% of sequences",
                y_range=(0, 103),
            ),
            **(self.parts.figures() if self.parts else {}),
        }

    def _factors(self) -> Table:
        return Table(
            key="branching_factor",
            title="Branching factor",
            columns=["model and rendering", *_FACTORS],
            rows=[[one.name, *(getattr(one, field) for field in _FACTORS.values())] for one in self.measured],
            note=f"Sampled at {self.law}; at most {self.steps} new tokens. BF: exp of the mean log factor over "
            "prompts; 95 % cluster bootstrap over prompts.",
        )

    def _ratios(self) -> Table:
        return Table(
            key="ratios",
            title="Paired ratios of branching factors",
            columns=["ratio", "kind", "value"],
            rows=[[one.name, one.kind, one.ratio] for one in self.contrasts],
            note="Paired by prompt; 1 means no difference.",
        )

    def _checks(self) -> Table:
        note = (
            "z tests that the recorded law is the sampled one: |z| below 4 is chance. Sequences that did not end by "
            "themselves were cut at the limit. Gain: by how much the prompts' own next tokens are likelier than tokens "
            "from other places or by a uniform law."
        )
        return Table(
            key="checks",
            title="Checks of the sampling",
            columns=["model and rendering", *_CHECKS, "gain on the prompts (nats)"],
            rows=[
                [one.name, *(getattr(one, field) for field in _CHECKS.values()), self.gains[one.model]]
                for one in self.measured
            ],
            note=note,
        )

    def _positions(self) -> Table:
        shown = sorted({*range(min(8, self.steps)), *range(7, self.steps, 8), self.steps - 1})
        columns = ["position"]
        for one in self.measured:
            columns += [f"{one.name}: BF", f"{one.name}: % alive", f"{one.name}: BF, same sequences"]
        rows = [[at + 1, *(cell for one in self.measured for cell in _at(one, at))] for at in shown]
        note = (
            "Local values, not smoothed and not cumulative. The sequences alive change along the first curve; "
            "'same sequences' keeps those that reach its end."
        )
        return Table(
            key="by_position", title="Branching factor by position", columns=columns, rows=rows, note=note
        )

    def _bars(self) -> Figure:
        shown = {one.rendering for one in self.measured} | {"plain"}
        renderings: list[Rendering] = [kind for kind in _TEMPLATES if kind in shown]
        rows = {(one.model, one.rendering): one.factor for one in self.measured}
        if ("POST", "plain") not in rows:  # its template writes the plain form
            rows["POST", "plain"] = rows["POST", "chat"]
        series = []
        for model in _ROLES:
            found = [rows.get((model, kind), Estimate(value=math.nan)) for kind in renderings]
            series.append(Series.of(model, found))
        return plots.bars(
            [
                {"chat": "chat rendering", "plain": "plain rendering", "raw": "raw text"}[kind]
                for kind in renderings
            ],
            series,
            title="Branching factor by rendering",
            y_title="Branching factor",
        )

    def _curves(self) -> Figure:
        series = [
            Series(
                one.name,
                [point.value for point in one.curve],
                [point.low for point in one.curve],
                [point.high for point in one.curve],
            )
            for one in self.measured
        ]
        return plots.curves(
            series,
            np.arange(1, self.steps + 1),
            title="Local branching factor of the sequences still running",
            x_title="Position in the output (tokens)",
            y_title="Branching factor",
        )


def branching(
    pair: Pair | Models,
    data: StudyData | Sequence[str] | None = None,
    *,
    size: Size = "quick",
    preset: Preset = "corrected",
    seed: int = 0,
    top_p: float = 0.9,
    temperature: float = 1.0,
    law: SamplingLaw | None = None,
    with_parts: bool = True,
) -> BranchingResult:
    """Branching factors of a pair of models on open prompts, with format controls and intervals over prompts.

    Args:
        pair: base and post, loaded.
        data: prompts, or everything that studies read; None takes the packaged sets.
        size: "full" takes more prompts, more samples of each and longer ones.
        preset: there is only "corrected"; the published aggregations stand beside it in a table.
        law: takes the place of `top_p` and `temperature`.
        with_parts: adds prompt sets and levels, AEP panels, the published aggregations, nudging, resampling and
            majority votes.

    Raises:
        PromptError: no prompt is given, or the models' context leaves no room for an output.
        SteerlabError: an unknown size or preset.
    """
    require_known("branching", "size", size, BUDGETS)
    require_known("branching", "preset", preset, ["corrected"])
    budget, pair = BUDGETS[size], Pair.of(pair)
    base, post = pair
    texts = list(dict.fromkeys(StudyData.of(data, "open_prompts").open_prompts))[: budget.prompts]
    if not texts:
        raise PromptError("The branching factor needs at least one prompt; give it some.")
    law = law or SamplingLaw(temperature, "top_p" if top_p < 1 else "none", top_p)
    models: dict[Role, LanguageModel] = {"BASE": base, "POST": post}
    ids = {cell: _token_ids(models[cell[0]], texts, cell[1]) for cell in _cells(post)}
    steps = _steps(budget, [(models[role], prompt_ids) for (role, _), prompt_ids in ids.items()])
    if ids.get(("POST", "chat")) == ids["POST", "plain"]:
        del ids["POST", "plain"]  # this template writes the plain form: one run serves both
    records: dict[Key, Sampled] = {}
    for (role, rendering), prompt_ids in ids.items():
        model = models[role]
        runs = sample_tokens(
            model.model,
            prompt_ids,
            vocab_size=model.vocab_size,
            stop_ids=end_token_ids(model),
            samples=budget.samples,
            max_new_tokens=steps,
            law=law,
            seed=seed,
            rows=budget.rows,
            description=f"branching, {role} {rendering}",
        )
        records[role, rendering] = Sampled(model.tokenizer, runs, seed)
    measured = [measure(role, rendering, record) for (role, rendering), record in records.items()]
    contrasts = _contrasts(records, seed)
    gains = {
        role: reading_gain(model, texts, seed=seed, description=f"reading prompts, {role}")
        for role, model in models.items()
    }
    own = {one.model: one for one in reversed(measured)}  # the first rendering of each model
    blind = [
        role
        for role, model in models.items()
        if untrained(gains[role], own[role].untruncated.value, model.vocab_size)
    ]
    more = None
    if with_parts and law.temperature > 0:
        mine: dict[Role, Key] = {"BASE": ("BASE", "plain"), "POST": _own(records)}
        more = parts(
            models,
            {role: records[cell].trajectories for role, cell in mine.items()},
            law=law,
            size=size,
            seed=seed,
            templates={role: _TEMPLATES[cell[1]] for role, cell in mine.items()},
        )
    identified, summary = verdict(measured, contrasts, blind, pair.same_tokenizer, steps)
    return BranchingResult(
        status="done" if identified else "not identified",
        summary=[*summary, *(more.sentences if more else [])],
        headline=Headline(
            what="branching factor, base over post",
            value=contrasts[0].ratio,
            control=contrasts[2].ratio,
            control_name=contrasts[2].name,
        ),
        law=str(law),
        measured=measured,
        contrasts=contrasts,
        gains=gains,
        same_tokenizer=pair.same_tokenizer,
        steps=steps,
        parts=more,
    )


def _own(records: dict[Key, Sampled]) -> Key:
    """The post-trained model in its own format."""
    return ("POST", "chat" if ("POST", "chat") in records else "plain")


def _at(one: Measured, at: int) -> list[Estimate | float | None]:
    same = one.cohort[at] if at < len(one.cohort) else None
    return [one.curve[at], round(100 * one.alive[at], 1), same]


def _cells(post: LanguageModel) -> list[Key]:
    """Which model is run in which rendering: each in its own, both in the plain one, the base also without any."""
    chat: list[Key] = [("POST", "chat")] if post.has_chat_template else []
    return [("BASE", "plain"), *chat, ("POST", "plain"), ("BASE", "raw")]


def _token_ids(model: LanguageModel, texts: Sequence[str], rendering: Rendering) -> list[list[int]]:
    prompts = [model.instruction_prompt(text, template=_TEMPLATES[rendering]) for text in texts]
    tokens = model.tokenize(prompts, padding_side="right")
    return [row[:length].tolist() for row, length in zip(tokens.input_ids, tokens.lengths, strict=True)]


def _steps(budget: Budget, prompts: Sequence[tuple[LanguageModel, list[list[int]]]]) -> int:
    """Steps that fit into every model's context after its longest prompt, at most the budget's."""
    steps = budget.steps
    for model, ids in prompts:
        context = context_length(model.model)
        if context is not None:
            steps = min(steps, context - max(map(len, ids)))
    if steps < 1:
        raise PromptError(
            "A prompt fills the whole context of a model and leaves no room for an output; shorten it."
        )
    return steps


def _contrasts(records: dict[Key, Sampled], seed: int) -> list[Contrast]:
    """Paired ratios: each in its own format, in the same one (which must bear it out), base over itself, the rest."""
    template_is_plain = ("POST", "plain") not in records
    if template_is_plain:
        records = {**records, ("POST", "plain"): records["POST", "chat"]}
    logs = {cell: record.by_prompt(record.trajectories.entropy) for cell, record in records.items()}
    own = _own(records)
    base, firsts = records["BASE", "plain"], {}
    for cell in (("BASE", "plain"), own):
        firsts[cell] = records[cell].by_prompt(records[cell].first_answers.entropy)

    def contrast(name: str, kind: Literal["effect", "control", "other"], first: Key, second: Key) -> Contrast:
        return Contrast(name=name, kind=kind, ratio=ratio(logs[first], logs[second], seed=seed))

    found = [
        contrast("BASE plain over POST in its own format", "effect", ("BASE", "plain"), own),
        contrast("BASE over POST, both plain", "effect", ("BASE", "plain"), ("POST", "plain")),
        Contrast(name="BASE over itself (halves of its samples)", kind="control", ratio=halves(base)),
    ]
    if own == ("POST", "chat") and not template_is_plain:
        found.append(contrast("format alone: POST plain over POST chat", "control", ("POST", "plain"), own))
    found.append(
        contrast("format alone: BASE raw over BASE plain", "control", ("BASE", "raw"), ("BASE", "plain"))
    )
    first_answers = ratio(firsts["BASE", "plain"], firsts[own], seed=seed)
    found.append(Contrast(name="BASE over POST, first answer only", kind="other", ratio=first_answers))
    per_byte = per_byte_ratio(base, records[own])
    return [*found, Contrast(name="BASE over POST, entropy per byte", kind="other", ratio=per_byte)]
