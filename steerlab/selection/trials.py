"""A few candidates ablated in several ways: toward 0 or the negative mean, in a window of layers.

Where every token shares a large mean, removing any direction everywhere breaks the model, and the scores of that say
nothing about the direction. So some candidates are scored again, each with every way; the first token, whose state
holds nothing of the prompt and is often of another size, is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast, get_args

import numpy as np
from jaxtyping import Float

from steerlab.models import Edit, Prompt, Site
from steerlab.progress import track
from steerlab.readouts.refusals import Judge
from steerlab.readouts.requests import contrast_direction
from steerlab.selection.candidates import Candidate, Toward, Window, ablation
from steerlab.selection.race import Race, expected

KL_BUDGET = 0.5
_MILDEST: tuple[Toward, Window] = ("negative", "block")
_WAYS: list[tuple[Toward, Window]] = [
    (toward, window)
    for toward in get_args(Toward)
    for window in get_args(Window)
    if (toward, window) != ("0", "everywhere")
]


class Trials:
    """Candidates of a race ablated in several ways, with bypass and, where it is within the budget, KL."""

    def __init__(self, race: Race, site: str) -> None:
        self.race, self.site = race, site
        self._tried: dict[tuple[int, Toward, Window], Candidate] = {}

    @property
    def found(self) -> tuple[Candidate, ...]:
        """Everything that was tried."""
        return tuple(self._tried.values())

    def mildly(self, numbers: Sequence[int]) -> list[Candidate]:
        """Candidates ablated toward the negative mean in their own block only."""
        self._score(numbers, [_MILDEST])
        return [self._tried[number, *_MILDEST] for number in numbers]

    def in_every_way(self, numbers: Sequence[int]) -> None:
        """Candidates ablated in every way."""
        self._score(numbers, _WAYS)

    def edit(self, place: Candidate) -> Edit:
        """The ablation of a candidate in its way."""
        places = self.race.places
        direction = contrast_direction(
            self.race.scorer.model, places.means, place.layer, place.position, self.site
        )
        return cast(Edit, ablation(direction, place, self.race.scorer.model.n_layers))

    def answered(
        self, places: Sequence[Candidate], judge: Judge, prompts: Sequence[Prompt], by_tokens: bool
    ) -> list[Candidate]:
        """The candidates with the share of prompts refused or answered with gibberish under their ablation."""
        unknown = [place for place in places if np.isnan(self._now(place).unanswered)]
        if unknown:
            edits = [self.edit(place) for place in unknown]
            for place, verdicts in zip(
                unknown, judge.verdicts_of_each([prompts] * len(edits), edits), strict=True
            ):
                left = expected(verdicts, by_tokens, broken=True)
                self._put(place.model_copy(update={"unanswered": float(left.mean())}))
        return [self._now(place) for place in places]

    def _now(self, place: Candidate) -> Candidate:
        """A candidate with what is known of it by now."""
        number = self.race.places.at.index((place.layer, place.position))
        if place.as_published:
            return self.race.candidates[number]
        return self._tried[number, place.toward, place.window]

    def _put(self, place: Candidate) -> None:
        number = self.race.places.at.index((place.layer, place.position))
        if place.as_published:
            self.race.candidates[number] = place
        else:
            self._tried[number, place.toward, place.window] = place

    def _score(self, numbers: Sequence[int], ways: Sequence[tuple[Toward, Window]]) -> None:
        """Score what was not tried yet; a layer's candidates share batches."""
        groups: dict[tuple[Toward, Window, int], list[int]] = {}
        for toward, window in ways:
            for number in numbers:
                if (number, toward, window) not in self._tried:
                    layer = 0 if window == "everywhere" else self.race.candidates[number].layer
                    groups.setdefault((toward, window, layer), []).append(number)
        bar = f"ways of ablation in {self.race.scorer.model.name}"
        for (toward, window, _), group in track(list(groups.items()), bar, len(groups)):
            self._score_alike(group, toward, window)

    def _score_alike(self, numbers: Sequence[int], toward: Toward, window: Window) -> None:
        """Candidates ablated at the same sites: KL first, and bypass of those within the budget."""
        scorer, places = self.race.scorer, self.race.places
        alike = [
            self.race.candidates[number].model_copy(update={"toward": toward, "window": window})
            for number in numbers
        ]
        sites = [Site(self.site, layer) for layer in alike[0].layers(scorer.model.n_layers)]
        vectors = places.vectors[list(numbers)]
        means = {site: self._means(numbers, site) for site in sites}
        change = scorer.toward(vectors, means if toward == "negative" else sites)
        divergences, bounds = scorer.kl(change, KL_BUDGET)
        mild = np.flatnonzero(~bounds & (divergences <= KL_BUDGET))
        bypass = np.full(len(alike), np.nan)
        if len(mild):
            bypass[mild] = scorer.bypass(change.only(mild))
        for row, place in enumerate(alike):
            scores = {
                "kl": float(divergences[row]), "kl_at_least": bool(bounds[row]), "bypass": float(bypass[row]),
                "unanswered": float("nan"),
            }  # fmt: skip
            self._put(place.model_copy(update=scores))

    def _means(self, numbers: Sequence[int], site: Site) -> Float[np.ndarray, "candidate width"]:
        """By candidate the negative mean at a site, at the candidate's position."""
        assert site.layer is not None
        places = self.race.places
        positions = [self.race.candidates[number].position for number in numbers]
        return np.stack([places.means.harmless[site.layer, position] for position in positions])
