"""From a contrast to a direction: two lists of texts, a file or a packaged set in, a direction with its accuracy out.

    d = sl.extract(model, happy, sad)
    d.accuracy, d.best

Matched texts of the two classes are held out together (`datasets.groups`), and the direction knows at which layer it
works best; `steerlab extract` does the same from a shell.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from steerlab.activations import capture
from steerlab.directions import Direction, LinearDirection, fit_direction
from steerlab.directions.coordinates import Coordinates
from steerlab.directions.held_out import FOLDS, groups_by_class
from steerlab.directions.registry import estimator_of
from steerlab.errors import DatasetError, DirectionError
from steerlab.models import Last, Prompt, Selector
from steerlab.models.messages import Message, as_said
from steerlab.showing import cut

if TYPE_CHECKING:
    from steerlab.datasets import ContrastSet, StatementSet
    from steerlab.datasets.labelled_texts import LabelledTexts
    from steerlab.models import LanguageModel
    from steerlab.models.prompts import Template

Layers = str | int | Sequence[int]


@dataclass(frozen=True)
class LabelledPrompts:
    """Prompts with one label each, 1 for the class that the direction points to.

    groups: what is held out together, one name a prompt; sentence: how it came about. pairs: one number for a statement
    and its negation, or for two matched texts of the classes; None where the data do not come as such pairs.
    polarity: +1 or -1, None where nothing is negated.
    """

    prompts: list[Prompt]
    labels: list[int]
    hash: str
    groups: Sequence[Hashable]
    sentence: str = ""
    pairs: list[int] | None = None
    polarity: list[int] | None = None


def extract(
    model: LanguageModel,
    positive: Any,
    negative: Sequence[str] | None = None,
    *,
    estimator: LinearDirection | str = "difference-in-means",
    layers: Layers = "all",
    positions: Selector = Last(),  # noqa: B008  # frozen
    template: Template | None = None,
    groups: Sequence[Hashable] | None = None,
    coordinates: Coordinates = "plain",
    centre_groups: bool = False,
    label: str | None = None,
    seed: int = 0,
    announce: Callable[[str], None] = lambda sentence: None,
) -> Direction:
    """The direction from one class of texts to the other, in the residual stream behind each block.

    Args:
        model: a loaded model.
        positive: the texts that the direction points to, with `negative`; else the name of a packaged contrast
            ("truth", "refusal", "formal" and all of `datasets.contrasts()`), or everything that
            `datasets.labelled_texts` reads: pairs, a contrast set, a file, a DataFrame, a Dataset. In lists, pairs and
            rows a text may be a conversation (a list of chat messages), which is rendered whatever `template` says.
        negative: the other texts.
        estimator: an unfitted one, or its name ("lda").
        layers: "all", one number, several, or a text such as "4-8".
        positions: the token that is read.
        template: "none" reads the texts as they are; "auto", "chat" or "plain" render them as instructions. By default
            harmful and harmless requests are rendered, and other texts read as they are.
        groups: what is held out together, one name a text; None finds matched and reworded texts.
        coordinates: "standardised" or "winsorised" for a direction that reads (`fit_direction`); "plain" to steer.
        centre_groups: takes out of every group (topic) its own mean first.
        label: the class that the direction points to, where the classes have names.
        seed: of the folds.
        announce: is told what was found about the texts.

    Returns:
        The direction; `accuracy` by site of held-out folds, `best` the site where it works best.

    Raises:
        DatasetError: texts that are no contrast, or fewer than five groups of a class.
        DirectionError: an unknown estimator or layer.
    """
    data = own_prompts(model, positive, negative, groups=groups, label=label, template=template)
    if data.sentence:
        announce(data.sentence)
    return extract_from(
        model,
        data,
        estimator=estimator,
        layers=layers,
        positions=positions,
        coordinates=coordinates,
        centre_groups=centre_groups,
        seed=seed,
    )


def own_prompts(
    model: LanguageModel,
    positive: Any,
    negative: Any = None,
    *,
    groups: Sequence[Hashable] | None = None,
    label: str | None = None,
    template: Template | None = None,
) -> LabelledPrompts:
    """A contrast as prompts: a packaged one by its name, or a person's own.

    Statements and requests in a published format are known by their files. Requests of a file are drawn in equal
    numbers, unless `groups` names each of them. A packaged name comes before a file of that name, which is a `Path`.

    Raises:
        DatasetError: texts or a file that are no contrast.
    """
    data, given, known = _own_texts(positive, negative, groups, label, model.topics)
    return _rendered(model, data, template, given, known)


def require_contrast(
    positive: Any,
    negative: Any = None,
    *,
    label: str | None = None,
    estimator: LinearDirection | str = "difference-in-means",
) -> None:
    """Read a contrast as `own_prompts` does, without a model, and hold it against the estimator.

    Raises:
        DatasetError: no contrast, fewer than five groups of a class, or no pairs for an estimator that reads pairs.
        DirectionError: an unknown estimator.
    """
    from steerlab.datasets import StatementSet

    data, given, _ = _own_texts(positive, negative, None, label, ())
    pairs = negation_pairs(given) if isinstance(given, StatementSet) else matched_pairs(data)
    _require_folds(estimator_of(estimator), data.groups.numbers, data.labels, pairs is not None)


def packaged_prompts(
    model: LanguageModel, contrast: str, template: Template | None = None
) -> LabelledPrompts:
    """The prompts of a packaged contrast: "truth", "refusal" (harmful and harmless requests) or a name of
    `datasets.contrasts()`.

    Statements are read as they are unless a template is named; for a model that says which topics it was
    trained to judge they are of these. Requests are rendered in the model's template, equally many of each kind.
    """
    return own_prompts(model, contrast, template=template)


def statement_prompts(
    model: LanguageModel,
    statements: StatementSet,
    template: Template | None = None,
    *,
    groups: Sequence[Hashable] | None = None,
    label: str | None = None,
) -> LabelledPrompts:
    """True and false statements, with their negations where each has one."""
    from steerlab.datasets.labelled_texts import labelled_texts

    return _rendered(model, labelled_texts(statements, groups=groups, positive=label), template, statements)


def matched_pairs(data: LabelledTexts) -> list[int] | None:
    """The groups as pairs where each is one text of either class, for estimators that read pairs."""
    each = Counter(zip(data.groups.numbers, data.labels, strict=True))
    whole = len(each) == 2 * len(set(data.groups.numbers)) == len(data.labels)
    return list(data.groups.numbers) if whole else None


def negation_pairs(statements: StatementSet) -> list[int] | None:
    """One number for a statement and its negation, or None unless every statement has exactly one such partner."""
    members: dict[tuple[str, ...], list[int]] = {}
    for i, item in enumerate(statements):
        named = [item.text[slice(*span)] for _, span in sorted(item.spans.items())]
        members.setdefault((item.topic, item.form, *named), []).append(i)
    pairs = [0] * len(statements)
    for number, group in enumerate(members.values()):
        two = [statements[i] for i in group]
        if {item.polarity for item in two} != {1, -1} or len(two) != 2 or two[0].label == two[1].label:
            return None
        for i in group:
            pairs[i] = number
    return pairs


def extract_from(
    model: LanguageModel,
    data: LabelledPrompts,
    *,
    estimator: LinearDirection | str = "difference-in-means",
    layers: Layers = "all",
    positions: Selector = Last(),  # noqa: B008  # frozen
    coordinates: Coordinates = "plain",
    centre_groups: bool = False,
    seed: int = 0,
) -> Direction:
    """Fit a direction at `resid_post` of `layers` and hold it out.

    Raises:
        DirectionError: an unknown estimator or layer.
        DatasetError: fewer than five groups of a kind, or an estimator that reads pairs (`pca`, `ccs`) where there are
            none.
    """
    fitted = estimator_of(estimator)
    _require_folds(fitted, data.groups, data.labels, data.pairs is not None)
    sites = model.sites("resid_post", chosen_layers(layers, model.n_layers))
    activations = capture(model, data.prompts, sites, positions=positions, progress="Reading states")
    return fit_direction(
        activations,
        data.labels,
        fitted,
        model=model,
        dataset_hash=data.hash,
        position=positions,
        pairs=data.pairs,
        polarity=data.polarity,
        groups=data.groups,
        coordinates=coordinates,
        centre_groups=centre_groups,
        seed=seed,
    )


def chosen_layers(layers: Layers, n_layers: int) -> list[int]:
    """Layers named by "all", 4, [2, 5], "4", "4-8" (both ends) or "2,5,7", ascending.

    Raises `DirectionError` for anything else and for a layer the model does not have.
    """
    chosen = named_layers(layers)
    if chosen is None:
        return list(range(n_layers))
    if not chosen or chosen[-1] >= n_layers:
        raise DirectionError(
            f"The model has the layers 0 to {n_layers - 1}, so {_as_text(layers)!r} cannot be read; name layers "
            "among them."
        )
    return chosen


def named_layers(layers: Layers) -> list[int] | None:
    """The same whatever model they are of; None for "all". Raises `DirectionError` for what names no layers."""
    text = _as_text(layers)
    if text == "all":
        return None
    chosen: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+))?\s*", part)
        if match is None:
            raise DirectionError(f"Layers {text!r} are not understood; write all, 4, 4-8 or 2,5,7.")
        chosen.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return sorted(chosen)


def _as_text(layers: Layers) -> str:
    if isinstance(layers, str):
        return layers
    return ",".join(map(str, [layers] if isinstance(layers, int) else layers))


def require_place(path: Path, *, overwrite: bool = False) -> None:
    """Raise `DirectionError`, before any work is done, where a direction may not or cannot be written to `path`."""
    if path.suffix != ".safetensors" or path.is_dir():
        raise DirectionError(f"{path} is not a name for a direction file; let it end in .safetensors.")
    if path.exists() and not overwrite:
        raise DirectionError(f"{path} exists already; replace it with --overwrite, or choose another --out.")
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise DirectionError(f"Nothing can be written below {existing}; choose another --out.")


def _own_texts(
    positive: Any,
    negative: Any,
    groups: Sequence[Hashable] | None,
    label: str | None,
    topics: Sequence[str],
) -> tuple[LabelledTexts, Any, dict[str, list[Message]]]:
    """A contrast's texts, the set or table they are of, and the messages by the text that stands for them."""
    from steerlab.datasets import ContrastSet, StatementSet
    from steerlab.datasets.labelled_texts import labelled_texts, naming
    from steerlab.datasets.readers import read_published

    published = None
    if negative is None and isinstance(positive, str | Path):
        published = _packaged(topics, positive) or read_published(positive)
    if isinstance(published, ContrastSet) and groups is None:
        published = published.balanced()
    given = positive if published is None else published
    known: dict[str, list[Message]] = {}
    with naming(positive if negative is None else None):
        if not isinstance(given, StatementSet):
            given, negative = (as_said(part, known) for part in (given, negative))
        return labelled_texts(given, negative, groups=groups, positive=label), given, known


