"""How many ways on does a model see, before and after post-training?

Branching factor: BF(x) = exp(mean over samples of (1/N) sum_t h_t), h_t the entropy of exactly the law that token t was
drawn from (temperature, truncation, renormalised; nats). Printed over prompts as exp(mean log BF); the base model
writes after a plain rendering, the post-trained one in its chat format, and so does a base that has the same one.
Beside it: both in one format, the base against itself, first answers only, entropy per byte, and the martingale check
of the record. "Not identified" when the narrowing does not outlast the format control. Source: Yang and Holtzman, arXiv
2506.17871.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from steerlab.datasets import StudyData
from steerlab.errors import PromptError
from steerlab.models import LanguageModel
from steerlab.models.prompts import Template
from steerlab.models.thinking import thinking_before_answers
from steerlab.readouts.confidence import reading_gain, untrained
from steerlab.readouts.laws import SamplingLaw
from steerlab.readouts.samples import rendered, sample, steps_left
from steerlab.record import Role
from steerlab.registry import Preset, Size, check_options
from steerlab.results import Headline
from steerlab.statistics import Estimate
from steerlab.studies._branching.amounts import BUDGETS, Budget
from steerlab.studies._branching.measures import (
    Contrast,
    Measured,
    Sampled,
    halves,
    measure,
    per_byte_ratio,
    ratio,
)
from steerlab.studies._branching.parts import Drawn, parts
from steerlab.studies._branching.parts_result import Parts
from steerlab.studies._branching.result import BranchingResult
from steerlab.studies._branching.sentences import (
    parts_sentences,
    thinking_sentence,
    verdict,
)
from steerlab.studies._pair import Models, Pair, amounts_note, amounts_of

Rendering = Literal["chat", "plain", "raw"]
Key = tuple[Role, Rendering]
_TEMPLATES: dict[Rendering, Template] = {"chat": "chat", "plain": "plain", "raw": "none"}


# Long: a third or more of it documents its options.
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
        size: "full" takes more prompts, more samples of each and longer ones; "quick" takes fewer for models above 20
            million parameters, and the result's summary says so.
        preset: there is only "corrected"; the published aggregations stand beside it in a table.
        law: takes the place of `top_p` and `temperature`.
        with_parts: adds prompt sets and levels, AEP panels, the published aggregations, nudging, resampling and
            majority votes.

    Raises:
        PromptError: no prompt is given, or the models' context leaves no room for an output.
        SteerlabError: an unknown size or preset.
    """
    check_options("The branching study", size=size, preset=preset)
    pair = Pair.of(pair)
    amounts = amounts_of(size, pair)
    budget = BUDGETS[amounts]
    texts = list(dict.fromkeys(StudyData.of(data, "open_prompts").open_prompts))[: budget.prompts]
    if not texts:
        raise PromptError("The branching factor needs at least one prompt; give it some.")
    law = law or SamplingLaw(temperature, "top_p" if top_p < 1 else "none", top_p)
    models: dict[Role, LanguageModel] = {"base": pair.base, "post": pair.post}
    ids, steps = _rendered(models, texts, budget.steps)
    records = _sampled(models, ids, steps, budget, law, seed)
    measured = [measure(role, rendering, record) for (role, rendering), record in records.items()]
    contrasts = _contrasts(records, seed)
    gains = {
        role: reading_gain(model, texts, seed=seed, description=f"reading prompts, {role}")
        for role, model in models.items()
    }
    beside = _parts(models, ids, records, law, amounts, seed) if with_parts and law.temperature > 0 else None
    blind = _blind(models, measured, gains)
    identified, summary = verdict(measured, contrasts, blind, pair.same_tokenizer, steps)
    thinking = thinking_before_answers(pair.post)
    return BranchingResult(
        status="done" if identified else "not identified",
        summary=[
            *summary,
            *amounts_note(amounts, f"{len(texts)} prompts, {budget.samples} samples of each"),
            *thinking_sentence(thinking),
            *(parts_sentences(beside) if beside else []),
        ],
        headline=Headline(
            what="branching factor, base over post",
            value=contrasts[0].ratio,
            control=contrasts[2].ratio,
            control_name=contrasts[2].name,
        ),
        law=str(law),
        amounts=amounts,
        measured=measured,
        contrasts=contrasts,
        gains=gains,
        same_tokenizer=pair.same_tokenizer,
        steps=steps,
        parts=beside,
        thinking=thinking,
    )


# -- private, in the order they are called --


def _rendered(
    models: Mapping[Role, LanguageModel], texts: Sequence[str], wanted: int
) -> tuple[dict[Key, list[list[int]]], int]:
    """Token ids of the prompts for every model in every rendering, and how many new tokens all leave room for."""
    ids = {
        (role, rendering): rendered(models[role], texts, _TEMPLATES[rendering])
        for role, rendering in _cells(models)
    }
    steps = min(steps_left(models[role], prompt_ids, wanted) for (role, _), prompt_ids in ids.items())
    for role in models:
        if ids.get((role, "chat")) == ids[role, "plain"]:
            del ids[role, "plain"]  # this template writes the plain form: one run serves both
    return ids, steps


