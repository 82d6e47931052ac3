"""A conversation in the terminal with a steered model, its unsteered answer beside it.

Each side keeps the history of its own answers. Lines that begin with a slash are commands:

    /strength VALUE [NUMBER]   set the strength of every direction, or of one as /show numbers them
    /steer on|off              apply the interventions, or none
    /beside on|off             show the unsteered answer, too
    /show, /reset, /help, /quit

Without a terminal answers are printed plainly, piece by piece, so a conversation can be piped in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from steerlab.errors import SteeringError, SteerlabError
from steerlab.monitoring import Alarm, Seen
from steerlab.showing import visible
from steerlab.steering import Add

if TYPE_CHECKING:
    from steerlab.directions import Direction
    from steerlab.models import Edit, LanguageModel

Side = Literal["steered", "unsteered"]
_COMMANDS = "/strength VALUE [NUMBER], /steer on|off, /beside on|off, /show, /reset, /help, /quit"
#: Where a model that speaks plainly begins to write the user's next line.
_NEXT_TURN = "\nUser:"


@dataclass
class Chat:
    """One conversation.

    Attributes:
        model: the model.
        edits: the interventions of the steered side.
        console: where it is shown.
        template: "auto", "chat" or "plain".
        max_new_tokens: the longest answer.
        temperature: 0 is greedy.
        seed: of the first answer; the next one takes the next number.
        steering: whether the interventions are applied.
        beside: whether the unsteered answer is shown beside the steered one.
        probe: a direction whose score of every written token is shown as a line of colour under the answers.
        alarm: with the probe, what is underlined and told.
    """

    model: LanguageModel
    edits: list[Edit]
    console: Console
    template: Literal["auto", "chat", "plain", "none"] = "auto"
    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    steering: bool = True
    beside: bool = True
    probe: Direction | None = None
    alarm: Alarm | None = None
    _turns: dict[Side, list[tuple[str, str]]] = field(init=False, default_factory=dict)
    _sounded: set[Side] = field(init=False, default_factory=set)

    def run(self, lines: Iterable[str]) -> None:
        """Answer line by line until they end or one is /quit; a wrong command shows its error and changes nothing."""
        for line in lines:
            text = line.strip()
            if text == "/quit":
                return
            try:
                if text.startswith("/"):
                    self.command(text)
                elif text:
                    self.answer(text)
            except SteerlabError as error:
                self._say(str(error))

    def answer(self, text: str) -> dict[Side, str]:
        """Answer one user's text on every side that is shown; an interrupt ends the answer, not the conversation."""
        sides = self._sides()
        answers: dict[Side, str] = dict.fromkeys(sides, "")
        prompts = {
            side: self.model.conversation_prompt(
                [*self._turns.get(side, []), ("user", text)], template=self.template
            )
            for side in sides
        }
        seen: dict[Side, Seen] = {}
        try:
            with _display(self.console, sides) as show:
                for side in sides:
                    with self._context(side), self._watching() as watched:
                        if watched is not None:
                            seen[side] = watched
                        pieces = self._stream(prompts[side])
                        for piece in pieces:
                            answers[side] += piece
                            show(side, piece)
        except KeyboardInterrupt:
            self._say("Stopped.")
        for side, each in seen.items():
            self._show_scores(side, each)
        for side, answer in answers.items():
            self._turns.setdefault(side, []).extend([("user", text), ("assistant", answer)])
        self.seed += 1
        return answers

    def command(self, line: str) -> None:
        """Carry out a slash command.

        Raises:
            SteeringError: an unknown command or a wrong argument.
        """
        name, *arguments = line.split()
        match name, arguments:
            case "/strength", [value, *which] if len(which) < 2:
                self._set_strength(value, which[0] if which else None)
            case "/steer", ["on" | "off" as state]:
                self.steering = state == "on"
            case "/beside", ["on" | "off" as state]:
                self.beside = state == "on"
            case "/reset", []:
                self._turns.clear()
                self._sounded.clear()
            case "/show", []:
                pass
            case "/help", []:
                self._say(_COMMANDS)
                return
            case _:
                raise SteeringError(f"{line!r} is not understood; the commands are {_COMMANDS}.")
        self._say(self.state())

    def state(self) -> str:
        """The interventions with their numbers and strengths, in one line."""
        told = [
            f"{number}: {edit.direction.estimator} {edit.strength}"
            if isinstance(edit, Add)
            else f"{number}: {type(edit).__name__.lower()}"
            for number, edit in enumerate(self.edits, start=1)
        ]
        return f"steering {'on' if self.steering and self.edits else 'off'} ({'; '.join(told) or 'nothing to apply'})"

    def _set_strength(self, value: str, which: str | None) -> None:
        try:
            strength = float(value)
        except ValueError:
            strength = math.nan
        if not math.isfinite(strength):
            raise SteeringError(f"{value!r} is not a strength; write a number such as 0.5.")
        numbers = {
            str(number): place
            for place, (number, edit) in enumerate(enumerate(self.edits, start=1))
            if isinstance(edit, Add)
        }
        if which is not None and which not in numbers:
            raise SteeringError(f"There is no direction {which!r} with a strength; /show lists them.")
        if not numbers:
            raise SteeringError("Nothing here has a strength; start with --steer FILE:STRENGTH.")
        for place in numbers.values() if which is None else [numbers[which]]:
            edit = self.edits[place]
            assert isinstance(edit, Add)
            self.edits[place] = replace(edit, strength=strength)
        self.steering = True

    def _sides(self) -> list[Side]:
        if not (self.edits and self.steering):
            return ["unsteered"]
        return ["steered", "unsteered"] if self.beside else ["steered"]

    def _context(self, side: Side) -> AbstractContextManager[object]:
        return self.model.steering(*self.edits) if side == "steered" else nullcontext()

    def _watching(self) -> AbstractContextManager[Seen | None]:
        if self.probe is None:
            return nullcontext()
        return self.model.watch(self.probe, alarm=self.alarm)

    def _show_scores(self, side: Side, seen: Seen) -> None:
        """The answer again as a line of colour, with the largest score and where the alarm sounded."""
        if not len(seen) or not len(seen.scores[0]):
            return
        top = max(seen.scores[0])
        told = f"{side}, largest score {top:.3g}"
        if self.alarm is not None:
            told += f", {self._alarm(side, seen)}"
        line = seen.coloured()
        line.append(f"  ({told})", style="dim")
        self.console.print(line, soft_wrap=True)

    def _alarm(self, side: Side, seen: Seen) -> str:
        """Where the alarm sounds; per conversation once."""
        if self.alarm is not None and self.alarm.per == "conversation" and side in self._sounded:
            return "alarm in an earlier answer"
        if not seen.alarms:
            return "no alarm"
        self._sounded.add(side)
        return f"alarm at token {seen.alarms[0].place}"

    def _stream(self, prompt: object) -> Iterator[str]:
        written = self.model.stream(
            prompt,  # type: ignore[arg-type]
            max_new_tokens=self.max_new_tokens,
            do_sample=self.temperature > 0,
            temperature=self.temperature or 1.0,
            seed=self.seed,
        )
        return until(written, _NEXT_TURN) if getattr(prompt, "template", "") == "plain" else written

    def _say(self, sentence: str) -> None:
        self.console.print(Text(visible(sentence), style="dim"), soft_wrap=True)