def _packaged(topics: Sequence[str], given: str | Path) -> StatementSet | ContrastSet | None:
    """The packaged contrast that a text names, before a file of that name; None for a file."""
    from steerlab import datasets
    from steerlab.datasets.contrasts import names

    if given == "truth":
        return datasets.statements(topics or None)
    if given == "refusal":
        return datasets.requests()
    if isinstance(given, str) and given in names():
        return datasets.contrast(given)
    if not os.path.exists(given):
        known = ", ".join(("truth", "refusal", *names()))
        raise DatasetError(
            f"There is no contrast {cut(str(given), 60)!r}; write {known}, or the name of a file."
        )
    return None


def _rendered(
    model: LanguageModel,
    data: LabelledTexts,
    template: Template | None,
    given: Any,
    conversations: Mapping[str, list[Message]] = MappingProxyType({}),
) -> LabelledPrompts:
    from steerlab.datasets import StatementSet
    from steerlab.readouts.contrasts import prompts_of

    prompts = prompts_of(model, data, conversations, template)
    known = getattr(given, "hash", data.hash)  # a set's own, where it is one
    made = LabelledPrompts(
        prompts, list(data.labels), known, data.groups.numbers, data.sentence, matched_pairs(data)
    )
    if not isinstance(given, StatementSet):
        return made
    polarity = given.polarity if len(set(given.polarity)) == 2 else None
    return replace(made, pairs=negation_pairs(given), polarity=polarity)


def _require_folds(
    estimator: LinearDirection, groups: Sequence[Hashable], labels: Sequence[int], has_pairs: bool
) -> None:
    """Raise DatasetError where an estimator lacks its pairs, or a kind has fewer groups than there are folds."""
    if estimator.needs_pairs and not has_pairs:
        raise DatasetError(
            f"The estimator {type(estimator).__name__} reads pairs of a statement and its negation, or of matched "
            "texts of the two classes, and these prompts are not such pairs; give rows of positive and negative, "
            "statements whose columns subject, object and polarity tell them, or choose another estimator."
        )
    kinds = groups_by_class(groups, labels)
    if len(kinds) != 2 or min(kinds.values()) < FOLDS:
        raise DatasetError(
            f"The prompts hold {' and '.join(map(str, kinds.values()))} groups of their kinds; give two kinds with at "
            f"least {FOLDS} each, one for every fold of the accuracy. What is a group is said by groups=, or by a "
            "column named group."
        )
