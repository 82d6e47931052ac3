"""Where is it stored whether a statement is true, and does post-training move it?

Pairs of a true and a false statement that differ in the subject alone are asked about; each state of the true prompt's
run is put into the false one's, layer by layer and token by token (`maps`). Base and post are mapped on the
same pairs, which both answer right, and compared (`statistics`); then each one's states are put into the
other's runs (`recovery`); and facts are traced through noise (`noise`). Sources: Du et al. (2025),
"How post-training reshapes LLMs", sections 3.1 to 3.3; Meng et al. (2022), "Locating and editing factual associations
in GPT".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor

from steerlab.activations import capture
from steerlab.datasets import Differ, StatementPair, StatementSet, StudyData
from steerlab.errors import SteerlabError
from steerlab.models import All, LanguageModel, Site
from steerlab.readouts.questions import answer_words
from steerlab.registry import Preset, Size, check_options
from steerlab.statistics import Estimate, bootstrap_curve
from steerlab.studies._knowledge.gates import answered_pairs, at_chance, gate
from steerlab.studies._knowledge.maps import Traced, of_one_layout, trace
from steerlab.studies._knowledge.noise import NoiseTrace, noise_trace
from steerlab.studies._knowledge.noise_effects import facts_of
from steerlab.studies._knowledge.pairs import Columns, TracingPairs
from steerlab.studies._knowledge.recovery import Maps, Recovery, recover
from steerlab.studies._knowledge.result import (
    EffectMap,
    KnowledgeResult,
    Setting,
    Spent,
    TopicPeak,
)
from steerlab.studies._knowledge.sentences import headline, sentences
from steerlab.studies._knowledge.statistics import Comparison, compare_maps, mean_map
from steerlab.studies._pair import LARGE, Models, Pair, amounts_note, amounts_of

if TYPE_CHECKING:
    from steerlab.alignment import Aligner

__all__ = ["KnowledgeResult", "knowledge"]

_ALIGNED_ON = 200  # statements


@dataclass(frozen=True)
class _Amount:
    """Pairs mapped, facts traced and copies of each, and pairs that are asked about (None: all)."""

    pairs: int
    facts: int
    copies: int
    asked: int | None = None


AMOUNTS: dict[str, _Amount] = {
    "quick": _Amount(64, 24, 4),
    LARGE: _Amount(24, 8, 3, asked=120),
    "full": _Amount(400, 200, 10),
}


# Long: a third or more of it documents its options.
def knowledge(
    pair: Pair | Models,
    data: StudyData | StatementSet | Sequence[StatementPair] | None = None,
    *,
    size: Size = "quick",
    preset: Preset = "corrected",
    seed: int = 0,
    answers: tuple[str, str] | None = None,
    differ: Differ = "subject",
    shots: int | None = None,
    columns: Columns | None = None,
    sites: Sequence[str] = ("resid_post",),
    aligner: Aligner | None = None,
    noise: bool = True,
    kept_in: Path | None = None,
) -> KnowledgeResult:
    """Map and compare where a pair of models holds what it knows of statements.

    Args:
        pair: base and post, loaded.
        data: labelled statements with the spans "subject" and "object", or pairs of them (`datasets.read_pairs`), or
            everything that studies read; None takes the packaged sets.
        size: "quick" maps up to 64 pairs, "full" up to 400.
        answers: the words for true and false that are asked for, each one token in both models (with their space); by
            default the first of `readouts.questions.ANSWERS` that are.
        preset: "published" pairs statements again and again, keeps pairs that are answered wrong, shows four labelled
            lines and takes every token for itself, as Du et al. (2025).
        differ: "subject" pairs statements on one object, "object" on one subject.
        shots: labelled lines before a statement; by default none or four, whichever the weaker model answers
            better with.
        columns: "roles" averages tokens of one role, "tokens" takes the commonest layout token by token.
        sites: mapped besides the residual stream ("attn_out", "mlp_out", "heads", ...).
        aligner: carries states between the models before they are put in; needed where their widths differ.
        noise: trace facts through noise as well.
        kept_in: a folder in which an interrupted run goes on.

    Returns:
        The result; "not identified" where a model answers at chance, which it says.

    Raises:
        DatasetError: statements that cannot be paired; PromptError: answers that are not two single tokens, or
            models that cut the prompts into other tokens; SteerlabError: an unknown size or preset.
    """
    check_options("The knowledge study", size=size, preset=preset, presets=get_args(Preset))
    pair = Pair.of(pair)
    answers = answer_words(pair, answers)
    models, statements = pair.by_name, StudyData.of(data, "statements", pair.topics).statements
    published = preset == "published"
    columns = columns or ("tokens" if published else "roles")
    shots = 4 if published and shots is None else shots
    amounts = amounts_of(size, pair)
    asked = AMOUNTS[amounts].asked
    pairs, own = answered_pairs(models, statements, answers, differ, shots, published, seed, asked)
    gates = tuple(gate(name, given, pairs) for name, given in own.items())
    result = KnowledgeResult(
        summary=[],
        setting=_setting(models, pairs, size, seed, preset, answers, differ, columns),
        gates=gates,
    )
    right = np.logical_and.reduce([given.right for given in own.values()])
    if stopped := at_chance(gates, int(right.sum()), published):
        return result.model_copy(update={"status": "not identified", "summary": [stopped]})
    kept = pairs if published else pairs.only(np.flatnonzero(right).tolist())
    kept = of_one_layout(kept) if columns == "tokens" else kept
    chosen = kept.only(range(min(len(kept), AMOUNTS[amounts].pairs)))
    work = _Work(models, chosen, columns, kept_in, seed, {})
    result = _mapped(result, work, sites, aligner, statements)
    noises = _noise(work, statements, AMOUNTS[amounts]) if noise else ()
    result = result.model_copy(update={"noise": noises, "missing": work.missing})
    summary = [*sentences(result), *amounts_note(amounts)]
    return result.model_copy(update={"summary": summary, "headline": headline(result)})


# -- private, in the order they are called --


@dataclass(frozen=True)
class _Work:
    """What every part of the study works on. missing: what could not be run, and why, filled as parts are run."""

    models: Mapping[str, LanguageModel]
    pairs: TracingPairs
    columns: Columns
    kept_in: Path | None
    seed: int
    missing: dict[str, str]


def _setting(
    models: Mapping[str, LanguageModel],
    pairs: TracingPairs,
    size: Size,
    seed: int,
    preset: Preset,
    answers: tuple[str, str],
    differ: Differ,
    columns: Columns,
) -> Setting:
    return Setting(
        size=size,
        seed=seed,
        preset=preset,
        models={name: model.name for name, model in models.items()},
        answers=answers,
        differ=differ,
        shots=pairs.shots,
        columns=columns,
        made=len(pairs),
        reused=pairs.reused,
        left_out=dict(pairs.left_out),
        topics=tuple(dict.fromkeys(pair.topic for pair in pairs.pairs)),
    )


def _mapped(
    result: KnowledgeResult,
    work: _Work,
    sites: Sequence[str],
    aligner: Aligner | None,
    statements: StatementSet | Sequence[StatementPair],
) -> KnowledgeResult:
    """The result with maps, their comparison and each model's states in the other."""
    traced, maps = _maps(work, sites)
    comparison = _comparison(work, traced)
    recovery, crossed = _recovery(work, traced, aligner, statements)
    peaks = [peak for name, own in traced.items() for peak in _topic_peaks(work, name, own)]
    update = {
        "setting": result.setting.model_copy(update={"traced": len(work.pairs)}),
        "maps": (*maps, *crossed),
        "topics": tuple(peaks),
        "comparison": comparison,
        "recovery": recovery,
        "spent": {name: _spent(own) for name, own in traced.items()},
    }
    return result.model_copy(update=update)


