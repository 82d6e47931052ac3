"""The pair of models that a study takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from steerlab.errors import SteerlabError

if TYPE_CHECKING:  # studies are listed without importing torch
    from steerlab.models import LanguageModel

#: Amounts of a quick run of large models, beside those of "quick" and "full".
LARGE = "quick, for models above 20 million parameters"
_LARGE_FROM = 20_000_000
Models: TypeAlias = "Sequence[LanguageModel]"


@dataclass(frozen=True)
class Pair:
    """A base model and the model post-trained from it."""

    base: LanguageModel
    post: LanguageModel

    @classmethod
    def of(cls, models: Pair | Models) -> Pair:
        """A pair from two loaded models. Raises SteerlabError for anything else."""
        if isinstance(models, Pair):
            return models
        from steerlab.models import LanguageModel

        given: Any = models
        if not (
            isinstance(given, Sequence)
            and len(given) == 2
            and all(isinstance(model, LanguageModel) for model in given)
        ):
            raise SteerlabError(
                "A study takes a pair (base, post) of loaded models; load each with sl.load first."
            )
        return cls(*models)

    def __iter__(self) -> Iterator[LanguageModel]:
        yield self.base
        yield self.post

    @property
    def by_name(self) -> dict[str, LanguageModel]:
        """The models as "base" and "post"."""
        return {"base": self.base, "post": self.post}

    @property
    def topics(self) -> tuple[str, ...]:
        """Topics that both models were trained to judge, where both say so."""
        return tuple(topic for topic in self.base.topics if topic in self.post.topics)

    @property
    def n_parameters(self) -> int:
        """Parameters of the larger model."""
        sizes: list[int] = [sum(part.numel() for part in model.model.parameters()) for model in self]
        return max(sizes)

    @property
    def same_tokenizer(self) -> bool:
        """Whether both cut text into the same tokens."""
        vocabularies = [model.tokenizer.get_vocab() for model in self]
        return bool(vocabularies[0] == vocabularies[1])


def amounts_of(size: str, pair: Pair) -> str:
    """The key of a study's amounts for a run of this size: a quick one asks less of large models."""
    return LARGE if size == "quick" and pair.n_parameters > _LARGE_FROM else size


def amounts_note(amounts: str, asked: str = "") -> list[str]:
    """Says which amounts a run was made with, where its size does not tell; `asked`: what they are."""
    if amounts != LARGE:
        return []
    return [f"The amounts are those of {amounts}{asked and f': {asked}'}; size 'full' asks more."]
