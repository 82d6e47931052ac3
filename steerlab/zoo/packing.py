"""Rows of tokens from documents: packed side by side, none seeing another.

Attention is causal and blocked at document borders, so packing changes no document's loss; positions run through the
row, which a rotary model cannot tell from positions that start anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from steerlab.zoo.documents import Document
from steerlab.zoo.tokenizer import ASSISTANT, BEGIN, END, PAD, USER

ROW = 160
# One token in ten decides whether a statement was understood: it counts as much as the others together.
DECISIVE = (" TRUE", " FALSE", " Yes", " No")
DECISIVE_WEIGHT = 5.0
_POOL = 64
IGNORED = -100


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed rows: tokens, the tokens to be learnt (-100 where none is), each token's document and weight."""

    input_ids: Int[Tensor, "row position"]
    labels: Int[Tensor, "row position"]
    document: Int[Tensor, "row position"]
    weights: Float[Tensor, "row position"]

    @property
    def attends(self) -> Bool[Tensor, "row 1 position position"]:
        """Whether a position (second to last) may see another (last): the same document, not later."""
        same = self.document[:, :, None] == self.document[:, None, :]
        return (same & torch.ones(same.shape[-2:], dtype=torch.bool).tril())[:, None]


def encode(
    document: Document, tokenizer: PreTrainedTokenizerFast, *, whole: bool
) -> tuple[list[int], list[int]]:
    """Token ids of a document, BOS and end included, and its labels; only the text has them unless `whole`."""
    raw = tokenizer.backend_tokenizer
    prompt = document.prompt
    if document.chat:
        prompt = f"{USER}\n{document.prompt}{END}\n{ASSISTANT}\n"
    head = raw.encode(BEGIN + prompt, add_special_tokens=False).ids
    # Encoded together where there is no template, so that the border is what a reader of the whole text sees.
    tail = raw.encode(document.text + END, add_special_tokens=False).ids
    ids = head + tail
    return ids, ids if whole else [IGNORED] * len(head) + tail


def batches(
    stream: Iterator[Document],
    tokenizer: PreTrainedTokenizerFast,
    *,
    rows: int,
    whole: bool,
    length: int = ROW,
) -> Iterator[Batch]:
    """An endless stream of batches of `rows` rows of `length` tokens."""
    packed = _rows(stream, tokenizer, whole, length)
    pad = tokenizer.convert_tokens_to_ids(PAD)
    decisive = torch.tensor([tokenizer.encode(word, add_special_tokens=False)[0] for word in DECISIVE])
    while True:
        columns: tuple[list[list[int]], ...] = ([], [], [])
        for _ in range(rows):
            ids, labels, document = next(packed)
            missing = length - len(ids)
            for column, values, fill in zip(
                columns, (ids, labels, document), (pad, IGNORED, -1), strict=True
            ):
                column.append(values + [fill] * missing)
        input_ids, targets, numbers = (torch.tensor(column) for column in columns)
        weights = 1 + (DECISIVE_WEIGHT - 1) * torch.isin(targets, decisive).float()
        yield Batch(input_ids, targets, numbers, weights)


def _rows(
    stream: Iterator[Document], tokenizer: PreTrainedTokenizerFast, whole: bool, length: int
) -> Iterator[tuple[list[int], list[int], list[int]]]:
    """Fill one row after another from a small pool of waiting documents, the longest that fits first."""
    pool: list[tuple[list[int], list[int]]] = []
    while True:
        ids: list[int] = []
        labels: list[int] = []
        document: list[int] = []
        number = 0
        while True:
            while len(pool) < _POOL:
                pool.append(encode(next(stream), tokenizer, whole=whole))
            oldest = len(pool[0][0]) <= length - len(ids)
            fitting = [i for i, item in enumerate(pool) if len(item[0]) <= length - len(ids)]
            if not fitting:
                break
            # The oldest goes first where it fits, so that no document waits for ever.
            chosen = 0 if oldest else max(fitting, key=lambda i: len(pool[i][0]))
            new_ids, new_labels = pool.pop(chosen)
            ids += new_ids
            # The first token of a document is not predicted from the document before it.
            labels += [IGNORED, *new_labels[1:]]
            document += [number] * len(new_ids)
            number += 1
        if number == 0:
            pool.pop(0)
            continue
        yield ids, labels, document
