"""`audit`: read two sets of weights side by side, once, and say what was done to the second."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from steerlab.auditing._anatomy import fingerprint_of, roles_of, skeleton_of
from steerlab.auditing._measure import Measured, measure
from steerlab.auditing._pairs import Matched, is_named_alike, matched, vocabulary_note
from steerlab.auditing._verdict import Merged, lineage_of, shared, verdict
from steerlab.auditing._weights import FileWeights, ModelWeights, Weights, as_model, opened
from steerlab.auditing.result import AuditResult, MatrixChange
from steerlab.models import LanguageModel
from steerlab.progress import track


def audit(base: Any, candidate: Any, *, other: Any = None) -> AuditResult:
    """What was done to a set of weights: nothing, a cast, an ablation, an addition, an adapter, a merge, a fine-tune.

    Nothing is run, and files are read in blocks of rows, so a pair of any size is audited in little memory. The method,
    its nulls and its sources are in docs/methods/audit.md.

    Args:
        base: what the candidate is held against: a folder, a hub name, `zoo:NAME`, a GGUF file, or a loaded model.
        candidate: the same, or an adapter on the base.
        other: a second model that the candidate may be merged with.

    Raises:
        ModelError: one of them has no readable weights, or the two are of different families or shapes.

    Example:
        >>> found = audit("owner/model", "somebody/model-uncensored")  # doctest: +SKIP
        >>> found.kind, found.direction  # doctest: +SKIP
    """
    before = opened(base)
    after = opened(candidate, base if isinstance(base, LanguageModel | str | Path) else None)
    if not is_named_alike(before, after):
        before, after = _under_one_naming(before, after)
    pairs = matched(before, after)
    measured = [measure(pair) for pair in track(pairs, "auditing", len(pairs))]
    skeleton = skeleton_of(before.config)
    roles = roles_of(skeleton)
    merged = (
        None if other is None else _merged(before, after, opened(other), sum(each.floor for each in measured))
    )
    lineage = lineage_of(measured)
    said = verdict(measured, roles, lineage, merged)
    return AuditResult(
        base=before.name,
        candidate=after.name,
        kind=said.kind,
        sentence=said.sentence,
        details=[*said.details, *_notes(before, after, pairs)],
        lineage=lineage,
        matrices=_changes(measured, roles),
        rank=said.rank,
        share=said.share,
        agreement=said.agreement,
        vectors={site: rows.tolist() for site, rows in said.vectors.items()},
        fingerprint=_fingerprint(base, before, skeleton) if said.vectors else "",
    )


# -- private --


def _under_one_naming(one: Weights, other: Weights) -> tuple[Weights, Weights]:
    """A file beside a model in memory becomes one, too; two files, or two models, stay what they are."""
    if isinstance(one, FileWeights) and isinstance(other, ModelWeights):
        return as_model(one), other
    if isinstance(one, ModelWeights) and isinstance(other, FileWeights):
        return one, as_model(other)
    return one, other


def _fingerprint(base: Any, weights: Weights, skeleton: nn.Module | None) -> str:
    if isinstance(base, LanguageModel):
        return base.fingerprint
    return fingerprint_of(weights, skeleton) if isinstance(weights, FileWeights) else ""


def _merged(base: Weights, candidate: Weights, other: Weights, floor: float) -> Merged | None:
    """How the candidate's change lies along the other's; None where nothing changed.

    The rounding of the candidate's type, of the energy `floor`, need not be explained, up to half of the change.
    """
    beside = {pair.label: pair for pair in matched(base, other)}
    sums, shares = [0.0, 0.0, 0.0], []
    for pair in matched(base, candidate):
        twin = beside.get(pair.label)
        if twin is None or twin.shape != pair.shape:
            continue
        own = _products(pair, twin)
        sums = [total + more for total, more in zip(sums, own, strict=True)]
        if own[2] > 0:
            shares.append(own[0] / own[2])
    product, change, way = sums
    if not change or not way:
        return None
    meant = max(change - floor, change / 2)
    return Merged(product / way, min(product**2 / (meant * way), 1.0), min(shares), max(shares))


def _products(pair: Matched, twin: Matched) -> tuple[float, float, float]:
    """⟨D, E⟩, ‖D‖² and ‖E‖² of one matrix."""
    product = change = way = 0.0
    for (_, before, after), (_, _, there) in zip(pair.blocks(), twin.blocks(), strict=True):
        moved, aside = after - before, there - before
        product += float((moved * aside).sum(1).double().sum())
        change += float((moved * moved).sum(1).double().sum())
        way += float((aside * aside).sum(1).double().sum())
    return product, change, way


def _notes(base: Weights, candidate: Weights, pairs: Sequence[Matched]) -> list[str]:
    """Types that differ, rows that only one side has, and tokenizers that differ."""
    types = [Counter(side.dtypes.values()).most_common(1)[0][0] for side in (base, candidate)]
    notes = (
        [f"The base is stored in {types[0]} and the candidate in {types[1]}.".replace("torch.", "")]
        if types[0] != types[1]
        else []
    )
    notes += [
        f"{pair.name} has {abs(pair.added)} rows {'more' if pair.added > 0 else 'less'} than the base's; they are not "
        "compared."
        for pair in pairs
        if pair.added
    ]
    return [*notes, *filter(None, [vocabulary_note(base, candidate)])]


def _changes(measured: Sequence[Measured], roles: dict[str, str]) -> list[MatrixChange]:
    ablated = [each for each in measured if each.label == "ablated" and each.removed is not None]
    widths = {each.removed.basis.shape[0] for each in ablated if each.removed}
    agreements: dict[str, float] = {}
    for width in widths:
        same = [each for each in ablated if each.removed and each.removed.basis.shape[0] == width]
        _, cosines = shared([each.removed.basis for each in same if each.removed])
        agreements |= {each.pair.label: cosine for each, cosine in zip(same, cosines, strict=True)}
    return [_change(each, roles, agreements.get(each.pair.label)) for each in measured]


def _change(each: Measured, roles: dict[str, str], agreement: float | None) -> MatrixChange:
    sums, pair = each.sums, each.pair
    role = roles.get(pair.name.rpartition(".")[0], "").partition(".")[0]
    common = {"name": pair.label, "role": role, "rows": pair.shape[0], "columns": pair.shape[1]}
    if not each.changed:
        return MatrixChange(**common, label="same", change=0.0)
    top = None if each.spectrum is None else float(each.spectrum.values[0])
    return MatrixChange(
        **common,
        label=each.label,
        change=(sums.energy / sums.before) ** 0.5 if sums.before else None,
        over_rounding=(sums.energy / each.floor) ** 0.5 if each.floor else None,
        stable_rank=None if top is None else sums.energy / top**2,
        top_share=None if top is None else top**2 / sums.energy,
        over_null=None if top is None else top / each.edge,
        rank=each.rank,
        alignment=None if each.removed is None else each.removed.alignment,
        strength=None if each.removed is None else each.removed.strength,
        agreement=agreement,
        rows_touched=int((sums.rows > 0).sum()),
        columns_touched=int(sums.touched.sum()),
        trace=each.grid,
    )