def _maps(work: _Work, sites: Sequence[str]) -> tuple[dict[str, Traced], list[EffectMap]]:
    """Each model's own map of the residual stream, and the maps of every kind asked for.

    A kind that a model cannot be mapped at is missing from the result; without the residual stream there is none.
    """
    traced: dict[str, Traced] = {}
    maps = []
    for kind in dict.fromkeys(["resid_post", *sites]):
        for name, model in work.models.items():
            try:
                own = trace(
                    model,
                    work.pairs,
                    kind=kind,
                    columns=work.columns,
                    kept_in=work.kept_in,
                    progress=f"mapping {kind} in {name}",
                )
            except SteerlabError as error:
                if kind == "resid_post":
                    raise
                work.missing[f"{kind} {name}"] = f"{kind} of the {name} model was not mapped: {error}"
                continue
            maps.append(_effect_map(own, name, name, kind, work.pairs, work.seed))
            if kind == "resid_post":
                traced[name] = own
    return traced, maps


def _effect_map(
    traced: Traced, source: str, target: str, kind: str, pairs: TracingPairs, seed: int
) -> EffectMap:
    n = len(traced.columns)
    flat = bootstrap_curve(traced.nie.reshape(len(pairs), -1), pairs.clusters, seed=seed)
    return EffectMap(
        source=source,
        target=target,
        kind=kind,
        rows=tuple(
            "embedding" if site.layer is None else f"{site.layer}.{heads[0]}" if heads else str(site.layer)
            for site, heads in traced.rows
        ),
        columns=traced.columns,
        knowledge=traced.knowledge,
        layers=traced.layers,
        raw=tuple(tuple(row) for row in mean_map(traced.raw).tolist()),
        effects=tuple(tuple(flat[row * n : (row + 1) * n]) for row in range(len(traced.rows))),
    )


