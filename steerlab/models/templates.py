"""From a user's text to a prompt: the tokenizer's chat template, the plain `User:`/`Assistant:` form, or the bare text.

The prompt remembers where the user's words and the answer's opening are, as the spans "instruction" and "response".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from steerlab.errors import PromptError, kind_of, reason
from steerlab.models.bounded import bounded
from steerlab.models.messages import Message, is_conversation, plain_messages
from steerlab.models.prompts import Prompt, Template
from steerlab.models.thinking import closed

_SENTINEL = "\u2063steerlab\u2063"


def render(
    tokenizer: Any,
    text: str,
    *,
    template: Template = "auto",
    system: str | None = None,
    response: str = "",
    think: bool | None = None,
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
        asked = [{"role": "system", "content": system}] if system else []
        return _opened(
            _chat(
                tokenizer, [*asked, {"role": "user", "content": text}],
                not response if think is None else think, options or {},
            ),
            response,
        )  # fmt: skip
    head = f"{system}\n\n" if system else ""
    if template == "none":
        return _join(head, text, "", response, special=False, template="none")
    glue = "\nAssistant:" if not response or response[0].isspace() else "\nAssistant: "
    return _join(f"{head}User: ", text, glue, response, special=False, template="plain")


def render_conversation(
    tokenizer: Any,
    turns: Any,
    *,
    template: Template = "auto",
    system: str | None = None,
    think: bool | None = None,
    options: Mapping[str, Any] | None = None,
) -> Prompt:
    """Turns of a conversation, or its messages; see `LanguageModel.conversation_prompt`."""
    messages = plain_messages(turns) if is_conversation(turns) else _of_turns(turns)
    if system:
        messages = [{"role": "system", "content": system}, *messages]
    has_chat = has_chat_template(tokenizer)
    if template == "chat" and not has_chat:
        raise PromptError("The tokenizer has no chat template; use template='plain'.")
    if template == "chat" or (template == "auto" and has_chat):
        return _chat(tokenizer, messages, think, options or {})
    return _plain(messages)


def has_chat_template(tokenizer: Any) -> bool:
    """Whether the tokenizer carries a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def _chat(tokenizer: Any, messages: list[Message], think: bool | None, options: Mapping[str, Any]) -> Prompt:
    """The last user's text is the span "instruction"; an assistant's last one is continued, and is "response"."""
    *_, last = messages
    response = "" if last["role"] != "assistant" else last["content"]
    think = not response if think is None else think
    asked = "enable_thinking" in options  # then the caller decides, and nothing is closed
    if not think and not asked and "enable_thinking" in str(tokenizer.chat_template):
        options = {**options, "enable_thinking": False}
    rendered = _apply(tokenizer, messages, options)
    if not think and not asked:
        rendered = closed(rendered)
    special = bool(tokenizer.bos_token) and rendered.startswith(tokenizer.bos_token)
    spans = {}
    if (place := _last_of_user(messages)) is not None:
        spans["instruction"] = _span(tokenizer, messages, place, rendered, options)
    if response:
        start = rendered.rfind(response.strip())
        spans["response"] = (start, len(rendered))
    return Prompt(rendered, spans, has_special_tokens=special, template="chat")


def _span(
    tokenizer: Any, messages: list[Message], place: int, rendered: str, options: Mapping[str, Any]
) -> tuple[int, int]:
    """Where the template puts the text of one message."""
    text = messages[place]["content"]
    marked = [*messages[:place], {**messages[place], "content": _SENTINEL}, *messages[place + 1 :]]
    before, sentinel, after = _apply(tokenizer, marked, options).partition(_SENTINEL)
    if not sentinel:
        raise PromptError("The chat template does not contain the user's text; use template='plain'.")
    after = closed(after) if rendered.endswith(closed(after)) else after
    inner = rendered[len(before) : len(rendered) - len(after)]
    if rendered == before + inner + after and inner.strip() == text.strip():
        return len(before), len(before) + len(inner)
    # A template that treats this text in a way of its own: look for the words themselves.
    start = rendered.rfind(text.strip())
    if start < 0:
        raise PromptError("The chat template does not keep the instruction's text; use template='plain'.")
    return start, start + len(text.strip())


