"""Where in a model does refusal have its direction? Candidates by layer and position, chosen on validation prompts.

Candidate (layer l, position i after the instruction): r = mean state of harmful minus mean state of harmless training
prompts in resid_post.l, at token i, for the first four fifths of the layers. Three scores with the first token's
log-odds of refusing: bypass (harmful prompts, r ablated everywhere; low is good), induce (harmless ones, r added at
its layer; high is good), KL of the harmless predictions under ablation (low is good). The smallest bypass with
KL <= 0.1 and induce >= 0 wins (Arditi et al., 2024).

Ours: all candidates are scored on a few prompts first, the best few on all. Of those that meet the conditions the one
wins that leaves fewest answers refused or gibberish, and bypass decides between equals. Where no candidate meets both
conditions the one on induce falls first, then the one on KL. In a model that does not refuse there is nothing to
bypass: the candidates are those that separate the prompts best, and the largest induce with KL <= 0.1 wins. The rule
that decided is stated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from steerlab.activations import Activations, capture
from steerlab.directions import Direction
from steerlab.errors import PromptError
from steerlab.models import AfterInstruction, Edit, LanguageModel, Last, Prompt, Selector, Site
from steerlab.progress import track
from steerlab.statistics import Number
from steerlab.steering import Ablate, Add
from steerlab.studies._refusals import Judge, odds_of

KL_BOUND = 0.1
USABLE_DEPTH = 0.8
_MOST_POSITIONS = 8
_FIRST_LOOK = 8
_FINALISTS = 6


class Choice(BaseModel):
    """The chosen candidate of a model and its scores on validation prompts.

    position: counted from the prompt's end (-1 is the last token), `token` the text there. separation: distance of
    the validation classes along r in within-class standard deviations. unanswered: share of harmful prompts refused or
    answered with gibberish under ablation. gap: length of r, the class gap.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: int
    position: int
    token: str
    rule: str
    separation: Number
    bypass: Number
    induce: Number
    kl: Number
    unanswered: Number
    gap: float


@dataclass(frozen=True)
class Split:
    """Rendered prompts of one split."""

    harmful: list[Prompt]
    harmless: list[Prompt]

    @property
    def prompts(self) -> list[Prompt]:
        """Harmful ones first."""
        return self.harmful + self.harmless

    @property
    def labels(self) -> NDArray[np.bool_]:
        """True for harmful."""
        return np.array([True] * len(self.harmful) + [False] * len(self.harmless))


@dataclass(frozen=True)
class Reading:
    """States after the instruction [layer, prompt, position, width], positions counted back from the last token."""

    states: Float[np.ndarray, "layer prompt position width"]
    labels: NDArray[np.bool_]

    @property
    def n_positions(self) -> int:
        """Positions read; index -1 is the prompt's last token."""
        return int(self.states.shape[2])

    def differences(self) -> Float[np.ndarray, "layer position width"]:
        """Mean of harmful minus mean of harmless."""
        exact = self.states.astype(np.float64)
        found: Float[np.ndarray, "layer position width"] = exact[:, self.labels].mean(axis=1) - exact[
            :, ~self.labels
        ].mean(axis=1)
        return found


def read(
    model: LanguageModel, split: Split, positions: Selector | None = None, progress: str | None = None
) -> Reading:
    """States of every layer at the tokens after the instruction (the last token where there are none)."""
    sites = model.sites("resid_post")
    try:
        acts = capture(
            model, split.prompts, sites, positions=positions or AfterInstruction(), progress=progress
        )
    except PromptError:
        if positions is not None:
            raise
        acts = capture(model, split.prompts, sites, positions=Last(), progress=progress)
    return Reading(_from_the_end(acts, sites), split.labels)


def direction_at(model: LanguageModel, vector: Float[np.ndarray, " width"], layer: int) -> Direction:
    """A vector as a direction of this model at one layer's output."""
    return Direction(
        vectors={Site("resid_post", layer): torch.from_numpy(np.asarray(vector)).float()},
        model_name=model.name,
        fingerprint=model.fingerprint,
    )


def removal(model: LanguageModel, vector: Float[np.ndarray, " width"]) -> Edit:
    """Ablation of a vector everywhere in the residual stream."""
    return cast(Edit, Ablate(direction_at(model, vector, 0)))


