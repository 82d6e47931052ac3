"""Which tensor of the candidate stands for which of the base, and what each of them is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.auditing._weights import Weights, matrices_of
from steerlab.errors import ModelError

#: Entries of a block of rows: 4 MiB in float32, of which a pass holds a dozen.
BLOCK = 1 << 20
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output_projection)\.weight$")
_EMBED = re.compile(r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings)\.weight$")


@dataclass(frozen=True)
class Matched:
    """One matrix (or vector, as one row) that both sides have, or that one has and the other stands for by zeros.

    names: of the tensor in the base and in the candidate; None where it is zero there. added: rows that the candidate
    has more than the base; negative where it lacks some.
    """

    base: Weights
    candidate: Weights
    name: str
    names: tuple[str | None, str | None]
    part: int | None
    shape: tuple[int, int]
    added: int = 0

    @property
    def is_matrix(self) -> bool:
        """Whether it has singular values worth the name."""
        return min(self.shape) > 1

    @property
    def label(self) -> str:
        """Its name, and its number in a stack."""
        return self.name if self.part is None else f"{self.name}[{self.part}]"

    def blocks(self) -> Iterator[tuple[int, Float[Tensor, "rows columns"], Float[Tensor, "rows columns"]]]:
        """First row, base and candidate of each block of rows, in float32."""
        height = max(1, BLOCK // self.shape[1])
        for start in range(0, self.shape[0], height):
            stop = min(start + height, self.shape[0])
            yield start, self._read(self.base, 0, start, stop), self._read(self.candidate, 1, start, stop)

    def _read(self, side: Weights, number: int, start: int, stop: int) -> Float[Tensor, "rows columns"]:
        name = self.names[number]
        if name is None:
            return torch.zeros(stop - start, self.shape[1])
        return side.rows(name, self.part, start, stop)


def matched(base: Weights, candidate: Weights) -> list[Matched]:
    """Every matrix of the two, in the base's order; biases that only one side has stand beside zeros.

    Raises:
        ModelError: the two have too little in common, or a tensor has another shape.
    """
    named = [(name, name, name) for name in base.shapes if name in candidate.shapes]
    if not named:
        raise ModelError(
            f"{candidate.name} and {base.name} have no tensor of the same name, so they are of different families; an "
            "audit compares a model with the one that it was made from."
        )
    alone = [name for name in base.shapes if name not in candidate.shapes]
    more = [name for name in candidate.shapes if name not in base.shapes]
    heads = [next(filter(_HEAD.search, names), None) for names in (alone, more)]
    if heads[0] and heads[1]:  # one thing under two names
        named.append((heads[0], heads[0], heads[1]))
        more.remove(heads[1])
    else:
        named += [(name, name, other) for name in alone for other in _tied(name, base, candidate)]
        named += [(name, other, name) for name in more for other in _tied(name, candidate, base)]
    found = [each for names in named for each in _both(base, candidate, *names)]
    for names, side in ((alone, base), (more, candidate)):
        biases = [name for name in names if len(side.shapes[name]) == 1]
        found += [_one_side(base, candidate, name, side is base) for name in biases]
    known = {each.name for each in found}
    lost = [name for name in (*alone, *more) if name not in known]
    if lost:
        raise ModelError(
            f"{len(lost)} tensors are in one of {base.name} and {candidate.name} only (first: {lost[0]}), so the two "
            "are not of one architecture; name the model that the candidate was made from."
        )
    return found


def is_named_alike(one: Weights, other: Weights) -> bool:
    """Whether both have the same matrices, heads aside: files may hold apart the experts that a model stacks."""
    names = [
        {name for name, shape in side.shapes.items() if len(shape) > 1 and not _HEAD.search(name)}
        for side in (one, other)
    ]
    return names[0] == names[1]


def vocabulary_note(base: Weights, candidate: Weights) -> str:
    """A sentence where the two tokenizers give a number to different words; "" where not, or where it is not known."""
    words = [_words(side) for side in (base, candidate)]
    if None in words or words[0] == words[1]:
        return ""
    first, second = (word or {} for word in words)
    other = sum(1 for word, number in first.items() if second.get(word) != number)
    return (
        f"The tokenizers differ: {other} of the base's {len(first)} words have another number or none in the "
        f"candidate's {len(second)}. Rows of the embeddings are compared by number."
    )


# -- private --


def _tied(name: str, here: Weights, there: Weights) -> list[str]:
    """The embedding that stands for an unembedding which the other side does not store."""
    if not _HEAD.search(name):
        return []
    width = here.shapes[name][1:]
    return [key for key, shape in there.shapes.items() if _EMBED.search(key) and shape[1:] == width][:1]


def _both(base: Weights, candidate: Weights, name: str, before: str, after: str) -> list[Matched]:
    one, other = base.shapes[before], candidate.shapes[after]
    is_words = bool(_EMBED.search(before) or _HEAD.search(before)) and one[1:] == other[1:]
    if one != other and not is_words:
        raise ModelError(
            f"{before} is {list(one)} in {base.name} and {list(other)} in {candidate.name}; only models of one shape "
            "can be audited, so name the model that the candidate was made from."
        )
    parts, (rows, columns) = matrices_of(one)
    shape = (min(rows, other[0]) if is_words else rows, columns)
    added = other[0] - one[0] if is_words else 0
    return [Matched(base, candidate, name, (before, after), part, shape, added) for part in parts]


def _one_side(base: Weights, candidate: Weights, name: str, in_base: bool) -> Matched:
    shape = (1, (base if in_base else candidate).shapes[name][0])
    names = (name, None) if in_base else (None, name)
    return Matched(base, candidate, name, names, None, shape)


def _words(side: Weights) -> dict[str, int] | None:
    file = None if side.folder is None else side.folder / "tokenizer.json"
    if file is None or not file.is_file():
        return None
    try:
        listed = json.loads(file.read_text("utf-8"))
        vocabulary = listed["model"]["vocab"]
        if isinstance(vocabulary, list):
            vocabulary = {word: number for number, (word, *_) in enumerate(vocabulary)}
        return {**vocabulary, **{word["content"]: word["id"] for word in listed.get("added_tokens", [])}}
    except (OSError, ValueError, KeyError, TypeError):
        return None
