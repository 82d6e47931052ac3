"""Prompts and tokenised batches: one BOS, explicit positions, either padding side.

`Prompt` is text plus named character spans, which selectors use; `encode` makes a padded batch with explicit
`position_ids`, so that left and right padding give the same states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from steerlab.datasets.frames import row_advice, table_advice
from steerlab.errors import PromptError, kind_of
from steerlab.models.messages import is_conversation
from steerlab.models.positions import Selector

Template = Literal["auto", "chat", "plain", "none"]
PaddingSide = Literal["left", "right"]
WINDOW = 2048  # prompts tokenised at a time
Conversation: TypeAlias = Sequence[Mapping[str, Any]]
"""Chat messages, `{"role": ..., "content": ...}` each, which are one prompt."""


@dataclass(frozen=True)
class Prompt:
    """Text for a model.

    Attributes:
        text: what is tokenised.
        spans: named character spans `(start, end)` of the text; "instruction" marks the user's words,
            "response" the opening of the answer.
        has_special_tokens: the text already contains the BOS, so the tokenizer must add none.
        template: how the text was rendered ("chat", "plain" or "none").
    """

    text: str
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict, hash=False)
    has_special_tokens: bool = False
    template: str = "none"

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise PromptError(f"A prompt's text is {kind_of(self.text)}; give a string.")

    @property
    def asked(self) -> str:
        """The user's words where the prompt marks them, else its whole text."""
        return self.text[slice(*self.spans.get("instruction", (0, len(self.text))))]


PromptsGiven: TypeAlias = "str | Prompt | Conversation | Iterable[str | Prompt | Conversation]"
"""What takes prompts: one, or any number of them."""


def as_prompt(prompt: str | Prompt) -> Prompt:
    """The prompt itself; a plain string becomes `Prompt(text)`."""
    return Prompt(prompt) if isinstance(prompt, str) else prompt


def as_prompts(given: Any, render: Callable[[Conversation], Prompt] | None = None) -> list[str | Prompt]:
    """Prompts as a list: one text, prompt or conversation alone, or any iterable of them (a column of a frame, too).

    Args:
        render: makes a prompt of a conversation (a list of chat messages); where the tokenizer is not known, None.

    Raises:
        PromptError: no prompts, a whole table, chat messages that nothing renders, or something that holds no texts.
    """
    if isinstance(given, str | Prompt):
        return [given]
    if render is not None and is_conversation(given):
        return [render(given)]
    if advice := table_advice(given):
        raise PromptError(f"Prompts come {advice}.")
    if not isinstance(given, Iterable):
        raise PromptError(f"Prompts come as a text or a list of texts, not as {kind_of(given)}; give texts.")
    listed = list(given)
    if not listed:
        raise PromptError("There are no prompts; give a list with at least one prompt.")
    if render is not None:
        listed = [render(prompt) if is_conversation(prompt) else prompt for prompt in listed]
    for row, prompt in enumerate(listed):
        if not isinstance(prompt, str | Prompt):
            raise PromptError(f"Prompt {row} is {row_advice(prompt)}.")
    return listed


