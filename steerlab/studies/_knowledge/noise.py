"""Where does a fact come back when its subject was drowned in noise? Causal tracing, means over facts.

See `noise_effects` for what is measured. Averages run over the facts that the model knows, by the token's role.
Source: Meng et al. (2022), "Locating and editing factual associations in GPT", section 2 and appendix B.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from steerlab.models import LanguageModel
from steerlab.record import Record
from steerlab.statistics import Estimate, bootstrap_curve, bootstrap_mean
from steerlab.studies._knowledge.noise_effects import (
    KINDS,
    LEVEL,
    Fact,
    Measured,
    NoiseEffects,
    noise_effects,
)


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
        return {part.kind: part for part in self.restored}[kind]


def noise_trace(
    model: LanguageModel,
    facts: Sequence[Fact],
    *,
    name: str = "",
    limit: int | None = None,
    copies: int = 10,
    kinds: Sequence[str] = KINDS,
    span: int | None = None,
    level: float = LEVEL,
    measure: Measured = "probability",
    severed: bool = True,
    seed: int = 0,
    kept_in: Path | None = None,
) -> NoiseTrace:
    """Trace the facts that the model knows; means over facts.

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
    found = noise_effects(
        model, facts, limit=limit, copies=copies, kinds=kinds, span=span, level=level, measure=measure,
        severed=severed, seed=seed, kept_in=kept_in, progress=f"tracing noise in {name or model.name}",
    )  # fmt: skip
    return NoiseTrace(
        model=name or model.name,
        facts=len(found.clean),
        unknown=found.unknown,
        copies=copies,
        noise=found.noise,
        measure=measure,
        clean=bootstrap_mean(found.clean, seed=seed),
        corrupted=bootstrap_mean(found.corrupted, seed=seed),
        total=bootstrap_mean(found.clean - found.corrupted, seed=seed),
        roles=found.roles,
        restored=tuple(_restored(found, kind, seed) for kind in kinds),
        severed={path: tuple(bootstrap_curve(rows, seed=seed)) for path, rows in found.severed.items()},
    )


def _restored(found: NoiseEffects, kind: str, seed: int) -> RestoredBy:
    rows = [row for row, window in enumerate(found.rows) if window.kind == kind]
    part = found.by_role[:, rows]
    flat = bootstrap_curve(part.reshape(len(part), -1), seed=seed)
    n = len(found.roles)
    return RestoredBy(
        kind=kind,
        window=found.rows[rows[0]].width,
        layers=tuple(found.rows[row].layer for row in rows),
        effects=tuple(tuple(flat[row * n : (row + 1) * n]) for row in range(len(rows))),
    )
