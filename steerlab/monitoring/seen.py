"""What a watch saw: passes put together into texts, with a score for every token that was read.

The last token that a model writes (its end token, or the last before the limit) it never reads, so it has no state and
no score while it writes; `model.reread` reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.directions import Direction
from steerlab.errors import SteeringError
from steerlab.models import LanguageModel, Prompt
from steerlab.models.generation import end_token_ids
from steerlab.models.hooks import Call, Frame
from steerlab.models.thinking import behind_thinking
from steerlab.monitoring.alarm import Alarm
from steerlab.monitoring.drawing import coloured_html, coloured_text, scores_figure
from steerlab.monitoring.segments import Segment, decoded, pieces, segments
from steerlab.showing import counted, html_table

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from rich.text import Text


@dataclass(eq=False)
class Pass:
    """One forward pass: by number of the probe its scores [batch, position], on the device."""

    frame: Frame
    scores: dict[int, Float[Tensor, "batch position"]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Scores:
    """One text's scores by one probe. As a sequence it is the scores of what was written, one a token.

    Attributes:
        prompt: what the text was written after; without text in a raw call of the model.
        values: of the written tokens that were read, x·v̂.
        tokens: their texts.
        segments: "thinking" or "answer", for each.
        text: of them together.
        prompt_values: of the prompt's tokens.
        prompt_tokens: their texts.
        token_ids: of the written tokens.
    """

    prompt: Prompt
    values: Float[np.ndarray, " token"]
    tokens: tuple[str, ...]
    segments: tuple[Segment, ...]
    text: str
    prompt_values: Float[np.ndarray, " prompt"]
    prompt_tokens: tuple[str, ...]
    token_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, place: int) -> float:
        return float(self.values[place])

    def __iter__(self) -> Iterator[float]:
        return iter(self.values.tolist())

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return np.asarray(self.values, dtype=dtype)  # type: ignore[no-any-return, call-overload]

    def __repr__(self) -> str:
        if not len(self):
            return f"Scores of {counted(len(self.prompt_values), 'prompt token')}, nothing written"
        top = int(self.values.argmax())
        return f"Scores of {counted(len(self), 'token')}, at most {self[top]:.3g} at {self.tokens[top]!r}"


@dataclass(frozen=True)
class Alarmed:
    """Where an alarm sounded: the text's number, the written token's place in it, and its score."""

    text: int
    place: int
    token: str
    segment: Segment
    score: float


class Seen:
    """What a watch saw so far; it may be looked at inside the context and after it.

    Attributes:
        probes: the probes, each at one site.
        alarm: the alarm, where one was given.
    """

    def __init__(
        self,
        model: LanguageModel,
        probes: Sequence[Direction],
        given: Sequence[Direction],
        alarm: Alarm | None,
        limits: Sequence[float | None],
        passes: list[Pass],
        first: int = 0,
    ) -> None:
        self.probes, self.alarm = tuple(probes), alarm
        self._given, self._first = tuple(given), first
        self._model, self._limits, self._passes = model, tuple(limits), passes
        self._known: tuple[object, list[Scores]] = (None, [])

    def of(self, probe: int | Direction) -> Seen:
        """What one of several probes saw, by its place or itself.

        Raises:
            SteeringError: it is none of them.
        """
        places = [
            at
            for at, each in enumerate(self.probes)
            if at == probe or self._given[at] is probe or each.hash == _hash(probe)
        ]
        if not places:
            raise SteeringError(
                f"The watch has {counted(len(self.probes), 'probe')}, and this is none of them."
            )
        at = places[0]
        one = slice(at, at + 1)
        mine = self.probes[one], self._given[one], self.alarm, self._limits[one]
        return Seen(self._model, *mine, self._passes, self._first + at)

    @property
    def scores(self) -> list[Scores]:
        """A text each, in the order of the calls and of their prompts. Waits for the device.

        Raises:
            SteeringError: several probes: take one with `of`.
        """
        if len(self.probes) > 1:
            raise SteeringError(
                f"The watch has {len(self.probes)} probes; take one: seen.of(0).scores, or seen.of(probe).scores."
            )
        state = (len(self._passes), *(len(call.written) for call in _calls(self._passes)))
        if self._known[0] != state:
            self._known = (state, list(_texts(self._model, self._passes, self._first)))
        return self._known[1]

    @property
    def threshold(self) -> float:
        """The score above which the alarm sounds.

        Raises:
            SteeringError: the watch has no alarm, or several probes.
        """
        if len(self.probes) > 1:
            raise SteeringError(f"The watch has {len(self.probes)} probes; take one with seen.of(0).")
        if self._limits[0] is None:
            raise SteeringError("The watch has no alarm; give model.watch(probe, alarm=sl.Alarm(rate=0.05)).")
        return self._limits[0]

    @property
    def alarms(self) -> list[Alarmed]:
        """Where the running maximum of a text's written tokens first passed the threshold; per token every such token.

        Per conversation a text that goes on from an earlier one of the watch goes on from its maximum, too.
        """
        limit, scores = self.threshold, self.scores
        assert self.alarm is not None
        found: list[Alarmed] = []
        sounded: set[int] = set()
        for number, each in enumerate(scores):
            above = np.flatnonzero(each.values > limit)
            before = _before(scores, number) if self.alarm.per == "conversation" else None
            if before in sounded:
                sounded.add(number)
                continue
            if len(above):
                sounded.add(number)
            for place in above.tolist() if self.alarm.per == "token" else above[:1].tolist():
                found.append(Alarmed(number, place, each.tokens[place], each.segments[place], each[place]))
        return found

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        if len(self.probes) > 1:
            return f"Seen by {len(self.probes)} probes; take one with of(0)"
        sounded = f", {counted(len(self.alarms), 'alarm')}" if self.alarm is not None else ""
        return f"Seen({counted(len(self.scores), 'text')}{sounded})"

    def _repr_html_(self) -> str:
        if len(self.probes) > 1:
            return f"<p>{self!r}</p>"
        limit, scale = self._limits[0], self._scale()
        shown = "".join(f"<p>{coloured_html(each, limit, scale)}</p>" for each in self.scores[:8])
        alarms = [] if limit is None else self.alarms
        rows = [(at.text, at.place, at.token, at.segment, at.score) for at in alarms]
        table = html_table("Alarms", ["Text", "Token", "Its text", "Segment", "Score"], rows) if rows else ""
        return shown + table

    def coloured(self, text: int = 0) -> Text:
        """One text for a terminal, its tokens coloured by score."""
        return coloured_text(self.scores[text], self._limits[0], self._scale())

    def plot(self, text: int | None = None) -> Figure:
        """Scores along one text, its tokens coloured by them; a band for the probe's scores without the thing.

        Args:
            text: its number; by default the first with an alarm, else the first.

        Raises:
            SteeringError: nothing was written yet, there is no such text, or several probes.
        """
        written = [number for number, each in enumerate(self.scores) if len(each)]
        if not written or (text is not None and text not in written):
            raise SteeringError(
                "Nothing was written here; generate inside the watch first, and name a text that goes on."
            )
        alarms = [] if self._limits[0] is None else self.alarms
        number = text if text is not None else (alarms[0].text if alarms else written[0])
        known = self.probes[0].calibration
        band = None if known is None else np.quantile(known.scores.numpy(), [0.025, 0.975])
        return scores_figure(self.scores[number], number, self._limits[0], band)

    def _scale(self) -> tuple[float, float]:
        """Scores between which colours go: the calibration's middle, and the threshold or the largest score."""
        known = self.probes[0].calibration
        every = np.concatenate([each.values for each in self.scores] or [np.zeros(1)])
        low = float(np.median(every if known is None else known.scores.numpy())) if len(every) else 0.0
        high = self._limits[0] if self._limits[0] is not None else float(every.max(initial=low))
        return low, max(high, low + 1e-6)