def choose(judge: Judge, train: Reading, val: Split, *, name: str, refuses: bool) -> Choice:
    """The candidate of this model by the rules above; `refuses`: whether it refuses harmful validation prompts."""
    model, tokens = judge.model, judge.tokens
    differences = train.differences()
    states = read(model, val)
    shared = min(train.n_positions, states.n_positions)
    separation = _separation(states, differences[:, -shared:], shared)
    usable = range(max(1, int(USABLE_DEPTH * model.n_layers)))
    candidates = [(layer, position) for layer in usable for position in range(-shared, 0)]

    def scores(some: Sequence[tuple[int, int]], on: Split) -> Float[np.ndarray, "candidate 3"]:
        plain = model.logits(on.harmless)
        shown = track(some, f"choosing the refusal direction in {name}", len(some))
        return np.array([_scores(model, differences[at], at[0], on, tokens, plain) for at in shown])

    if refuses and tokens:
        first = Split(val.harmful[:_FIRST_LOOK], val.harmless[:_FIRST_LOOK])
        order = _ranked(scores(candidates, first))
    else:
        order = np.argsort([-separation[at] for at in candidates])
    finalists = [candidates[place] for place in order[:_FINALISTS]]
    scored = scores(finalists, val)
    unanswered = np.full(len(finalists), np.nan)
    if refuses:
        for place, at in enumerate(finalists):
            edits = [removal(model, differences[at])]
            unanswered[place] = judge.verdicts(val.harmful, edits).not_answered.mean()
    best, rule = _pick(scored, unanswered, refuses)
    layer, position = finalists[best]
    last = model.tokenize([val.prompts[0]])
    return Choice(
        layer=layer,
        position=position,
        token=model.tokenizer.decode([int(last.input_ids[0, position])]),
        rule=rule,
        separation=float(separation[layer, position]),
        bypass=float(scored[best, 0]),
        induce=float(scored[best, 1]),
        kl=float(scored[best, 2]),
        unanswered=float(unanswered[best]),
        gap=float(np.linalg.norm(differences[layer, position])),
    )


# -- private, in the order they are called --


def _from_the_end(
    acts: Activations, sites: Sequence[Site]
) -> Float[np.ndarray, "layer prompt position width"]:
    """The last positions of every prompt, as many as the prompt with fewest has."""
    example = acts.example.numpy()
    counts = np.bincount(example, minlength=acts.n_prompts)
    kept = min(int(counts.min()), _MOST_POSITIONS)
    ends = np.cumsum(counts)
    rows = ends[:, None] - kept + np.arange(kept)
    return np.stack([acts[site].numpy()[rows] for site in sites])


def _separation(
    val: Reading, differences: Float[np.ndarray, "layer position width"], shared: int
) -> Float[np.ndarray, "layer position"]:
    along = np.einsum("lnpd,lpd->lpn", val.states[:, :, -shared:].astype(np.float64), differences)
    high, low = along[..., val.labels], along[..., ~val.labels]
    spread = np.sqrt((high.var(axis=-1) + low.var(axis=-1)) / 2)
    gap = high.mean(axis=-1) - low.mean(axis=-1)
    found: Float[np.ndarray, "layer position"] = np.divide(
        gap, spread, out=np.zeros_like(gap), where=spread > 0
    )
    return found


def _scores(
    model: LanguageModel,
    vector: Float[np.ndarray, " width"],
    layer: int,
    val: Split,
    tokens: Sequence[int],
    plain: torch.Tensor,
) -> tuple[float, float, float]:
    """(bypass, induce, KL) of one candidate; NaN where refusal tokens are not known or the vector is zero."""
    if not np.linalg.norm(vector) > 0:
        return float("nan"), float("nan"), float("nan")
    with model.steering(removal(model, vector)):
        ablated = model.logits(val.prompts)
    with model.steering(Add(direction_at(model, vector, layer))):
        added = model.logits(val.harmless)
    n = len(val.harmful)
    log_p, log_q = plain.double().log_softmax(dim=1), ablated[n:].double().log_softmax(dim=1)
    kl = float((log_p.exp() * (log_p - log_q)).sum(dim=1).mean())
    return float(odds_of(ablated[:n], tokens).mean()), float(odds_of(added, tokens).mean()), kl


def _ranked(scores: Float[np.ndarray, "candidate 3"]) -> NDArray[np.intp]:
    """Candidates by bypass, those within the KL bound first."""
    found: NDArray[np.intp] = np.lexsort(
        (np.nan_to_num(scores[:, 0], nan=np.inf), ~(scores[:, 2] <= KL_BOUND))
    )
    return found


def _pick(
    scores: Float[np.ndarray, "candidate 3"], unanswered: Float[np.ndarray, " candidate"], refuses: bool
) -> tuple[int, str]:
    """Index of the best finalist and the rule that chose it; finalists come in order of the first look."""
    bypass, induce, kl = scores.T
    mild = kl <= KL_BOUND
    if not np.isfinite(scores).all(axis=1).any():
        return 0, "best separation of the validation prompts (refusal has no token of its own)"
    if not refuses:
        kept, how = (mild, f"KL <= {KL_BOUND}") if mild.any() else (np.isfinite(induce), "whatever KL")
        return int(
            np.where(kept, induce, -np.inf).argmax()
        ), f"largest induce with {how} (the model does not refuse)"
    rules = (
        (mild & (induce >= 0), f"KL <= {KL_BOUND} and induce >= 0"),
        (mild, f"KL <= {KL_BOUND} (no candidate has induce >= 0)"),
        (np.isfinite(bypass), f"whatever KL (no candidate has KL <= {KL_BOUND})"),
    )
    kept, rule = next((kept, rule) for kept, rule in rules if kept.any())
    order = np.lexsort((bypass, unanswered, ~kept))
    return int(order[0]), f"fewest refused or gibberish, then smallest bypass, with {rule}"
