"""What a request may ask: vectors, strengths and probes by the names they were registered with at the start.

    "vectors"    a name, a list of names, or {name: strength}; left out: those that always act; []: none
    "strength"   one number for all vectors of the request, in the place of what they were registered with
    "watch"      a name or a list of names: a score x·v̂ for every token comes back

A name is looked up among those registered; no field of a request is ever a path. Every wrong field is a sentence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from steerlab.directions import Direction
from steerlab.errors import SteeringError, SteerlabError
from steerlab.models import Edit, LanguageModel, Site
from steerlab.models.edits import edits_of
from steerlab.monitoring.watching import one_vector
from steerlab.steering import Ablate, Add
from steerlab.steering.packed import Row

_REMEMBERED = 512  # rows of different vectors and strengths whose operators are kept


@dataclass(frozen=True)
class Wish:
    """What one request asks beside its text.

    Attributes:
        row: its interventions.
        probes: names of the probes that read it.
        temperature: 0 is greedy.
        top_p: mass of the nucleus.
        seed: of what is drawn; None draws one.
        limit: the most tokens it wants written; None where it says nothing.
    """

    row: Row
    probes: tuple[str, ...]
    temperature: float
    top_p: float
    seed: int | None
    limit: int | None


class Desk:
    """The vectors and probes of a server, and how a request's fields are read.

    Args:
        model: the model that is served.
        vectors: by name an intervention (a direction is added once).
        always: names of those that act on a request that names none; by default all.
        probes: by name a direction that may be watched; every vector may be, too.

    Raises:
        SteeringError: no such name, a vector that is no constant `Add` or `Ablate`, or a probe of several vectors.
        DirectionError: a direction of another model.
    """

    def __init__(
        self,
        model: LanguageModel,
        vectors: Mapping[str, Any] | None = None,
        *,
        always: Sequence[str] | None = None,
        probes: Mapping[str, Direction] | None = None,
    ) -> None:
        self.model = model
        self.vectors: dict[str, Edit] = {name: _one(name, given) for name, given in (vectors or {}).items()}
        self.always = tuple(self.vectors if always is None else always)
        for name in self.always:
            self._require_vector(name)
        own = {name: probe for name, edit in self.vectors.items() if (probe := _readable(edit)) is not None}
        self.probes: dict[str, Direction] = own | {
            name: one_vector(probe) for name, probe in (probes or {}).items()
        }
        for probe in self.probes.values():
            probe.check(model)
        for edit in self.vectors.values():
            Row([edit], model)
        self._row = lru_cache(maxsize=_REMEMBERED)(self._made_row)
        self._row(tuple((name, None) for name in self.always))

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where any vector may act."""
        return tuple(dict.fromkeys(site for edit in self.vectors.values() for site in edit.sites))

    def read(self, body: dict[str, Any]) -> Wish:
        """Take the fields of a request's body that are read here, and leave the others.

        Raises:
            SteeringError: a field that means nothing, in one sentence.
        """
        vectors, strength = body.pop("vectors", None), body.pop("strength", None)
        chosen = self._chosen(vectors, strength)
        try:
            row = self._row(tuple(sorted(chosen.items(), key=lambda item: list(self.vectors).index(item[0]))))
        except SteerlabError as error:
            raise SteeringError(f"These vectors and strengths cannot act: {error}") from error
        return Wish(
            row=row,
            probes=self._watched(body.pop("watch", None)),
            temperature=_number(body, "temperature", 0.0, low=0.0),
            top_p=_number(body, "top_p", 1.0, low=0.0, high=1.0),
            seed=_whole(body, "seed"),
            limit=next(
                (
                    number
                    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens")
                    if (number := _whole(body, name, low=1)) is not None
                ),
                None,
            ),
        )

    # -- private --

    def _chosen(self, vectors: Any, strength: Any) -> dict[str, float | None]:
        """By name the strength that a request gives; None is what it was registered with."""
        if strength is not None:
            strength = _real("strength", strength)
        if vectors is None:
            vectors = list(self.always)
            if strength is not None and not vectors:
                raise SteeringError(
                    f"A strength of {strength:g} needs vectors; name some of {self._known()}."
                )
        if isinstance(vectors, str):
            vectors = [vectors]
        if isinstance(vectors, dict):
            if strength is not None:
                raise SteeringError(
                    "The strengths stand twice, in 'vectors' and in 'strength'; give 'vectors' as a list, or leave "
                    "'strength' out."
                )
            for name in vectors:
                self._require_vector(name)
            return {name: _real(f"strength of {name!r}", given) for name, given in vectors.items()}
        if not isinstance(vectors, list):
            raise SteeringError(
                f"'vectors' is {vectors!r:.80}; give a name, a list of names, or {{name: strength}}."
            )
        for name in vectors:
            self._require_vector(name)
        return dict.fromkeys(vectors, strength)

    def _watched(self, given: Any) -> tuple[str, ...]:
        names = [given] if isinstance(given, str) else [] if given is None else given
        if not isinstance(names, list):
            raise SteeringError(f"'watch' is {given!r:.80}; give a probe's name, or a list of names.")
        for name in names:
            if not isinstance(name, str) or name not in self.probes:
                known = ", ".join(self.probes) or "none"
                raise SteeringError(
                    f"There is no probe {name!r:.80} here; the server was started with: {known}."
                )
        return tuple(dict.fromkeys(names))

    def _require_vector(self, name: Any) -> None:
        if not isinstance(name, str) or name not in self.vectors:
            raise SteeringError(
                f"There is no vector {name!r:.80} here; the server was started with: {self._known()}."
            )

    def _known(self) -> str:
        return ", ".join(self.vectors) or "none"

    def _made_row(self, chosen: tuple[tuple[str, float | None], ...]) -> Row:
        edits: list[Any] = []
        for name, strength in chosen:
            edit: Any = self.vectors[name]
            if strength == 0.0:
                continue
            edits.append(edit if strength is None else replace(edit, strength=strength))
        return Row(edits, self.model)


def _one(name: str, given: Any) -> Edit:
    edits = edits_of([given])
    if len(edits) != 1 or not isinstance(edits[0], Add | Ablate):
        raise SteeringError(f"The vector {name!r} must be one Add or Ablate, or a direction.")
    return edits[0]


def _readable(edit: Any) -> Direction | None:
    """The direction of a vector as a probe, where it is one vector."""
    try:
        return one_vector(edit.direction)
    except SteeringError:
        return None


def _real(what: str, given: Any) -> float:
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    if not is_number or not math.isfinite(given):
        raise SteeringError(f"The {what} is {given!r:.80}; give a number such as 1.5.")
    return float(given)


def _number(
    body: Mapping[str, Any], name: str, default: float, *, low: float, high: float = math.inf
) -> float:
    given = body.get(name)
    if given is None:
        return default
    number = _real(name, given)
    if not low <= number <= high or (name == "top_p" and number == 0.0):
        raise SteeringError(f"The {name} is {number:g}; give a number {_range(name, low, high)}.")
    return number


def _range(name: str, low: float, high: float) -> str:
    return f"of at least {low:g}" if high == math.inf else f"above {low:g}, of at most {high:g}"


def _whole(body: Mapping[str, Any], name: str, *, low: int | None = None) -> int | None:
    given = body.get(name)
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int) or (low is not None and given < low):
        raise SteeringError(
            f"The {name} is {given!r:.80}; give a whole number{'' if low is None else f' of at least {low}'}."
        )
    return given
