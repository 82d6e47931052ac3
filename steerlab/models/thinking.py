"""Thinking blocks: where an answer begins in what a reasoning model writes, and how a prompt closes the block.

A template may open the block itself (DeepSeek-R1's generation prompt ends in `<think>\\n`), or leave it to the model
(Qwen3). Either way the answer lies behind the closing tag. What reads an answer's first token wants a prompt behind
which the answer begins: then the block is there and empty, `<think>\\n\\n</think>\\n\\n`, as Qwen3's template writes it
with `enable_thinking=False`. Tags are told by their names (`<think>`, `<seed:think>`, `[THINK]`, `<|START_THINKING|>`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from steerlab.models.generation import Generation
from steerlab.models.prompts import Prompt

if TYPE_CHECKING:
    from steerlab.models.language_model import LanguageModel

Thinking = Literal["none", "open", "closed"]
_NAME = r"[\w:]*(?:think|thought|reason)[\w:]*"
_OPENING = re.compile(rf"<{_NAME}>|\[{_NAME}\]|<\|(?:start|begin)[\w ]*(?:think|thought|reason)\w*\|>", re.I)
_CLOSING = re.compile(rf"</{_NAME}>|\[/{_NAME}\]|<\|end[\w ]*(?:think|thought|reason)\w*\|>", re.I)


def thinking_in(text: str) -> Thinking:
    """Whether a rendered prompt ends in a thinking block it opened, in one it closed, or in none."""
    ending = text.rstrip()
    if (tag := _last(_OPENING, text)) and ending.endswith(tag):
        return "open"
    return "closed" if (tag := _last(_CLOSING, text)) and ending.endswith(tag) else "none"


def closed(text: str) -> str:
    """A rendered prompt whose opened thinking block is closed and empty; any other is given back as it is."""
    if thinking_in(text) != "open":
        return text
    tag = _last(_OPENING, text)
    return f"{text.rstrip()}\n\n{_closing_of(tag)}\n\n"


def behind_thinking(prompt: str, written: str) -> str | None:
    """What stands behind the thinking block of a text written after a prompt; None where the block never ends."""
    ends = list(_CLOSING.finditer(written))
    if ends:
        return written[ends[0].end() :]
    begun = thinking_in(prompt) == "open" or _OPENING.match(written.lstrip())
    return None if begun else written


def answer_in(model: LanguageModel, prompt: Prompt, written: Generation) -> str | None:
    """The answer that a model wrote, without its thinking block and special tokens; None where the block never ends.

    Tags that are special tokens, which a generation's text leaves out, are seen as well.
    """
    tokenizer = model.tokenizer
    whole = tokenizer.decode(
        list(written.token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    answer = behind_thinking(prompt.text, whole)
    if answer is None or answer == whole:
        return answer and written.text
    for token in tokenizer.all_special_tokens:
        answer = answer.replace(token, "")
    return answer


def thinking_before_answers(model: LanguageModel) -> Thinking:
    """What stands of a thinking block in the model's own chat prompts where an answer's first token is read."""
    if not model.has_chat_template:
        return "none"
    return thinking_in(model.instruction_prompt("What is a cat?", template="chat", think=False).text)


# -- private --


def _last(tag: re.Pattern[str], text: str) -> str:
    """The last tag of the kind in a text; empty where there is none."""
    found = tag.findall(text)
    return str(found[-1]) if found else ""


def _closing_of(opening: str) -> str:
    if opening.startswith("<|"):
        return re.sub("start|begin", lambda word: "END" if word[0].isupper() else "end", opening, flags=re.I)
    return f"{opening[0]}/{opening[1:]}"