def until(pieces: Iterable[str], stop: str) -> Generator[str, None, None]:
    """The pieces up to `stop`, which may lie across several; what may be its beginning waits."""
    held = ""
    for piece in pieces:
        held += piece
        before, stop_text, _ = held.partition(stop)
        if stop_text:
            if before:
                yield before
            return
        keep = next(size for size in range(len(stop) - 1, -1, -1) if held.endswith(stop[:size]))
        settled, held = held[: len(held) - keep], held[len(held) - keep :]
        if settled:
            yield settled
    if held:
        yield held


@contextmanager
def _display(console: Console, sides: Sequence[Side]) -> Iterator[Callable[[Side, str], None]]:
    """A function that shows the next piece of a side: in columns on a terminal, else as running text."""
    if console.is_terminal:
        texts = {side: Text() for side in sides}

        def grow(side: Side, piece: str) -> None:
            texts[side].append(visible(piece))

        width = console.width // len(sides)
        boxes = Columns([Panel(texts[side], title=side, width=width) for side in sides], padding=0)
        with Live(boxes, console=console, refresh_per_second=12, vertical_overflow="visible"):
            yield grow
        return
    current: list[Side] = []

    def show(side: Side, piece: str) -> None:
        if current != [side]:
            console.print(f"{chr(10) if current else ''}{side}: ", end="", markup=False, highlight=False)
            current[:] = [side]
        console.out(visible(piece), end="", highlight=False)

    try:
        yield show
    finally:
        console.print()