@dataclass(frozen=True, eq=False)
class Tokens:
    """One tokenised, padded batch.

    Attributes:
        input_ids: the tokens.
        attention_mask: 1 at real tokens, 0 at padding.
        position_ids: real tokens counted from 0 whatever the padding side.
        offsets: for each prompt the character span of each real token (`None` without a fast tokenizer).
        prompts: the prompts, in order.
        lengths: real tokens of each prompt.
        padding_side: "left" or "right".
        rows: which of the caller's prompts each row is; by default its place in the batch. Calls that sort
            prompts into batches use it to put results back in the caller's order.
    """

    input_ids: Int[Tensor, "batch position"]
    attention_mask: Int[Tensor, "batch position"]
    position_ids: Int[Tensor, "batch position"]
    offsets: tuple[tuple[tuple[int, int], ...], ...] | None
    prompts: tuple[Prompt, ...]
    lengths: tuple[int, ...]
    padding_side: PaddingSide
    rows: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.rows:
            object.__setattr__(self, "rows", tuple(range(len(self.lengths))))

    @classmethod
    def of_ids(cls, ids: Sequence[Sequence[int]]) -> Tokens:
        """A batch of token ids that come from no text, padded on the right."""
        lengths = tuple(map(len, ids))
        mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
        padded = torch.zeros_like(mask)
        for row, tokens in zip(padded, ids, strict=True):
            row[: len(tokens)] = torch.tensor(tokens, dtype=torch.long)
        return cls(
            input_ids=padded,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            offsets=None,
            prompts=tuple(Prompt("") for _ in ids),
            lengths=lengths,
            padding_side="right",
        )

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def width(self) -> int:
        """Columns of the padded batch."""
        return self.input_ids.shape[1]

    def to(self, device: torch.device | str) -> Tokens:
        """The same batch on another device."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            position_ids=self.position_ids.to(device),
        )

    def of_rows(self, rows: Sequence[int]) -> Tokens:
        """The same batch, whose rows are these of the caller's prompts."""
        return replace(self, rows=tuple(rows))

    def take(self, rows: Sequence[int]) -> Tokens:
        """Some rows of the batch, each as often as it is named; each keeps its number among the caller's prompts."""
        index = torch.tensor(rows, dtype=torch.long)
        return Tokens(
            input_ids=self.input_ids[index],
            attention_mask=self.attention_mask[index],
            position_ids=self.position_ids[index],
            offsets=None if self.offsets is None else tuple(self.offsets[row] for row in rows),
            prompts=tuple(self.prompts[row] for row in rows),
            lengths=tuple(self.lengths[row] for row in rows),
            padding_side=self.padding_side,
            rows=tuple(self.rows[row] for row in rows),
        )

    def followed_by(self, written: Sequence[Sequence[int]]) -> Tokens:
        """The batch with what was written behind each of its left-padded rows; shorter rows end in padding.

        Raises:
            PromptError: the batch is padded on the right, or has another number of rows.
        """
        if len(written) != len(self) or (self.padding_side == "right" and len(set(self.lengths)) > 1):
            raise PromptError(
                f"Texts go on behind a batch padded on the left, one a row; here are {len(self)} rows, padded on the "
                f"{self.padding_side}, and {len(written)} texts."
            )
        behind = Tokens.of_ids(written)
        mask = torch.cat([self.attention_mask, behind.attention_mask], dim=1)
        return replace(
            self,
            input_ids=torch.cat([self.input_ids, behind.input_ids], dim=1),
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            offsets=None,
            lengths=tuple(a + b for a, b in zip(self.lengths, behind.lengths, strict=True)),
        )

    def unmasked(self) -> Tokens:
        """A right-padded batch without its mask: in a causal model no token sees the padding behind it."""
        positions = torch.arange(self.width).expand_as(self.input_ids)
        return replace(self, attention_mask=torch.ones_like(self.input_ids), position_ids=positions)

    def column(self, row: int, index: int) -> int:
        """Column of the padded batch where token `index` of the unpadded prompt `row` lies."""
        return index + (self.width - self.lengths[row] if self.padding_side == "left" else 0)

    @property
    def ends(self) -> tuple[Int[Tensor, " batch"], Int[Tensor, " batch"]]:
        """Row and column of each prompt's last token."""
        columns = [self.column(row, length - 1) for row, length in enumerate(self.lengths)]
        return torch.arange(len(self)), torch.tensor(columns)

    def select(self, positions: Selector) -> SelectedTokens:
        """Resolve `positions` in every prompt, in prompt order."""
        selected = [(row, index) for row in range(len(self)) for index in positions.resolve(self, row)]
        rows = torch.tensor([row for row, _ in selected], dtype=torch.long)
        columns = torch.tensor([self.column(row, index) for row, index in selected], dtype=torch.long)
        return SelectedTokens(rows, columns, torch.tensor([index for _, index in selected], dtype=torch.long))


@dataclass(frozen=True, eq=False)
class SelectedTokens:
    """Selected tokens of a batch, on the CPU: `state[rows, columns]` picks them from a padded state.

    Attributes:
        rows: the prompt's row in the batch.
        columns: the padded column.
        indices: the token's index in the unpadded prompt.
    """

    rows: Int[Tensor, " selected"]
    columns: Int[Tensor, " selected"]
    indices: Int[Tensor, " selected"]