# -- private --


def _hash(probe: int | Direction) -> str | None:
    return probe.hash if isinstance(probe, Direction) else None


@dataclass(eq=False)
class _Batch:
    """The passes of one batch, from its first token on."""

    passes: list[Pass]

    @property
    def frame(self) -> Frame:
        return self.passes[0].frame

    def takes(self, frame: Frame) -> bool:
        """Whether a later pass goes on with this batch."""
        mine = self.frame
        if frame.tokens is not None or mine.tokens is not None:
            return frame.tokens is mine.tokens
        return frame.batch == mine.batch and frame.width == mine.width


def _calls(passes: Sequence[Pass]) -> list[Call]:
    """The calls of `generate` among the passes."""
    calls = {id(each.frame.call): each.frame.call for each in passes if each.frame.call is not None}
    return list(calls.values())


def _texts(model: LanguageModel, passes: Sequence[Pass], probe: int) -> Iterator[Scores]:
    found: dict[tuple[int, int], Scores] = {}
    known: dict[int, int] = {}
    for batch in _batches(passes):
        call = batch.frame.call
        number = known.setdefault(id(call or batch), len(known))
        for row, count in call.written.items() if call is not None else ():
            if not count:  # no room for a token, so no pass
                found[number, row] = _nothing(call.prompts[row]) if call is not None else found[number, row]
        for row, scores in _rows(model, batch, probe):
            found[number, row] = scores  # a batch that ran again, in halves, takes the first one's place
    return (found[key] for key in sorted(found))


