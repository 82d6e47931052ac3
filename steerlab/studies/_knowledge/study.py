"""Where is it stored whether a statement is true, and does post-training move it?

Pairs of a true and a false statement that differ in the subject alone are asked about; each state of the true prompt's
run is put into the false one's, layer by layer and token by token (`knowledge_maps`). Base and post are mapped on the
same pairs, which both answer right, and compared (`knowledge_statistics`); then each one's states are put into the
other's runs (`knowledge_recovery`); and facts are traced through noise (`noise_tracing`). Sources: Du et al. (2025),
"How post-training reshapes LLMs", sections 3.1 to 3.3; Meng et al. (2022), "Locating and editing factual associations
in GPT".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor

from steerlab.activations import capture
from steerlab.alignment import Aligner
from steerlab.datasets import Differ, StatementPair, StatementSet, StudyData
from steerlab.errors import PromptError, SteerlabError
from steerlab.models import All, LanguageModel, Site
from steerlab.statistics import Estimate, bootstrap_curve
from steerlab.studies._knowledge.maps import Answers, Traced, answer, of_one_layout, trace
from steerlab.studies._knowledge.noise import NoiseTrace, facts_of, noise_trace
from steerlab.studies._knowledge.pairs import Columns, TracingPairs, tracing_pairs
from steerlab.studies._knowledge.recovery import Maps, Recovery, recover
from steerlab.studies._knowledge.result import (
    EffectMap,
    Gate,
    KnowledgeResult,
    Setting,
    Spent,
    TopicPeak,
)
from steerlab.studies._knowledge.sentences import headline, sentences
from steerlab.studies._knowledge.statistics import Comparison, compare_maps, mean_map
from steerlab.studies._pair import Models, Pair, Preset, Size, require_known

__all__ = ["KnowledgeResult", "knowledge"]

FEWEST = 8  # pairs that both models answer right
_CHANCE = 0.25  # both sides right by coin
_ALIGNED_ON = 200  # statements


@dataclass(frozen=True)
class _Amount:
    pairs: int
    facts: int
    copies: int


_AMOUNTS: dict[Size, _Amount] = {"quick": _Amount(64, 24, 4), "full": _Amount(400, 200, 10)}


def knowledge(
    pair: Pair | Models,
    data: StudyData | StatementSet | Sequence[StatementPair] | None = None,
    *,
    size: Size = "quick",
    preset: Preset = "corrected",
    seed: int = 0,
    answers: tuple[str, str] = (" TRUE", " FALSE"),
    differ: Differ = "subject",
    shots: int | None = None,
    columns: Columns | None = None,
    kinds: Sequence[str] = ("resid_post",),
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
        answers: the words asked for, each one token.
        preset: "published" pairs statements again and again, keeps pairs that are answered wrong, shows four labelled
            lines and takes every token for itself, as Du et al. (2025).
        differ: "subject" pairs statements on one object, "object" on one subject.
        shots: labelled lines before a statement; by default none or four, whichever the weaker model answers
            better with.
        columns: "roles" averages tokens of one role, "tokens" takes the commonest layout token by token.
        kinds: sites mapped besides the residual stream ("attn_out", "mlp_out", "heads", ...).
        aligner: carries states between the models before they are put in; needed where their widths differ.
        noise: trace facts through noise as well.
        kept_in: a folder in which an interrupted run goes on.

    Returns:
        The result; "not identified" where a model answers at chance, which it says.

    Raises:
        DatasetError: statements that cannot be paired; PromptError: answers that are not two single tokens, or
            models that cut the prompts into other tokens; SteerlabError: an unknown size or preset.
    """
    require_known("knowledge", "size", size, _AMOUNTS)
    require_known("knowledge", "preset", preset, get_args(Preset))
    models, statements = Pair.of(pair).by_name, StudyData.of(data, "statements").statements
    amount, asked = _AMOUNTS[size], preset == "published"
    columns = columns or ("tokens" if asked else "roles")
    pairs, own = _pairs(
        models, statements, answers, differ, 4 if asked and shots is None else shots, asked, seed
    )
    gates = tuple(_gate(name, one, pairs) for name, one in own.items())
    setting = Setting(
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
    result = KnowledgeResult(summary=[], setting=setting, gates=gates)
    right = np.logical_and.reduce([one.right for one in own.values()])
    stopped = _at_chance(gates, int(right.sum()), asked)
    if stopped:
        return result.model_copy(update={"status": "not identified", "summary": [stopped]})
    kept = pairs if asked else pairs.only(np.flatnonzero(right).tolist())
    kept = of_one_layout(kept) if columns == "tokens" else kept
    chosen = kept.only(range(min(len(kept), amount.pairs)))
    missing: dict[str, str] = {}
    traced, maps = _maps(models, chosen, columns, kinds, kept_in, seed, missing)
    comparison = _comparison(traced, chosen, seed, missing)
    recovered = _recovery(models, chosen, traced, columns, aligner, statements, seed, kept_in, missing, maps)
    noises = _noise(models, statements, amount, seed, kept_in, missing) if noise else ()
    result = result.model_copy(
        update={
            "setting": setting.model_copy(update={"traced": len(chosen)}),
            "maps": tuple(maps),
            "topics": tuple(
                peak for name, one in traced.items() for peak in _topic_peaks(name, one, chosen, seed)
            ),
            "comparison": comparison,
            "recovery": recovered,
            "noise": noises,
            "spent": {name: _spent(one) for name, one in traced.items()},
            "missing": missing,
        }
    )
    return result.model_copy(update={"summary": sentences(result), "headline": headline(result)})


# -- private, in the order they are called --


def _pairs(
    models: Mapping[str, LanguageModel],
    statements: StatementSet | Sequence[StatementPair],
    answers: tuple[str, str],
    differ: Differ,
    shots: int | None,
    published: bool,
    seed: int,
) -> tuple[TracingPairs, dict[str, Answers]]:
    """The pairs with the number of labelled lines with which the weaker model answers most of them right."""
    best: tuple[float, TracingPairs, dict[str, Answers]] | None = None
    failed: SteerlabError | None = None
    for n in (0, 4) if shots is None else (shots,):
        try:
            pairs = tracing_pairs(
                list(models.values()),
                statements,
                answers=answers,
                differ=differ,
                shots=n,
                matching="published" if published else "corrected",
                seed=seed,
            )
            own = {name: answer(model, pairs) for name, model in models.items()}
        except PromptError as error:
            # Four lines may be more than the context holds; that the answers are no tokens is so without any.
            failed = error
            continue
        share = min(float(one.right.mean()) for one in own.values())
        if best is None or share > best[0]:
            best = share, pairs, own
    if best is None:
        assert failed is not None
        raise failed
    return best[1], best[2]


def _gate(name: str, own: Answers, pairs: TracingPairs) -> Gate:
    return Gate(
        model=name,
        pairs=len(pairs),
        right=int(own.right.sum()),
        **{f"{side}_side": own.accuracy(side, pairs.clusters) for side in ("true", "false")},
        both=own.accuracy("both", pairs.clusters),
    )


def _at_chance(gates: Sequence[Gate], right: int, published: bool) -> str:
    """Why nothing can be mapped, or nothing."""
    for gate in gates:
        if not gate.both.low > _CHANCE:
            return (
                f"The {gate.model} model answers both statements of a pair right for {gate.both} of pairs, "
                f"which is not "
                f"above chance ({_CHANCE}), so there is no knowledge of them to locate; ask in another way (answers, "
                "shots), or about what it knows."
            )
    if right < FEWEST and not published:
        return (
            f"Both models answer only {right} pairs right on both sides; at least {FEWEST} are needed for a map. Give "
            "more statements."
        )
    return ""


def _maps(
    models: Mapping[str, LanguageModel],
    pairs: TracingPairs,
    columns: Columns,
    kinds: Sequence[str],
    kept_in: Path | None,
    seed: int,
    missing: dict[str, str],
) -> tuple[dict[str, Traced], list[EffectMap]]:
    """Each model's own map of the residual stream, and the maps of every kind asked for."""
    traced: dict[str, Traced] = {}
    maps = []
    for kind in dict.fromkeys(["resid_post", *kinds]):
        for name, model in models.items():
            told = f"mapping {kind} in {name}"
            try:
                one = trace(model, pairs, kind=kind, columns=columns, kept_in=kept_in, progress=told)
            except SteerlabError as error:
                missing[f"{kind} {name}"] = f"{kind} of the {name} model was not mapped: {error}"
                continue
            maps.append(_effect_map(one, name, name, kind, pairs, seed))
            if kind == "resid_post":
                traced[name] = one
    return traced, maps


def _effect_map(
    one: Traced, source: str, target: str, kind: str, pairs: TracingPairs, seed: int
) -> EffectMap:
    n = len(one.columns)
    flat = bootstrap_curve(one.nie.reshape(len(pairs), -1), pairs.clusters, seed=seed)
    return EffectMap(
        source=source,
        target=target,
        kind=kind,
        rows=tuple(
            "embedding" if site.layer is None else f"{site.layer}.{heads[0]}" if heads else str(site.layer)
            for site, heads in one.rows
        ),
        columns=one.columns,
        knowledge=one.knowledge,
        layers=one.layers,
        raw=tuple(tuple(row) for row in mean_map(one.raw).tolist()),
        effects=tuple(tuple(flat[at * n : (at + 1) * n]) for at in range(len(one.rows))),
    )


def _topic_peaks(name: str, one: Traced, pairs: TracingPairs, seed: int) -> list[TopicPeak]:
    topics = [pair.topic for pair in pairs.pairs]
    found = []
    for topic in dict.fromkeys(topics):
        rows = [row for row, other in enumerate(topics) if other == topic]
        made = _effect_map(one.only(rows), name, name, "resid_post", pairs.only(rows), seed)
        others = [
            at for at, role in enumerate(made.columns) if at not in made.knowledge and role != "last token"
        ]

        def peak(columns: Sequence[int], made: EffectMap = made) -> tuple[str, str, Estimate] | None:
            top = made.peaks(1, tuple(columns))
            return (
                (made.rows[top[0][0]], made.columns[top[0][1]], made.effects[top[0][0]][top[0][1]])
                if top
                else None
            )

        found.append(
            TopicPeak(
                model=name, topic=topic, pairs=len(rows), knowledge=peak(made.knowledge), other=peak(others)
            )
        )
    return found


def _comparison(
    traced: Mapping[str, Traced], pairs: TracingPairs, seed: int, missing: dict[str, str]
) -> Comparison | None:
    base, post = traced["base"], traced["post"]
    if len(base.rows) != len(post.rows):
        missing["comparison"] = (
            f"The models have {len(base.layers)} and {len(post.layers)} layers, so their maps have no common rows and "
            "were not compared."
        )
        return None
    return compare_maps(base, post, pairs.clusters, seed=seed)


def _recovery(
    models: Mapping[str, LanguageModel],
    pairs: TracingPairs,
    traced: Mapping[str, Traced],
    columns: Columns,
    aligner: Aligner | None,
    statements: StatementSet | Sequence[StatementPair],
    seed: int,
    kept_in: Path | None,
    missing: dict[str, str],
    maps: list[EffectMap],
) -> tuple[Recovery, ...]:
    base, post = models["base"], models["post"]
    if base.n_layers != post.n_layers or (base.d_model != post.d_model and aligner is None):
        missing["recovery"] = (
            f"States were not put across: the models have {base.n_layers} and {post.n_layers} layers of width "
            f"{base.d_model} and {post.d_model}" + ("." if aligner else "; give an aligner for other widths.")
        )
        return ()
    found: list[Recovery] = []
    for source, target in (("base", "post"), ("post", "base")):
        carried = (
            None if aligner is None else _fitted(models[source], models[target], aligner, pairs, statements)
        )
        some, crossed = recover(
            models[source],
            models[target],
            pairs,
            traced[target],
            names=(source, target),
            maps=carried,
            columns=columns,
            seed=seed,
            kept_in=kept_in,
        )
        found += some
        maps.append(_effect_map(crossed, source, target, "resid_post", pairs, seed))
        if not any(one.place == "subject and object" for one in some):
            missing[f"peaks {target}"] = (
                f"No subject or object token of the {target} model carries a tenth of the effect behind any block, so "
                "recovery is read at the last token only."
            )
    return tuple(found)


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
    models: Mapping[str, LanguageModel],
    statements: StatementSet | Sequence[StatementPair],
    amount: _Amount,
    seed: int,
    kept_in: Path | None,
    missing: dict[str, str],
) -> tuple[NoiseTrace, ...]:
    true = (
        statements if isinstance(statements, StatementSet) else StatementSet(pair.true for pair in statements)
    )
    found = []
    for name, model in models.items():
        try:
            facts = facts_of(model, true)
            found.append(
                noise_trace(
                    model,
                    facts,
                    name=name,
                    limit=amount.facts,
                    copies=amount.copies,
                    seed=seed,
                    kept_in=kept_in,
                )
            )
        except SteerlabError as error:
            missing[f"noise {name}"] = f"Facts were not traced through noise in the {name} model: {error}"
    return tuple(found)


def _spent(one: Traced) -> Spent:
    return Spent(
        token_layers=one.cost.patched + one.cost.kept,
        naive=one.cost.naive,
        saving=one.cost.saving,
        mode=one.mode,
    )
