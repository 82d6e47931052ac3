"""A person's own contrasts by name: files, packaged ones, sets or lists, read and checked before a model is loaded.

Texts are read as they are. Harmful and harmless requests, and conversations, are rendered in the model's template, as
`sl.extract` renders them.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerlab.datasets import ContrastSet, StatementSet
from steerlab.datasets.contrasts import contrast, names
from steerlab.datasets.frames import rows_of
from steerlab.datasets.labelled_texts import LabelledTexts, labelled_texts
from steerlab.datasets.readers import read_published
from steerlab.datasets.readers.source import stem_of
from steerlab.datasets.readers.table import name_of
from steerlab.datasets.study_data import PACKAGED
from steerlab.errors import DatasetError, kind_of
from steerlab.models import Prompt
from steerlab.models.messages import as_said
from steerlab.showing import cut

if TYPE_CHECKING:
    from steerlab.models import LanguageModel
    from steerlab.models.prompts import Template

#: Groups of each class that a contrast needs: five folds are held out, and five more inside the rest of each.
FEWEST_GROUPS = 7


@dataclass(frozen=True)
class Contrast:
    """Texts of two classes under a name.

    Attributes:
        name: what results and tables call it.
        data: texts, labels (1 for the class a direction points to), names of the classes, and groups.
        source: where it comes from: a path, "packaged" or a kind of object.
        conversations: messages by the text that stands for them in `data`.
    """

    name: str
    data: LabelledTexts
    source: str = ""
    conversations: Mapping[str, Any] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """A short hash of texts, labels, groups and conversations."""
        content = repr(
            (self.data.hash, self.data.names, self.data.groups.numbers, sorted(self.conversations.items()))
        )
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def prompts(self, model: LanguageModel) -> list[Prompt]:
        """One prompt a text. Raises `PromptError` for a conversation that the model's template cannot render."""
        return prompts_of(model, self.data, self.conversations)


_ALONE = (str, Path, Contrast, ContrastSet, StatementSet, LabelledTexts)


def read_contrasts(given: Any) -> dict[str, Contrast]:
    """Contrasts by name.

    Args:
        given: a file or the name of a packaged contrast ("formal"), a `ContrastSet` or a table, several of them in a
            list, or a mapping from names to these and to everything else that `datasets.labelled_texts` reads (pairs of
            texts, say, or of conversations). A file is called by its stem. None: no contrast.

    Raises:
        DatasetError: a file with a bad row, other than two labels, fewer than seven groups of a class, two contrasts of
            one name, or something that is no contrast.
    """
    if given is None:
        return {}
    if isinstance(given, Mapping):
        named = [(str(name), part) for name, part in given.items()]
    else:
        alone = isinstance(given, _ALONE) or rows_of(given) is not None
        parts = [given] if alone else given
        if not isinstance(parts, Iterable):
            raise DatasetError(f"Contrasts are names, files or sets in a list, not {kind_of(given)}.")
        named = [(_name(part), part) for part in parts]
    keys = Counter(file_name(name) for name, _ in named)
    twice = [name for name, _ in named if keys[file_name(name)] > 1]
    if twice:
        raise DatasetError(
            f"Two contrasts are called {twice[0]!r}; rename a file, or give a mapping from names to contrasts."
        )
    return {name: _read(name, part) for name, part in named}


def prompts_of(
    model: LanguageModel,
    data: LabelledTexts,
    conversations: Mapping[str, Any],
    template: Template | None = None,
) -> list[Prompt]:
    """One prompt a text: conversations and requests are rendered, other texts read as they are.

    Args:
        conversations: messages by the text that stands for them.
        template: renders what is no conversation; by default harmful and harmless requests alone are.

    Raises:
        PromptError: a conversation that the model's template cannot render.
    """
    chosen = template or ("auto" if {*data.names} == {"harmful", "harmless"} else "none")
    return [
        model.conversation_prompt(conversations[text])
        if text in conversations
        else Prompt(text)
        if chosen == "none"
        else model.instruction_prompt(text, template=chosen)
        for text in data.texts
    ]


def file_name(name: str) -> str:
    """A contrast's name as part of a file's name: small letters, digits and _."""
    return re.sub(r"\W+", "_", name).strip("_").lower()


# -- private, in the order they are called --


def _name(part: Any) -> str:
    """What a contrast without a name of its own is called: a file's stem, or its classes."""
    if isinstance(part, Contrast):
        return part.name
    if isinstance(part, str | Path):
        return stem_of(Path(part))
    if isinstance(part, ContrastSet):
        return f"{part.positive_name}_{part.negative_name}"
    if isinstance(part, LabelledTexts):
        return "_".join(part.names)
    if isinstance(part, StatementSet) or rows_of(part) is not None:
        return "contrast"
    raise DatasetError(
        f"A contrast is the name of a file or of a packaged contrast, or a set, not {kind_of(part)}; lists of texts "
        "need a name: contrasts={'mood': pairs}."
    )


def _read(name: str, given: Any) -> Contrast:
    if isinstance(given, Contrast):
        return given
    if not file_name(name):
        raise DatasetError(f"The name of a contrast holds a letter or a digit; {name!r} does not.")
    conversations: dict[str, Any] = {}
    data = _labelled(as_said(given, conversations))
    groups = set(zip(data.groups.numbers, data.labels, strict=True))
    kinds = Counter(label for _, label in groups)
    if min(kinds.values()) < FEWEST_GROUPS:
        raise DatasetError(
            f"The contrast {name!r} holds {kinds[1]} groups of {data.names[0]!r} and {kinds[0]} of {data.names[1]!r} "
            f"(a matched pair is one group); it needs at least {FEWEST_GROUPS} of each, to hold some out."
        )
    packaged = isinstance(given, str) and given in names()
    return Contrast(name, data, PACKAGED if packaged else name_of(given), conversations)


def _labelled(given: Any) -> LabelledTexts:
    if not isinstance(given, str | Path):
        return labelled_texts(given)
    published = _packaged(given) or read_published(given)
    if isinstance(published, ContrastSet):
        published = published.balanced()
    return labelled_texts(given if published is None else published)


def _packaged(given: str | Path) -> ContrastSet | None:
    """The packaged contrast that a text names, before a file of that name; None for a file."""
    if isinstance(given, str) and given in names():
        return contrast(given)
    if given in ("truth", "refusal"):
        raise DatasetError(
            f"{str(given).capitalize()} has a study of its own, which needs no contrast; leave it out."
        )
    if not os.path.exists(given):
        raise DatasetError(
            f"There is no contrast {cut(str(given), 60)!r}; write {', '.join(names())}, or the name of a file."
        )
    return None
