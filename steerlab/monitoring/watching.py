"""`model.watch(probe)`: the probe's score of every token while the model reads and writes.

A hook at the probe's site multiplies each pass's states with the unit vectors, x·v̂ in float32, and keeps the numbers on
the device; nothing waits for it. What belongs to which text is put together afterwards, from the passes themselves. So
a watch works at any batch and padding, in streams and chats, with an assistant's proposals (a token read again takes
the place of the first reading) and under steering, behind whose hooks it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.directions import Direction
from steerlab.errors import SteeringError, kind_of
from steerlab.models import LanguageModel, Site
from steerlab.models.hooks import Frame, attach
from steerlab.models.operators import precise
from steerlab.models.scopes import Entry
from steerlab.models.steering import require_eager
from steerlab.monitoring.alarm import Alarm
from steerlab.monitoring.registry import MONITORS
from steerlab.monitoring.seen import Pass, Seen


@MONITORS.register("watch")
@contextmanager
def watch(model: LanguageModel, probes: Sequence[Direction], *, alarm: Alarm | None = None) -> Iterator[Seen]:
    """See `LanguageModel.watch`."""
    chosen = [one_vector(probe) for probe in probes]
    if not chosen:
        raise SteeringError("A watch needs a probe; give model.watch(...) a direction.")
    if model.is_remote:
        raise SteeringError(f"{model.name} is run by a server, which sends no scores back; load it here.")
    if alarm is not None and not isinstance(alarm, Alarm):
        raise SteeringError(f"An alarm is sl.Alarm(rate=0.05, per='answer'), not {kind_of(alarm)}.")
    require_eager(model)
    for probe in chosen:
        probe.check(model)
    limits = [None if alarm is None else alarm.threshold(probe) for probe in chosen]
    recorder = _Recorder(model, chosen)
    with ExitStack() as stack:
        with model.lock:
            stack.enter_context(model.frames.watch(model.anatomy.base))
            stack.enter_context(model.frames.by_row.holding(["A watch"]))
            stack.callback(recorder.remove)
            recorder.entry = stack.enter_context(model.frames.readers.holding(recorder.place))
            recorder.place()
        yield Seen(model, tuple(chosen), tuple(probes), alarm, tuple(limits), recorder.passes)


def one_vector(probe: Direction) -> Direction:
    """A probe at its only site, or its best one.

    Raises:
        SteeringError: something that is no direction, several sites with no best one, or several vectors.
    """
    if not isinstance(probe, Direction):
        raise SteeringError(f"A probe is a direction, not {kind_of(probe)}; fit one, or load its file.")
    if len(probe.sites) > 1:
        if probe.best is None:
            raise SteeringError(
                f"The probe has {len(probe.sites)} sites and no best one; pick where it reads with direction.at(site)."
            )
        probe = probe.at(probe.best)
    if len(probe.vectors[probe.sites[0]]) != 1:
        raise SteeringError(
            f"The probe holds {len(probe.vectors[probe.sites[0]])} vectors at {probe.sites[0]}; a score needs one."
        )
    return probe


def unit_vectors(probes: Sequence[Direction], site: Site) -> Float[Tensor, "width probe"]:
    """The unit vectors of the probes at a site, as columns."""
    rows = [torch.nn.functional.normalize(probe[site].double(), dim=0) for probe in probes]
    return torch.stack(rows, dim=1).float()


@dataclass(eq=False)
class _Place:
    """One site: the numbers of its probes, and their vectors by device."""

    numbers: tuple[int, ...]
    vectors: Float[Tensor, "width probe"]


class _Recorder:
    """Hooks at the probes' sites, and what they saw."""

    def __init__(self, model: LanguageModel, probes: Sequence[Direction]) -> None:
        self.passes: list[Pass] = []
        self._model = model
        self._places = dict(_by_site(probes))
        self._handles = ExitStack()
        #: Whose hooks they are: the watch's own, whatever context is entered and left inside it.
        self.entry: Entry[Callable[[], None]] | None = None

    def place(self) -> None:
        """Put the hooks behind all that are there."""
        with self._model.lock:
            self._handles.close()
            for site, place in self._places.items():
                tap = self._model.anatomy.tap(site)
                self._handles.callback(
                    attach(tap, self._model.frames, partial(self._take, place), entry=self.entry)
                )

    def remove(self) -> None:
        """Take the hooks away."""
        with self._model.lock:
            self._handles.close()

    def _take(self, place: _Place, state: Float[Tensor, "batch position width"]) -> None:
        frame = self._model.frames.current
        if frame is None:
            raise SteeringError("A watched part of the model was called by itself; run the whole model.")
        if frame.repeats > 1:
            raise SteeringError(
                "A watch follows texts by their rows, and this search moves rows about; leave num_beams and repeated "
                "samples out."
            )
        if place.vectors.device != state.device:
            place.vectors = place.vectors.to(state.device)
        scores = (precise(state) @ place.vectors.to(precise(state).dtype)).float()
        self._of(frame).scores.update(zip(place.numbers, scores.unbind(-1), strict=True))

    def _of(self, frame: Frame) -> Pass:
        if not self.passes or self.passes[-1].frame is not frame:
            self.passes.append(Pass(frame))
        return self.passes[-1]


def _by_site(probes: Sequence[Direction]) -> Iterator[tuple[Site, _Place]]:
    sites: Mapping[Site, list[int]] = {
        site: [number for number, probe in enumerate(probes) if probe.sites[0] == site]
        for site in dict.fromkeys(probe.sites[0] for probe in probes)
    }
    for site, numbers in sites.items():
        yield site, _Place(tuple(numbers), unit_vectors([probes[number] for number in numbers], site))