def _sampled(
    models: Mapping[Role, LanguageModel],
    ids: Mapping[Key, list[list[int]]],
    steps: int,
    budget: Budget,
    law: SamplingLaw,
    seed: int,
) -> dict[Key, Sampled]:
    """Samples of every model in every rendering."""
    records: dict[Key, Sampled] = {}
    for (role, rendering), prompt_ids in ids.items():
        runs = sample(
            models[role],
            prompt_ids,
            samples=budget.samples,
            max_new_tokens=steps,
            law=law,
            seed=seed,
            rows=budget.rows,
            description=f"branching, {role} {rendering}",
        )
        records[role, rendering] = Sampled(models[role].tokenizer, runs, seed)
    return records


def _parts(
    models: Mapping[Role, LanguageModel],
    ids: Mapping[Key, list[list[int]]],
    records: dict[Key, Sampled],
    law: SamplingLaw,
    amounts: str,
    seed: int,
) -> Parts:
    """What stands beside the factor, each model in its own rendering."""
    own: dict[Role, Key] = {role: _own(role, records) for role in models}
    return parts(
        models,
        {role: Drawn(ids[cell], records[cell].trajectories) for role, cell in own.items()},
        law=law,
        amounts=amounts,
        seed=seed,
        templates={role: _TEMPLATES[cell[1]] for role, cell in own.items()},
    )


def _blind(
    models: Mapping[Role, LanguageModel], measured: Sequence[Measured], gains: Mapping[Role, Estimate]
) -> list[Role]:
    """The models whose law is that of an untrained one."""
    first = {row.model: row for row in reversed(measured)}  # the first rendering of each model
    return [
        role
        for role, model in models.items()
        if untrained(gains[role], first[role].untruncated.value, model.vocab_size)
    ]


def _own(role: Role, records: Mapping[Key, Sampled]) -> Key:
    """A model in its own format."""
    return (role, "chat" if (role, "chat") in records else "plain")


def _cells(models: Mapping[Role, LanguageModel]) -> list[Key]:
    """Which model is run in which rendering: each in its own, both in the plain one, the base also without any."""
    base, post = models["base"], models["post"]
    chat: list[Key] = [("post", "chat")] if post.has_chat_template else []
    if chat and _chat_template(base) == _chat_template(post):
        return [("base", "chat"), *chat, ("post", "plain"), ("base", "plain"), ("base", "raw")]
    return [("base", "plain"), *chat, ("post", "plain"), ("base", "raw")]


def _chat_template(model: LanguageModel) -> Any:
    """The chat template as the tokenizer carries it."""
    return getattr(model.tokenizer, "chat_template", None)


def _contrasts(records: dict[Key, Sampled], seed: int) -> list[Contrast]:
    """Paired ratios: each in its own format, in the same one (which must bear it out), base over itself, the rest."""
    own: dict[Role, Key] = {role: _own(role, records) for role in ("base", "post")}
    alike = [role for role, cell in own.items() if (role, "plain") not in records]
    records = {**{(role, "plain"): records[own[role]] for role in alike}, **records}
    logs = {cell: record.by_prompt(record.trajectories.entropy) for cell, record in records.items()}

    def contrast(name: str, kind: Literal["effect", "control", "other"], first: Key, second: Key) -> Contrast:
        return Contrast(name=name, kind=kind, ratio=ratio(logs[first], logs[second], seed=seed))

    sides = "base plain over post" if own["base"][1] == "plain" else "base over post, each"
    contrasts = [
        contrast(f"{sides} in its own format", "effect", own["base"], own["post"]),
        contrast("base over post, both plain", "effect", ("base", "plain"), ("post", "plain")),
        Contrast(
            name="base over itself (halves of its samples)",
            kind="control",
            ratio=halves(records[own["base"]]),
        ),
    ]
    for role in ("post", "base"):
        if own[role][1] == "chat" and role not in alike:
            name = f"format alone: {role} plain over {role} chat"
            contrasts.append(contrast(name, "control", (role, "plain"), own[role]))
    contrasts.append(
        contrast("format alone: base raw over base plain", "control", ("base", "raw"), ("base", "plain"))
    )
    firsts = [records[cell].by_prompt(records[cell].first_answers.entropy) for cell in own.values()]
    first_answers = ratio(*firsts, seed=seed)
    contrasts.append(Contrast(name="base over post, first answer only", kind="other", ratio=first_answers))
    per_byte = per_byte_ratio(*(records[cell] for cell in own.values()))
    return [*contrasts, Contrast(name="base over post, entropy per byte", kind="other", ratio=per_byte)]
