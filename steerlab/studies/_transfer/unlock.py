"""UNLOCK: what unlocks a capability in one model, carried to another by a linear map between their states.

    result = sl.studies.unlock(source=(small, small), target=large, prompts=(direct, stepwise))
    with large.steering(*result.interventions()):
        large.generate(...)

The source's locked and unlocked states may differ by prompt (the same model twice) or by weights (base and
post-trained, the same prompts). The map is fitted on locked prompts only, so nothing of the target's unlocked
behaviour is used.

Source: *The Master Key Hypothesis* (arXiv 2604.06377). `preset="published"` is its code: truncated-SVD regression,
layers by depth, every layer steered, states of the last layer after the final norm, the mean uncentred, the
component's sign as it comes, the last prompts of the list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from sklearn.base import clone

from steerlab.activations import Activations, capture
from steerlab.alignment import (
    Aligner,
    Alignment,
    AlignmentReport,
    LayerMap,
    PairedActivations,
    Ridge,
    SvdRegression,
    align,
)
from steerlab.alignment.paired import Part, Rule, digest, split
from steerlab.directions import Direction
from steerlab.errors import AlignmentError
from steerlab.models import LanguageModel, Last, Selector, Site
from steerlab.registry import Preset, check_options
from steerlab.steering import Add, Intervention, Rotate
from steerlab.studies._transfer.capability import (
    Aggregator,
    Deltas,
    aggregated,
    capability_direction,
    deltas,
    split_half,
)
from steerlab.studies._transfer.manner import manner_score
from steerlab.studies._transfer.strength import GRID, Chosen, choose_strength
from steerlab.studies._transfer.writing import asked

Steered: TypeAlias = Literal["identified", "all"]
PUBLISHED_STRENGTH = 0.05
_SITE = "resid_post"


@dataclass(frozen=True, eq=False)
class Unlocked:
    """A capability direction in the target, with what is known of it.

    source: the direction in the source. direction: in the target, at the layers that are steered. every: in the
    target at all layers. pairs: the rows that were read. alignment, report: the map and its held-out diagnostics.
    stability: by source site, mean cosine of the directions of two halves of the questions. native: the target's
    own direction, where it can be had. chosen: the strength, how it was chosen, and the curve. preset, aggregator:
    what was asked for.
    """

    source: Direction
    direction: Direction
    every: Direction
    pairs: PairedActivations
    alignment: Alignment
    report: AlignmentReport
    stability: dict[Site, float]
    native: Direction | None
    chosen: Chosen
    preset: Preset
    aggregator: Aggregator

    @property
    def strength(self) -> float:
        """α of the turn."""
        return self.chosen.strength

    @property
    def sentence(self) -> str:
        """Verdict, layers and strength in words."""
        layers = ", ".join(str(site.layer) for site in self.direction.sites)
        return f"{self.report.sentence} Steered at layers {layers} with α = {self.strength:g} ({self.chosen.how})."

    def interventions(
        self,
        strength: float | None = None,
        *,
        positions: Selector = Last(),  # noqa: B008  # frozen
        kind: Literal["rotate", "add"] = "rotate",
    ) -> tuple[Intervention, ...]:
        """What steers the target: a turn of the last prompt token at every kept layer (as published), or an addition of
        as many mean norms of the stream."""
        return turn(
            self.direction, self.strength if strength is None else strength, positions=positions, kind=kind
        )

    def save(self, folder: str | Path) -> list[Path]:
        """Write direction, source direction and alignment into a folder; returns the files."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        files = [place / f"{name}.safetensors" for name in ("direction", "source_direction", "alignment")]
        self.direction.save(files[0])
        self.source.save(files[1])
        self.alignment.save(files[2])
        return files


