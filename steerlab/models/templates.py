"""From a user's text to a prompt: the tokenizer's chat template, the plain `User:`/`Assistant:` form, or the bare text.

The prompt remembers where the user's words and the answer's opening are, as the spans "instruction" and "response".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steerlab.errors import PromptError, kind_of
from steerlab.models.prompts import Prompt, Template

_SENTINEL = "\u2063steerlab\u2063"


def render(
    tokenizer: Any,
    text: str,
    *,
    template: Template = "auto",
    system: str | None = None,
    response: str = "",
    options: Mapping[str, Any] | None = None,
) -> Prompt:
    """Put a user's text into the form the model answers to; see `LanguageModel.instruction_prompt`."""
    if not isinstance(text, str):
        raise PromptError(f"An instruction is one text, not {kind_of(text)}; render each text by itself.")
    if not text.strip():
        raise PromptError("The instruction is empty; give it a text.")
    kinds = ("auto", "chat", "plain", "none")
    if template not in kinds:
        raise PromptError(f"There is no template called {template!r}; choose one of {', '.join(kinds)}.")
    has_chat = has_chat_template(tokenizer)
    if template == "chat" and not has_chat:
        raise PromptError("The tokenizer has no chat template; use template='plain' or 'none'.")
    if template == "chat" or (template == "auto" and has_chat):
        return _chat(tokenizer, text, system, response, options or {})
    head = f"{system}\n\n" if system else ""
    if template == "none":
        return _join(head, text, "", response, special=False, template="none")
    glue = "\nAssistant:" if not response or response[0].isspace() else "\nAssistant: "
    return _join(f"{head}User: ", text, glue, response, special=False, template="plain")


def render_conversation(
    tokenizer: Any,
    turns: Sequence[tuple[str, str]],
    *,
    template: Template = "auto",
    system: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Prompt:
    """Turns of a conversation, the last one a user's; see `LanguageModel.conversation_prompt`."""
    roles = [role for role, _ in turns]
    if not turns or roles != ["user", "assistant"] * (len(turns) // 2) + ["user"] or not turns[-1][1].strip():
        raise PromptError(
            "A conversation is user, assistant, user, ... and ends with a user's text; give ('user', 'text') last."
        )
    has_chat = has_chat_template(tokenizer)
    if template == "chat" and not has_chat:
        raise PromptError("The tokenizer has no chat template; use template='plain'.")
    if template == "chat" or (template == "auto" and has_chat):
        rendered = _apply_messages(tokenizer, turns, system, options or {})
        special = bool(tokenizer.bos_token) and rendered.startswith(tokenizer.bos_token)
        return Prompt(rendered, has_special_tokens=special, template="chat")
    head = f"{system}\n\n" if system else ""
    told = "\n".join(f"{role.capitalize()}: {text}" for role, text in turns)
    return Prompt(f"{head}{told}\nAssistant:", template="plain")


def has_chat_template(tokenizer: Any) -> bool:
    """Whether the tokenizer carries a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def _chat(tokenizer: Any, text: str, system: str | None, response: str, options: Mapping[str, Any]) -> Prompt:
    before, after = _around(tokenizer, system, options)
    rendered = _apply_template(tokenizer, text, system, options)
    inner = rendered[len(before) : len(rendered) - len(after)]
    if rendered != before + inner + after or inner.strip() != text.strip():
        # A template that treats this text in a way of its own: look for the words themselves.
        start = rendered.rfind(text.strip())
        if start < 0:
            raise PromptError("The chat template does not keep the instruction's text; use template='plain'.")
        inner = text.strip()
        before, after = rendered[:start], rendered[start + len(inner) :]
    special = bool(tokenizer.bos_token) and rendered.startswith(tokenizer.bos_token)
    return _join(before, inner, after, response, special=special, template="chat")


def _around(tokenizer: Any, system: str | None, options: Mapping[str, Any]) -> tuple[str, str]:
    """What the template writes before and after the user's text."""
    rendered = _apply_template(tokenizer, _SENTINEL, system, options)
    before, sentinel, after = rendered.partition(_SENTINEL)
    if not sentinel:
        raise PromptError("The chat template does not contain the user's text; use template='plain'.")
    return before, after


def _apply_template(tokenizer: Any, text: str, system: str | None, options: Mapping[str, Any]) -> str:
    return _apply_messages(tokenizer, [("user", text)], system, options)


def _apply_messages(
    tokenizer: Any, turns: Sequence[tuple[str, str]], system: str | None, options: Mapping[str, Any]
) -> str:
    unread = [name for name in options if name not in str(tokenizer.chat_template)]
    if unread:
        raise PromptError(f"The chat template reads no {', '.join(unread)}; leave it out.")
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": role, "content": text} for role, text in turns]
    try:
        rendered = _rendered(tokenizer, messages, options)
    except Exception as error:  # templates are programs: jinja raises whatever they raise
        if system:
            raise PromptError(
                f"The chat template takes no system message ({error}); leave `system` out."
            ) from error
        raise PromptError(f"The chat template fails ({error}); use template='plain'.") from error
    if system and system.strip() not in rendered:
        raise PromptError(
            "The chat template drops the system message; leave `system` out or write it into the text."
        )
    return rendered


def _rendered(tokenizer: Any, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
    """The messages as the template writes them; those of multimodal models may drop what is not in a list of parts."""

    def written(shape: Sequence[Mapping[str, Any]]) -> str:
        return str(
            tokenizer.apply_chat_template(shape, tokenize=False, add_generation_prompt=True, **options)
        )

    plain, text = written(messages), messages[-1]["content"].strip()
    if text in plain:
        return plain
    in_parts = written(
        [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in messages]
    )
    return in_parts if text in in_parts else plain


def _join(before: str, text: str, after: str, response: str, *, special: bool, template: str) -> Prompt:
    spans = {"instruction": (len(before), len(before) + len(text))}
    start = len(before) + len(text) + len(after)
    if response:
        spans["response"] = (start, start + len(response))
    return Prompt(before + text + after + response, spans, has_special_tokens=special, template=template)
