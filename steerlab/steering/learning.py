"""Learn a low-rank map of the states from examples of what to answer, the model frozen.

    min over U, R, b of −mean ln P(answer token | prompt and answer before it; h + Rᵀ(U h + b)),    R Rᵀ = 1

The training of ReFT (Wu et al. 2024) with one site. R is the orthonormal factor of a free matrix at every step; U and b
begin at zero, so the model begins as it is. Adam with a step that falls linearly to zero, gradients cut to length one.
U is learned as V / √width and b in units of the states' root mean square, so that one step size suits every model: a
step of 0.3 changes what is written by at most about 0.3 of a state's norm. Some examples are held out; their loss, and
that of random maps of equal norm, are kept beside the loss of the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.directions import Direction
from steerlab.errors import SteeringError
from steerlab.models import All, LanguageModel, Selector, Site, require_selector, site_of
from steerlab.models.sites import SiteName
from steerlab.progress import counting
from steerlab.statistics import bootstrap_mean, mean_and_extremes
from steerlab.steering._trained import (
    Answer,
    Batch,
    Change,
    Example,
    batches_of,
    examples_of,
    frozen,
    held_out_members,
    log_probabilities,
)
from steerlab.steering.low_rank import ESTIMATOR, LowRank

_RANDOMS = 5
_CONTROL = "mean and extremes of {n} random maps of equal norm"
_LONGEST_GRADIENT = 1.0


# Long: most of it documents its options.
def learn_low_rank(
    model: LanguageModel,
    site: SiteName,
    examples: Sequence[tuple[Any, Answer]],
    *,
    rank: int = 4,
    steps: int = 200,
    learning_rate: float = 0.3,
    positions: Selector = All(),  # noqa: B008  # frozen
    held_out: float = 0.2,
    groups: Sequence[Hashable] | None = None,
    token_budget: int = 1024,
    seed: int = 0,
) -> LowRank:
    """A `LowRank` map under which the model gives the examples' answers, learned through the frozen model.

    No gradient goes into the model: its weights, what its parameters ask for and its mode are as before, on exceptions
    as well.

    Args:
        model: loaded here, uncompiled.
        site: where the map acts ("resid_post.5").
        examples: (prompt, answer) pairs. A prompt is a text, a `Prompt` (`model.instruction_prompt(...)`) or a
            conversation; the answer is the text behind it, or its token ids. A few hundred do.
        rank: of the map; it has 2 · rank · width + rank numbers.
        steps: of Adam, each on one batch.
        learning_rate: of the first step.
        positions: the tokens it acts on, while it is learned and by itself afterwards.
        held_out: share of the examples (of their groups) that are not learned from; 0 for none.
        groups: what is held out and resampled together, one name an example.
        token_budget: padded tokens of a batch.
        seed: of the order of batches, of what is held out and of the random maps.

    Returns:
        The intervention. ``edit.map`` is its `Direction`, which is a file: `save` writes it, and
        ``LowRank(Direction.load(path))`` reads it. Its `parameters` hold the losses, nats an answer's token:
        "loss_in_sample" and "loss_held_out", each without and with the map, and "loss_random" of random maps of equal
        norm on the examples held out.

    Raises:
        SteeringError: a rank, number of steps or share that is none, or fewer than two examples.
        PromptError: an answer that is empty.

    Example:
        >>> curt = sl.learn_low_rank(model, "resid_post.8", [("Who are you?", " A model.")])  # doctest: +SKIP
    """
    place = site_of(site)
    model.require(place)
    require_selector(positions)
    _require_counts(model.width(place), rank, steps, learning_rate, examples)
    made = examples_of(
        model, [prompt for prompt, _ in examples], [answer for _, answer in examples], positions
    )
    train, apart = held_out_members(groups, len(made), held_out, seed)
    batches = batches_of(made, train, token_budget)
    with frozen(model):
        scale = _root_mean_square(model, place, batches)
        map_ = _Map(model, place, rank, scale, seed)
        _descend(model, place, map_, batches, steps, learning_rate, seed)
        rows = map_.rows()
        losses = _Losses(model, place, made, token_budget)
        edit = LowRank(_direction(model, place, rows, {"rank": rank}, positions, made), positions=positions)
        judged = apart or train
        with torch.no_grad():
            plain, learned = losses.of(None, range(len(made))), losses.of(rows, range(len(made)))
            chance = [
                float(losses.of(edit.random_like(seed + draw).map.vectors[place], judged).mean())
                for draw in range(_RANDOMS)
            ]
    names = np.array([str(name) for name in groups]) if groups is not None else np.arange(len(made))

    def loss(values: Float[np.ndarray, " example"], members: Sequence[int]) -> dict[str, Any] | None:
        if not members:
            return None
        return bootstrap_mean(values[members], names[members], seed=seed).model_dump(mode="json")

    parameters = {
        "rank": rank,
        "steps": steps,
        "learning_rate": learning_rate,
        "seed": seed,
        "held_out_share": held_out,
        "loss_in_sample": [loss(plain, train), loss(learned, train)],
        "loss_held_out": [loss(plain, apart), loss(learned, apart)],
        "loss_random": mean_and_extremes(chance, _CONTROL).model_dump(mode="json"),
    }
    return LowRank(_direction(model, place, rows, parameters, positions, made), positions=positions)


# -- private, in the order they are called --


def _require_counts(width: int, rank: Any, steps: Any, learning_rate: Any, examples: Any) -> None:
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= width:
        raise SteeringError(f"The rank is a whole number from 1 to the width {width}, not {rank!r}.")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise SteeringError(f"At least one step is needed, not steps={steps!r}.")
    if not isinstance(learning_rate, int | float) or not 0 < learning_rate <= 1:
        raise SteeringError(f"The learning rate is a number above 0 and up to 1, not {learning_rate!r}.")
    fits = isinstance(examples, Sequence) and not isinstance(examples, str)
    if not fits or any(isinstance(pair, str) or len(pair) != 2 for pair in examples):
        raise SteeringError("The examples are pairs [(prompt, answer), ...]; give a list of them.")
    if len(examples) < 2:
        raise SteeringError(f"A map is learned from two examples or more; {len(examples)} came.")


def _root_mean_square(model: LanguageModel, site: Site, batches: Sequence[Batch]) -> float:
    """The size of a coordinate of the states that are changed, over some batches."""
    total, count = 0.0, 0.0

    def read(state: Tensor, acts: Tensor) -> Tensor:
        nonlocal total, count
        total += float(((acts * state) ** 2).sum())
        count += float(acts.sum()) * state.shape[-1]
        return state

    with torch.no_grad():
        for batch in batches[:4]:
            log_probabilities(model, site, read, batch)
    return max((total / count) ** 0.5 if count else 0.0, 1e-6)


class _Map:
    """The numbers that are learned, in units of the states' size."""

    def __init__(self, model: LanguageModel, site: Site, rank: int, scale: float, seed: int) -> None:
        width, device = model.width(site), model.device
        generator = torch.Generator().manual_seed(seed)
        self.free = torch.randn(width, rank, generator=generator).to(device).requires_grad_()
        self.reads = torch.zeros(rank, width, device=device, requires_grad=True)
        self.offset = torch.zeros(rank, device=device, requires_grad=True)
        self.scale, self.root = scale, width**0.5

    @property
    def learned(self) -> list[Tensor]:
        return [self.free, self.reads, self.offset]

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """What Adam moves, each with its step; the directions that are written turn slower than what is read."""
        return [
            {"params": [self.free], "lr": learning_rate / 5},
            {"params": [self.reads, self.offset], "lr": learning_rate},
        ]

    def change(self) -> Change:
        """The change of states by the numbers of now."""
        writes = torch.linalg.qr(self.free).Q.T

        def changed(state: Tensor, acts: Tensor) -> Tensor:
            read = state.float() @ self.reads.T / self.root + self.scale * self.offset
            new: Tensor = state + acts * (read @ writes).to(state)
            return new

        return changed

    def rows(self) -> Float[Tensor, "k width"]:
        """What is read, what is written, and the constant, as the map's direction has them; float32 on the CPU."""
        with torch.no_grad():
            writes = torch.linalg.qr(self.free.double().cpu()).Q.T
            reads = self.reads.double().cpu() / self.root
            constant = self.scale * self.offset.double().cpu() @ writes
            rows: Tensor = torch.cat([reads, writes, constant[None]]).float()
        return rows