# Long: a third or more of it documents its options.
def unlock(
    source: tuple[LanguageModel, LanguageModel],
    target: LanguageModel,
    prompts: Sequence[str] | tuple[Sequence[str], Sequence[str]],
    *,
    preset: Preset = "corrected",
    aggregator: Aggregator = "mean",
    aligner: Aligner | None = None,
    layers: LayerMap | None = None,
    target_unlocked: LanguageModel | None = None,
    template: str = "plain",
    rule: Rule = "last_prompt",
    strength: float | None = None,
    steered: Steered = "identified",
    grid: Sequence[float] = GRID,
    score: Callable[[Sequence[Intervention]], tuple[float, float]] | None = None,
    shares: tuple[float, float] = (0.75, 0.25),
    rank: int = 64,
    seed: int = 0,
) -> Unlocked:
    """Find the direction that unlocks the source and carry it to the target.

    Args:
        source: the locked and the unlocked source model; the same model twice where the prompts differ.
        target: the model to be unlocked.
        prompts: questions, where the models differ; else a pair of lists, the locked and the unlocked wording.
        preset: "corrected", or "published" for the paper's code (see above).
        aggregator: "mean" or "pca" of the changes.
        aligner: of the map; `Ridge()`, or `SvdRegression(rank)` as published.
        layers: source layer by target layer; proportional to depth by default.
        target_unlocked: a post-trained target, for its native direction where the change is one of weights. Where
            it is one of prompts the target itself gives it. Only diagnostics use it.
        template: how the texts are rendered in every model; the published prompts are plain text.
        rule: which tokens of the locked prompts the map is fitted on; "end_of_word" takes every word's last one in
            both models, where tokenizers differ and the rendered texts are equal.
        strength: α; None chooses it on dev questions by `score`.
        steered: "all" layers, or those whose map is not called "not identified" (the published code steers all).
        grid: α to choose from.
        score: what some interventions achieve on dev questions, and a guard that must not grow (share of repetition);
            None: the share that the target begins as the unlocked source does. The published preset takes 0.05.
        shares: of the questions that go to fit and to dev.
        rank: of the published aligner.
        seed: of the split.

    Raises:
        AlignmentError: other numbers of locked and unlocked prompts, too few of them, or rows that cannot be aligned.
        DirectionError: nothing changes between locked and unlocked.
    """
    check_options("The transfer study", preset=preset, presets=get_args(Preset))
    published = preset == "published"
    locked, unlocked = _wordings(prompts)
    if len(locked) != len(unlocked):
        raise AlignmentError(f"{len(locked)} locked prompts came with {len(unlocked)} unlocked ones.")
    parts = _last_rows(len(locked), shares) if published else split(len(locked), (*shares, 0.0), seed)
    reads = [
        read_prompts(model, texts, template, published)
        for model, texts in ((source[0], locked), (source[1], unlocked), (target, locked))
    ]
    texts = asked(source[0], locked, template), asked(target, locked, template)
    if rule == "last_prompt":
        pairs = PairedActivations(reads[0], reads[2], parts, rule, digest(*texts, rule, parts))
    else:
        read = PairedActivations.read(source[0], target, texts[0], target_prompts=texts[1], rule=rule)
        pairs = replace(read, splits=parts, hash=digest(*texts, rule, parts))
    change = _of(deltas(reads[1], reads[0]), parts["fit"])
    direction = capability_direction(
        change,
        model_name=source[0].name,
        fingerprint=source[0].fingerprint,
        aggregator=aggregator,
        published=published,
        data=pairs.hash,
    )
    aligner = aligner or _usual_aligner(rank, len(parts["fit"]), aggregator, published)
    alignment = align(pairs, layers=layers, aligner=aligner)
    every = alignment.transfer(direction)
    native = _native(
        target, target_unlocked, unlocked, template, published, reads[2], parts["fit"], aggregator
    )
    report = alignment.diagnose(pairs, direction, native=native, seed=seed)
    kept = every if published or steered == "all" else _kept(every, report)
    if strength is None and score is None and not published:
        dev = parts["dev"].tolist()
        texts_of = [[texts[row] for row in dev] for texts in (unlocked, locked)]
        score = manner_score(source[1], texts_of[0], target, texts_of[1], template)
    return Unlocked(
        source=direction,
        direction=kept,
        every=every,
        pairs=pairs,
        alignment=alignment,
        report=report,
        stability={site: split_half(rows, aggregator, seed=seed) for site, rows in change.items()},
        native=native,
        chosen=_strength(kept, strength, grid, score),
        preset=preset,
        aggregator=aggregator,
    )


def _wordings(prompts: Any) -> tuple[list[str], list[str]]:
    """Locked and unlocked prompts: of a pair of lists each, of a plain list the same."""
    given = [prompts] if isinstance(prompts, str) else list(prompts)
    if all(isinstance(text, str) for text in given):
        return given, given
    if len(given) != 2 or any(isinstance(texts, str) for texts in given):
        raise AlignmentError(
            "The prompts are questions, or a pair of lists: the locked and the unlocked wording."
        )
    return list(given[0]), list(given[1])