def _topic_peaks(work: _Work, name: str, traced: Traced) -> list[TopicPeak]:
    topics = [pair.topic for pair in work.pairs.pairs]
    peaks = []
    for topic in dict.fromkeys(topics):
        rows = [row for row, other in enumerate(topics) if other == topic]
        topic_map = _effect_map(traced.only(rows), name, name, "resid_post", work.pairs.only(rows), work.seed)
        others = tuple(
            column
            for column, role in enumerate(topic_map.columns)
            if column not in topic_map.knowledge and role != "last token"
        )
        peaks.append(
            TopicPeak(
                model=name,
                topic=topic,
                pairs=len(rows),
                knowledge=_peak(topic_map, topic_map.knowledge),
                other=_peak(topic_map, others),
            )
        )
    return peaks


def _peak(effects: EffectMap, columns: tuple[int, ...]) -> tuple[str, str, Estimate] | None:
    """Layer, token and effect of the largest cell of some columns."""
    for row, column in effects.peaks(1, columns):
        return effects.rows[row], effects.columns[column], effects.effects[row][column]
    return None


def _comparison(work: _Work, traced: Mapping[str, Traced]) -> Comparison | None:
    base, post = traced["base"], traced["post"]
    if len(base.rows) != len(post.rows):
        work.missing["comparison"] = (
            f"The models have {len(base.layers)} and {len(post.layers)} layers, so their maps have no common rows and "
            "were not compared."
        )
        return None
    return compare_maps(base, post, work.pairs.clusters, seed=work.seed)


def _recovery(
    work: _Work,
    traced: Mapping[str, Traced],
    aligner: Aligner | None,
    statements: StatementSet | Sequence[StatementPair],
) -> tuple[tuple[Recovery, ...], list[EffectMap]]:
    """What each model's states recover in the other, and the maps of that."""
    base, post = work.models["base"], work.models["post"]
    if base.n_layers != post.n_layers or (base.d_model != post.d_model and aligner is None):
        work.missing["recovery"] = (
            f"States were not put across: the models have {base.n_layers} and {post.n_layers} layers of width "
            f"{base.d_model} and {post.d_model}" + ("." if aligner else "; give an aligner for other widths.")
        )
        return (), []
    recovered: list[Recovery] = []
    maps = []
    for source, target in (("base", "post"), ("post", "base")):
        models = work.models[source], work.models[target]
        rows, crossed = recover(
            *models,
            work.pairs,
            traced[target],
            names=(source, target),
            maps=None if aligner is None else _fitted(*models, aligner, work.pairs, statements),
            columns=work.columns,
            seed=work.seed,
            kept_in=work.kept_in,
        )
        recovered += rows
        maps.append(_effect_map(crossed, source, target, "resid_post", work.pairs, work.seed))
        if not any(row.place == "subject and object" for row in rows):
            work.missing[f"peaks {target}"] = (
                f"No subject or object token of the {target} model carries a tenth of the effect behind any block, so "
                "recovery is read at the last token only."
            )
    return tuple(recovered), maps


def _fitted(
    source: LanguageModel,
    target: LanguageModel,
    aligner: Aligner,
    pairs: TracingPairs,
    statements: StatementSet | Sequence[StatementPair],
) -> Maps:
    """One map a site, fitted on every token of statements that are not traced."""
    traced = {item.text for pair in pairs.pairs for item in (pair.statements.true, pair.statements.false)}
    every = (
        statements.texts
        if isinstance(statements, StatementSet)
        else [text for pair in statements for text in (pair.true.text, pair.false.text)]
    )
    texts = [text for text in dict.fromkeys(every) if text not in traced][:_ALIGNED_ON]
    sites = [Site("embed"), *target.sites("resid_post")]
    if len(texts) < 20:
        raise SteerlabError(
            f"Only {len(texts)} statements are left to fit the aligner on beside the traced ones; give more statements."
        )
    there, here = (capture(model, texts, sites, positions=All()) for model in (source, target))

    def carry(site: Site) -> Callable[[Tensor], Tensor]:
        fitted = clone(aligner).fit(there[site], here[site])
        return lambda rows: torch.from_numpy(np.asarray(fitted.transform_point(rows.cpu()))).float()

    return {site: carry(site) for site in sites}


def _noise(
    work: _Work, statements: StatementSet | Sequence[StatementPair], amount: _Amount
) -> tuple[NoiseTrace, ...]:
    given = statements
    true = given if isinstance(given, StatementSet) else StatementSet(pair.true for pair in given)
    traces = []
    for name, model in work.models.items():
        try:
            traces.append(
                noise_trace(
                    model,
                    facts_of(model, true),
                    name=name,
                    limit=amount.facts,
                    copies=amount.copies,
                    seed=work.seed,
                    kept_in=work.kept_in,
                )
            )
        except SteerlabError as error:
            work.missing[f"noise {name}"] = (
                f"Facts were not traced through noise in the {name} model: {error}"
            )
    return tuple(traces)


def _spent(traced: Traced) -> Spent:
    return Spent(
        token_layers=traced.cost.patched + traced.cost.kept,
        naive=traced.cost.naive,
        saving=traced.cost.saving,
        mode=traced.mode,
    )