def encode(
    tokenizer: Any, prompts: str | Prompt | Iterable[str | Prompt], *, padding_side: PaddingSide = "left"
) -> Tokens:
    """Tokenise and pad on the CPU; see `LanguageModel.tokenize`."""
    if padding_side not in ("left", "right"):
        raise PromptError(f"The padding side is 'left' or 'right', not {padding_side!r}.")
    batch = tuple(as_prompt(prompt) for prompt in as_prompts(prompts))
    encoded = _encode_all(tokenizer, batch, 0)
    lengths = tuple(len(ids) for ids, _ in encoded)
    pad = pad_token_id(tokenizer)
    input_ids = torch.full((len(batch), max(lengths)), pad, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, (ids, _) in enumerate(encoded):
        place = slice(max(lengths) - len(ids), None) if padding_side == "left" else slice(0, len(ids))
        input_ids[row, place] = torch.tensor(ids, dtype=torch.long)
        attention_mask[row, place] = 1
    offsets = tuple(offset for _, offset in encoded if offset is not None)
    return Tokens(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=(attention_mask.cumsum(dim=1) - 1).clamp(min=0),
        offsets=offsets if len(offsets) == len(batch) else None,
        prompts=batch,
        lengths=lengths,
        padding_side=padding_side,
    )


def token_ids(tokenizer: Any, prompts: Sequence[str | Prompt]) -> list[list[int]]:
    """The tokens of each prompt, without padding; some are tokenised at a time."""
    found: list[list[int]] = []
    for start in range(0, len(prompts), WINDOW):
        part = [as_prompt(prompt) for prompt in prompts[start : start + WINDOW]]
        found += [ids for ids, _ in _encode_all(tokenizer, part, start)]
    return found


def pad_token_id(tokenizer: Any) -> int:
    """The id that fills padding: the pad token, else an end token, else 0 (padding is masked anyway)."""
    for choice in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if choice is not None:
            return int(choice)
    return 0


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def added_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids the tokenizer puts before and after a plain text by itself."""
    bare = _ids(tokenizer, "a", special=False)
    whole = _ids(tokenizer, "a", special=True)
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return [], []


def _ids(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])


_Encoded = tuple[list[int], "tuple[tuple[int, int], ...] | None"]


def _encode_all(tokenizer: Any, prompts: Sequence[Prompt], first: int) -> list[_Encoded]:
    """Token ids and character spans of each prompt; `first` is the number of the first one."""
    for row, prompt in enumerate(prompts, first):
        if not prompt.text:
            raise PromptError(f"Prompt {row} is empty; leave it out or give it a text.")
        if not _is_unicode(prompt.text):
            raise PromptError(f"Prompt {row} holds half a character (a lone surrogate); correct its text.")
    before, after = added_tokens(tokenizer)
    encoded: dict[int, _Encoded] = {}
    for special in (True, False):
        rows = [row for row, prompt in enumerate(prompts) if prompt.has_special_tokens != special]
        texts = [prompts[row].text for row in rows]
        for row, (ids, offsets) in zip(rows, _call(tokenizer, texts, special=special), strict=True):
            if special and after and ids[-len(after) :] == after:
                # A prompt is there to be continued: an end mark the tokenizer appends would close it.
                ids, offsets = ids[: -len(after)], offsets and offsets[: -len(after)]
            if not ids:
                raise PromptError(
                    f"Prompt {first + row} ({prompts[row].text!r}) gives no token; give it another text."
                )
            _require_one_bos(tokenizer, ids, uses_bos=tokenizer.bos_token_id in before, row=first + row)
            encoded[row] = (ids, offsets)
    return [encoded[row] for row in range(len(prompts))]


def _call(tokenizer: Any, texts: list[str], *, special: bool) -> list[_Encoded]:
    if not texts:
        return []
    fast = bool(getattr(tokenizer, "is_fast", False))
    # verbose=False: no warning about texts longer than the tokenizer's own idea of a context.
    called = tokenizer(texts, add_special_tokens=special, return_offsets_mapping=fast, verbose=False)
    offsets: list[Any] = called["offset_mapping"] if fast else [None] * len(texts)
    return [
        (list(ids), spans and tuple(spans)) for ids, spans in zip(called["input_ids"], offsets, strict=True)
    ]


def _require_one_bos(tokenizer: Any, ids: list[int], *, uses_bos: bool, row: int) -> None:
    if not uses_bos:
        return
    bos, mark = tokenizer.bos_token_id, tokenizer.bos_token
    if ids[0] != bos:
        raise PromptError(
            f"Prompt {row} does not begin with the tokenizer's {mark!r}; let the tokenizer add it "
            "(has_special_tokens=False) or write it into the text."
        )
    # Where the end token is the same one, later copies are ends of texts; only a doubled start is wrong.
    doubled = ids[1:2] == [bos] if bos == tokenizer.eos_token_id else ids.count(bos) > 1
    if doubled:
        raise PromptError(
            f"Prompt {row} contains {mark!r} more than once; a text that already has it must be given as "
            "Prompt(text, has_special_tokens=True)."
        )


def single_token(tokenizer: Any, word: str) -> int:
    """The one token that `word` is when it continues a text; see `LanguageModel.token_id`."""
    # Encoded behind a newline-free anchor, because some tokenizers put a space before a text's first word.
    anchor = _ids(tokenizer, "a:", special=False)
    both = _ids(tokenizer, f"a:{word}", special=False)
    ids = both[len(anchor) :] if both[: len(anchor)] == anchor else _ids(tokenizer, word, special=False)
    if len(ids) != 1:
        raise PromptError(f"{word!r} is {len(ids)} tokens for this tokenizer; choose a word that is one.")
    return ids[0]
