"""The conversation: two histories, commands, errors and interrupts, on a terminal and through a pipe."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from families import tiny
from rich.console import Console

from steerlab.chat import Chat, until
from steerlab.directions import Direction
from steerlab.errors import SteeringError
from steerlab.models import LanguageModel, PromptError, Site
from steerlab.showing import visible
from steerlab.steering import Ablate, Add


def edits_of(model: LanguageModel) -> list[Any]:
    rows = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    made = Direction({Site("resid_post", 1): rows}, model.name, model.fingerprint)
    return [Add(made, strength=3.0), Ablate(made)]


def talk(model: LanguageModel, edits: list[Any], **options: Any) -> tuple[Chat, io.StringIO]:
    shown = io.StringIO()
    return Chat(model, edits, Console(file=shown, width=80), max_new_tokens=8, **options), shown


def expected(model: LanguageModel, turns: list[tuple[str, str]], *edits: Any, template: str = "auto") -> str:
    prompt = model.conversation_prompt(turns, template=template)  # type: ignore[arg-type]
    if not edits:
        return model.generate([prompt], max_new_tokens=8)[0].text
    with model.steering(*edits):
        return model.generate([prompt], max_new_tokens=8)[0].text


def test_each_side_answers_on_its_own_history(tiny_llama: LanguageModel) -> None:
    edits = edits_of(tiny_llama)
    chat, shown = talk(tiny_llama, edits)
    first = chat.answer("Is a cat an animal?")
    second = chat.answer("And a dog?")
    for side, used in (("steered", edits), ("unsteered", [])):
        turns = [("user", "Is a cat an animal?")]
        assert first[side] == expected(tiny_llama, turns, *used)
        turns += [("assistant", first[side]), ("user", "And a dog?")]
        assert second[side] == expected(tiny_llama, turns, *used)
    assert first["steered"] != first["unsteered"]
    for answer in (*first.values(), *second.values()):
        assert visible(answer).splitlines()[0] in shown.getvalue()


def test_commands_change_what_the_next_answer_is(tiny_llama: LanguageModel) -> None:
    add, ablate = edits_of(tiny_llama)
    chat, shown = talk(tiny_llama, [add])
    chat.run(["/strength 0.5", "/beside off"])
    weaker = Add(add.direction, strength=0.5)
    assert chat.answer("Rome?") == {"steered": expected(tiny_llama, [("user", "Rome?")], weaker)}
    chat.run(["/reset", "/steer off"])
    assert chat.answer("Rome?") == {"unsteered": expected(tiny_llama, [("user", "Rome?")])}
    chat.run(["/steer on", "/beside on", "/show", "/help"])
    assert set(chat.answer("Rome?")) == {"steered", "unsteered"}
    assert "1: given 0.5" in shown.getvalue()
    both, _ = talk(tiny_llama, [ablate, add])
    both.command("/strength -1 2")
    assert both.edits[1].strength == -1.0
    with pytest.raises(SteeringError, match="no direction '1' with a strength"):
        both.command("/strength -1 1")
    nothing, _ = talk(tiny_llama, [])
    with pytest.raises(SteeringError, match="Nothing here has a strength"):
        nothing.command("/strength 1")
    assert set(nothing.answer("Rome?")) == {"unsteered"}


def test_what_is_not_understood_is_told_and_costs_nothing(tiny_llama: LanguageModel) -> None:
    chat, shown = talk(tiny_llama, edits_of(tiny_llama))
    chat.run(
        ["/bogus", "/strength", "/strength much", "/steer perhaps", "", "R" * 500, "/quit", "never read"]
    )
    said = shown.getvalue()
    assert said.count("not understood") == 3
    assert "'much' is not a strength" in said
    assert "context holds 64" in said
    assert chat._turns == {}


def test_a_model_without_a_template_speaks_plainly_and_stops_at_the_next_turn() -> None:
    model = tiny("gpt2", bos=False)
    chat, _ = talk(model, [])
    answer = chat.answer("Is a cat an animal?")["unsteered"]
    assert answer == expected(model, [("user", "Is a cat an animal?")])
    prompt = model.conversation_prompt([("user", "a"), ("assistant", "b"), ("user", "c")])
    assert prompt.text == "User: a\nAssistant: b\nUser: c\nAssistant:"
    with pytest.raises(PromptError, match="no chat template"):
        model.conversation_prompt([("user", "a")], template="chat")


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_text_ends_where_the_next_turn_begins(size: int) -> None:
    text = "A cat.\nUs\nUser: and a dog?\nAssistant: no"
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    assert "".join(until(pieces, "\nUser:")) == "A cat.\nUs"
    assert "".join(until(["A cat.", "\nUse"], "\nUser:")) == "A cat.\nUse"


@pytest.mark.parametrize("turns", [[], [("assistant", "a")], [("user", "a"), ("user", "b")], [("user", " ")]])
def test_conversations_alternate(tiny_llama: LanguageModel, turns: list[tuple[str, str]]) -> None:
    with pytest.raises(PromptError, match="ends with a user's text"):
        tiny_llama.conversation_prompt(turns)


def test_one_turn_is_an_instruction(tiny_llama: LanguageModel) -> None:
    text = "Is a cat an animal?"
    assert tiny_llama.conversation_prompt([("user", text)]).text == tiny_llama.instruction_prompt(text).text


def test_an_interrupt_ends_the_answer_only(
    tiny_llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat, shown = talk(tiny_llama, edits_of(tiny_llama))

    def _interrupted(prompt: object, **options: object) -> Iterator[str]:
        yield "half an"
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny_llama, "stream", _interrupted)
    assert chat.answer("Rome?") == {"steered": "half an", "unsteered": ""}
    monkeypatch.undo()
    assert "Stopped." in shown.getvalue()
    assert set(chat.answer("Rome?")) == {"steered", "unsteered"}


def test_a_terminal_shows_columns(tiny_llama: LanguageModel) -> None:
    shown = io.StringIO()
    console = Console(file=shown, width=80, force_terminal=True, color_system=None)
    Chat(tiny_llama, edits_of(tiny_llama), console, max_new_tokens=4).answer("Rome?")
    line = next(line for line in shown.getvalue().splitlines() if " steered " in line)
    assert " unsteered " in line


@pytest.mark.parametrize("terminal", [True, False])
def test_escape_sequences_of_a_model_do_not_reach_the_terminal(
    terminal: bool, tiny_llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()
    console = Console(file=shown, width=80, force_terminal=terminal, color_system=None)
    chat = Chat(tiny_llama, [], console)
    written = "\x1b]0;owned\x07 a\r\x9b2J"
    monkeypatch.setattr(Chat, "_stream", lambda self, prompt: iter(written))
    assert chat.answer("Rome?") == {"unsteered": written}  # what the model said is what it is told
    assert "␛]0;owned␇ a␍\\x9b2J" in shown.getvalue()
    assert not {"\x1b]", "\x07", "\x9b"} & {
        found for found in ("\x1b]", "\x07", "\x9b") if found in shown.getvalue()
    }
    chat.run(["/nothing\x1b[2J"])
    assert "\x1b[2J" not in shown.getvalue()


def test_a_probe_shows_a_line_of_colour_under_each_answer(tiny_llama: LanguageModel) -> None:
    edits = edits_of(tiny_llama)
    probe = edits[0].direction
    chat, shown = talk(tiny_llama, edits, probe=probe)
    answers = chat.answer("What is a cat?")
    assert shown.getvalue().count("largest score") == 2
    with tiny_llama.watch(probe) as seen:
        tiny_llama.generate(
            tiny_llama.instruction_prompt("What is a cat?"), max_new_tokens=chat.max_new_tokens
        )
    assert f"unsteered, largest score {max(seen.scores[0]):.3g}" in shown.getvalue()
    assert answers["unsteered"].startswith(seen.scores[0].text[:4])