def _batches(passes: Sequence[Pass]) -> list[_Batch]:
    batches: list[_Batch] = []
    for each in passes:
        if each.frame.start == 0:
            batches.append(_Batch([each]))
            continue
        going = next((batch for batch in reversed(batches) if batch.takes(each.frame)), None)
        if going is not None:  # else the watch began in the middle of a text
            going.passes.append(each)
    return batches


def _rows(model: LanguageModel, batch: _Batch, probe: int) -> Iterator[tuple[int, Scores]]:
    frame = batch.frame
    total = max(each.frame.start + each.frame.length for each in batch.passes)
    values, ids = torch.full((frame.batch, total), torch.nan), torch.full((frame.batch, total), -1)
    for each in batch.passes:
        columns = slice(each.frame.start, each.frame.start + each.frame.length)
        if probe in each.scores:
            values[:, columns] = each.scores[probe].cpu()
        if each.frame.inputs is not None:
            ids[:, columns] = each.frame.inputs.cpu()
    prompt = frame.prompt
    for row, number in enumerate(frame.rows):
        first = prompt.column(row, 0)
        asked = slice(first, first + prompt.lengths[row])
        written = _written(model, frame, row, number, ids[row, frame.width :].tolist())
        behind = slice(frame.width, frame.width + len(written))
        if bool(values[row, asked].isnan().all()) and not len(written):
            continue  # a pass that ended before the probe's site
        text = prompt.prompts[row] if prompt.prompts else Prompt("")
        yield (
            number,
            Scores(
                prompt=text,
                values=values[row, behind].double().numpy(),
                tokens=pieces(model.tokenizer, written),
                segments=segments(model.tokenizer, text.text, written),
                text=decoded(model.tokenizer, written),
                prompt_values=values[row, asked].double().numpy(),
                prompt_tokens=pieces(model.tokenizer, ids[row, asked].tolist()),
                token_ids=tuple(written),
            ),
        )


def _nothing(prompt: Prompt) -> Scores:
    """A prompt behind which there was no room."""
    none = np.zeros(0)
    return Scores(prompt, none, (), (), "", none, (), ())


def _written(model: LanguageModel, frame: Frame, row: int, number: int, ids: list[int]) -> list[int]:
    """The written tokens of a row that were read.

    What a longer row of the batch, an assistant's proposals or padding left behind them is not among them, and neither
    is the end token, which is read only where a batch goes on.
    """
    if frame.written is not None:  # read again: all of them
        return ids[: frame.written[row]]
    known = None if frame.call is None else frame.call.written.get(number)
    if known is not None:
        ids = ids[: max(known - 1, 0)]
    ends = frame.ends or end_token_ids(model)
    return ids[: next((at for at, token in enumerate(ids) if token in ends or token < 0), len(ids))]


def _before(scores: Sequence[Scores], number: int) -> int | None:
    """The latest earlier text whose prompt and answer the prompt of this one begins with; thinking may be gone."""
    text = scores[number].prompt.text
    for earlier in reversed(range(number)):
        begun = scores[earlier].prompt.text
        said = (behind_thinking(begun, scores[earlier].text) or scores[earlier].text).strip()
        if begun and text.startswith(begun) and said in text[len(begun) :]:
            return earlier
    return None