def _last_of_user(messages: Sequence[Message]) -> int | None:
    places = [at for at, message in enumerate(messages) if message["role"] == "user" and message["content"]]
    return places[-1] if places else None


def _of_turns(turns: Sequence[tuple[str, str]]) -> list[Message]:
    roles = [role for role, _ in turns]
    if not turns or roles != ["user", "assistant"] * (len(turns) // 2) + ["user"] or not turns[-1][1].strip():
        raise PromptError(
            "A conversation is user, assistant, user, ... and ends with a user's text; give ('user', 'text') last."
        )
    return [{"role": role, "content": text} for role, text in turns]


def _plain(messages: Sequence[Message]) -> Prompt:
    """`User: …`, `Assistant: …` line by line; a system message stands above."""
    lines, spans, text = {"user": "User:", "assistant": "Assistant:"}, {}, ""
    for message in messages:
        if message["role"] == "system" and not text:
            text = f"{message['content']}\n\n"
        elif message["role"] not in lines:
            raise PromptError(
                f"The plain form has no place for a {message['role']!r} message; give a tokenizer with a chat template."
            )
        else:
            text += f"{lines[message['role']]} "
            name = "instruction" if message["role"] == "user" else "response"
            spans[name] = (len(text), len(text) + len(message["content"]))
            text += f"{message['content']}\n"
    if messages[-1]["role"] == "assistant":
        return Prompt(text.removesuffix("\n"), spans, template="plain")
    spans.pop("response", None)
    return Prompt(f"{text}Assistant:", spans, template="plain")


def _apply(tokenizer: Any, messages: Sequence[Message], options: Mapping[str, Any]) -> str:
    unread = [name for name in options if name not in str(tokenizer.chat_template)]
    if unread:
        raise PromptError(f"The chat template reads no {', '.join(unread)}; leave it out.")
    goes_on = messages[-1]["role"] == "assistant"
    system = next((message["content"] for message in messages if message["role"] == "system"), "")
    try:
        with bounded(tokenizer, options.get("tools")):
            rendered = _rendered(tokenizer, messages, {**options, "add_generation_prompt": not goes_on})
    except PromptError:
        raise
    except Exception as error:  # templates are programs: jinja raises whatever they raise
        if system:
            raise PromptError(
                f"The chat template takes no system message ({reason(error)}); leave `system` out."
            ) from error
        raise PromptError(f"The chat template fails ({reason(error)}); use template='plain'.") from error
    if system and system.strip() not in rendered:
        raise PromptError(
            "The chat template drops the system message; leave `system` out or write it into the text."
        )
    return rendered


def _rendered(tokenizer: Any, messages: Sequence[Message], options: Mapping[str, Any]) -> str:
    """The messages as the template writes them; those of multimodal models may drop what is not in a list of parts."""

    def written(shape: Sequence[Mapping[str, Any]]) -> str:
        goes_on = not options["add_generation_prompt"]
        return str(
            tokenizer.apply_chat_template(shape, tokenize=False, continue_final_message=goes_on, **options)
        )

    plain = written([dict(message) for message in messages])
    text = str(messages[-1]["content"] or "").strip()
    if text in plain:
        return plain
    in_parts = written(
        [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in messages]
    )
    return in_parts if text in in_parts else plain


def _opened(prompt: Prompt, response: str) -> Prompt:
    """The prompt with the opening of an answer behind it."""
    if not response:
        return prompt
    text = prompt.text + response
    spans = {**prompt.spans, "response": (len(prompt.text), len(text))}
    return replace(prompt, text=text, spans=spans)


def _join(before: str, text: str, after: str, response: str, *, special: bool, template: str) -> Prompt:
    spans = {"instruction": (len(before), len(before) + len(text))}
    start = len(before) + len(text) + len(after)
    if response:
        spans["response"] = (start, start + len(response))
    return Prompt(before + text + after + response, spans, has_special_tokens=special, template=template)