def turn(
    direction: Direction,
    strength: float,
    *,
    positions: Selector = Last(),  # noqa: B008  # frozen
    kind: Literal["rotate", "add"] = "rotate",
) -> tuple[Intervention, ...]:
    """The turn towards a direction at all its sites, on the last prompt token; or an addition of so many stream
    norms."""
    if kind == "add":
        return (Add(direction, strength=strength, unit="norm", layers="all", positions=positions),)
    return (Rotate(direction, strength=strength, layers="all", positions=positions),)


def refitted(result: Unlocked, aligner: Aligner, *, rows: int | None = None) -> tuple[Direction, Alignment]:
    """The source direction carried by another aligner of the same layers (fitted on the first `rows` questions
    only), at the layers that are steered; and that alignment.
    """
    pairs = result.pairs
    if rows is not None:
        pairs = replace(pairs, splits={**pairs.splits, "fit": pairs.splits["fit"][:rows]})
    layers = LayerMap.explicit(
        {site.layer or 0: source.layer or 0 for site, source in result.alignment.sources.items()}
    )
    again = align(pairs, layers=layers, aligner=clone(aligner))
    moved = again.transfer(result.source)
    return moved.at(*(site for site in result.direction.sites if site in moved.vectors)), again


# -- private, in the order they are called --


def _usual_aligner(rank: int, rows: int, aggregator: Aggregator, published: bool) -> Aligner:
    if not published:
        return Ridge()
    return SvdRegression(min(rank, rows - (aggregator == "pca")), center=aggregator == "pca")


def _strength(
    direction: Direction,
    given: float | None,
    grid: Sequence[float],
    score: Callable[[Sequence[Intervention]], tuple[float, float]] | None,
) -> Chosen:
    """The given strength, the best by `score`, or the published one."""
    if given is not None:
        return Chosen(given, "given")
    if score is None:
        return Chosen(PUBLISHED_STRENGTH, "the published value")
    return choose_strength(lambda alpha: score(turn(direction, alpha)), grid)


def _last_rows(n: int, shares: tuple[float, float]) -> dict[Part, np.ndarray]:
    """The published split: the last rows are fitted on, the first ones choose."""
    dev = max(4, round(shares[1] * n))
    if n - dev < 4:
        raise AlignmentError(
            f"{n} prompts leave {max(0, n - dev)} to fit on, which is fewer than four; give more."
        )
    return {"fit": np.arange(dev, n), "dev": np.arange(dev)}


def read_prompts(model: LanguageModel, texts: Sequence[str], template: str, published: bool) -> Activations:
    """The last prompt token after every block; as published, behind the final norm at the last one."""
    read = capture(model, list(asked(model, texts, template)), model.sites(_SITE), positions=Last())
    if not published or model.anatomy.ln_final is None:
        return read
    last = read.sites[-1]
    norm = model.anatomy.ln_final
    with torch.inference_mode():
        after = norm(read[last].to(model.device, model.dtype)).float().cpu()
    return replace(read, states={**read.states, last: after})


def _of(change: dict[Site, Deltas], rows: np.ndarray) -> dict[Site, Deltas]:
    return {site: deltas_of[rows] for site, deltas_of in change.items()}


def _native(
    target: LanguageModel,
    target_unlocked: LanguageModel | None,
    unlocked: Sequence[str],
    template: str,
    published: bool,
    locked: Activations,
    rows: np.ndarray,
    aggregator: Aggregator,
) -> Direction | None:
    """The target's own direction: from its post-trained version, or from itself on the unlocked prompts."""
    model = target_unlocked or target
    if (model.d_model, model.n_layers) != (target.d_model, target.n_layers):
        raise AlignmentError(
            f"{model.name} cannot show the native direction of {target.name}: its width or depth is another one."
        )
    change = _of(deltas(read_prompts(model, unlocked, template, published), locked), rows)
    if not any(np.linalg.norm(aggregated(rows_of, aggregator)) > 0 for rows_of in change.values()):
        return None
    return capability_direction(
        change, model_name=target.name, fingerprint=target.fingerprint, aggregator=aggregator
    )


def _kept(every: Direction, report: AlignmentReport) -> Direction:
    """Layers that are not called "not identified"; all of them where none is left, which the report then says."""
    good = [layer.target for layer in report.layers if layer.verdict != "not identified"]
    sites = [site for site in every.sites if site.layer in good]
    return every.at(*sites) if sites else every
