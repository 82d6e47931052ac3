"""What states say of where they come from: the model, the rule that picked the tokens, and a hash of the prompts.

The hash of streamed prompts is a sum over them, so that one run, several runs and merged ones of the same labelled
prompts have the same one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from steerlab.errors import SteerlabError
from steerlab.models import LanguageModel, Prompt, Selector

_SIZE = 2**64


def prompts_hash(prompts: Sequence[str | Prompt]) -> str:
    """A hash of prompts in their order: texts and spans."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(_written(prompt).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def hashes(prompts: Sequence[str | Prompt]) -> dict[str, Any]:
    """What states keep of their prompts: one hash of all, and one of each, by which equal ones are known."""
    each = tuple(prompts_hash([prompt]) for prompt in prompts)
    return {"prompts_hash": prompts_hash(prompts), "prompt_hashes": each}


class Streamed:
    """The provenance of statistics that take states run by run.

    Attributes:
        model_name: the model the states come from, None while there are none.
        fingerprint: its fingerprint.
        positions: the rule that picked the tokens; several with " and " between them; "" where it is not known.
        prompts_hash: of all prompts with their labels, in any order; "" where they are not known.
    """

    def __init__(self) -> None:
        self.model_name: str | None = None
        self.fingerprint: str | None = None
        self.positions = ""
        self.prompts_hash = ""

    def belongs_to(self, model: LanguageModel) -> None:
        """Note the model whose states are taken; raise `SteerlabError` when it is not the one noted before."""
        if self.fingerprint not in (None, model.fingerprint):
            raise SteerlabError(
                f"These moments hold states of {self.model_name}; use another Moments object for {model.name}."
            )
        self.model_name, self.fingerprint = model.name, model.fingerprint

    def came_from(
        self, prompts: Sequence[str | Prompt], positions: Selector, labels: Sequence[object]
    ) -> None:
        """Note prompts with a label each, and which of their tokens were read."""
        total = 0
        for prompt, label in zip(prompts, labels, strict=True):
            text = f"{_written(prompt)}{label!r}".encode("utf-8", "surrogatepass")
            total += int.from_bytes(hashlib.sha256(text).digest()[:8])
        self._take(repr(positions), f"{total % _SIZE:016x}")

    def _join(self, other: Streamed) -> None:
        """Take over what another one knows."""
        self.model_name = self.model_name or other.model_name
        self.fingerprint = self.fingerprint or other.fingerprint
        self._take(other.positions, other.prompts_hash)

    def _take(self, positions: str, prompts_hash: str) -> None:
        rules = {*self.positions.split(" and "), *positions.split(" and ")} - {""}
        self.positions = " and ".join(sorted(rules))
        if prompts_hash:
            total = int(self.prompts_hash or "0", 16) + int(prompts_hash, 16)
            self.prompts_hash = f"{total % _SIZE:016x}"


def _written(prompt: str | Prompt) -> str:
    if isinstance(prompt, str):
        prompt = Prompt(prompt)
    return repr((prompt.text, sorted(prompt.spans.items()), prompt.has_special_tokens))