def _descend(
    model: LanguageModel,
    site: Site,
    map_: _Map,
    batches: Sequence[Batch],
    steps: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Adam with a step that falls linearly to zero, one batch a step, every batch once before any comes again."""
    optimiser = torch.optim.Adam(map_.groups(learning_rate))
    falling = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    order = _rounds(len(batches), seed)
    with counting("Learning a low-rank map", steps) as done:
        for _ in range(steps):
            loss = -log_probabilities(model, site, map_.change(), batches[next(order)]).mean()
            if not torch.isfinite(loss):
                raise SteeringError(
                    f"The loss at {site} is not finite; take a smaller learning_rate than {learning_rate:g}."
                )
            # Not .backward(): what the caller keeps in .grad of other tensors is none of ours.
            slopes = torch.autograd.grad(loss, map_.learned)
            for number, slope in zip(map_.learned, slopes, strict=True):
                number.grad = slope
            torch.nn.utils.clip_grad_norm_(map_.learned, _LONGEST_GRADIENT)
            optimiser.step()
            falling.step()
            done(1)


def _rounds(n: int, seed: int) -> Iterator[int]:
    """Numbers below n in random order, again and again."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(n, generator=generator).tolist()


class _Losses:
    """The loss of each example under a map."""

    def __init__(
        self, model: LanguageModel, site: Site, examples: Sequence[Example], token_budget: int
    ) -> None:
        self.model, self.site, self.examples, self.budget = model, site, examples, token_budget

    def of(
        self, rows: Float[Tensor, "k width"] | None, members: Sequence[int]
    ) -> Float[np.ndarray, " member"]:
        """−ln P of each member's answer, nats a token."""
        change = None if rows is None else _as_change(rows)
        found = np.zeros(len(self.examples))
        for batch in batches_of(self.examples, list(members), self.budget):
            each = log_probabilities(self.model, self.site, change, batch).double().cpu().numpy()
            sums = np.bincount(batch.row.numpy(), each, minlength=len(batch.members))
            found[list(batch.members)] = -sums / np.bincount(batch.row.numpy(), minlength=len(batch.members))
        values: Float[np.ndarray, " member"] = found[list(members)]
        return values


def _as_change(rows: Float[Tensor, "k width"]) -> Change:
    """The change that a map's rows describe."""
    rank = len(rows) // 2

    def changed(state: Tensor, acts: Tensor) -> Tensor:
        own = rows.to(state)
        return state + acts * ((state @ own[:rank].T) @ own[rank : 2 * rank] + own[-1])

    return changed


def _direction(
    model: LanguageModel,
    site: Site,
    rows: Float[Tensor, "k width"],
    parameters: dict[str, Any],
    positions: Selector,
    examples: Sequence[Example],
) -> Direction:
    if not torch.isfinite(rows).all() or not bool((rows.norm(dim=1) > 0).all()):
        raise SteeringError(
            f"Nothing was learned at {site}: a part of the map is zero or not finite; take more steps, or a site and "
            "positions that come before the answers."
        )
    written = repr([example.ids for example in examples])
    return Direction(
        vectors={site: rows},
        model_name=model.name,
        fingerprint=model.fingerprint,
        estimator=ESTIMATOR,
        parameters=parameters,
        dataset_hash=hashlib.sha256(written.encode()).hexdigest()[:16],
        position=repr(positions),
        best=site,
    )
