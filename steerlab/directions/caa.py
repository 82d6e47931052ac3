"""Contrastive activation addition: what changes at the letter of an answer when it shows a behaviour?

    v = mean_i (h_i⁺ − h_i⁻),    h_i^± the state at the letter of the answer that matches the behaviour, or does not

Rimsky et al. (2024). The two prompts of a pair differ in the letter only, so v also contains how "A" differs from "B"
wherever the matching answer is more often one of them (558 of 903 times in the published survival-instinct set).
Here every unordered pair of letters {a, b} counts half for "a matches" and half for "b matches":

    v = Σ_{a,b} n_{ab} ½ [mean(h⁺ − h⁻ | a matches) + mean(h⁺ − h⁻ | b matches)] / Σ n_{ab}

in which anything that depends on the letter alone cancels. By default every question is also asked with the texts of
its two choices exchanged, so that both ways always occur.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from steerlab.activations import Moments, capture
from steerlab.datasets.choices import ChoicePair, choices_hash
from steerlab.directions._header import SiteStatistics
from steerlab.directions._scale import site_statistics, unit_of
from steerlab.directions.difference_in_means import DifferenceInMeans
from steerlab.directions.direction import Direction
from steerlab.errors import DatasetError, DirectionError, PromptError
from steerlab.models import Prompt, Site, SitesGiven, Span
from steerlab.models.prompts import Template

if TYPE_CHECKING:
    from steerlab.models import LanguageModel

Balance: TypeAlias = Literal["swap", "weights", "none"]
Letters: TypeAlias = tuple[str, str]
Key = TypeVar("Key")

LETTER = Span("letter")


def caa_direction(
    model: LanguageModel,
    pairs: Sequence[ChoicePair],
    sites: SitesGiven,
    *,
    balance: Balance = "swap",
    template: Template = "auto",
    token_budget: int = 4096,
) -> Direction:
    """The mean difference between matching and other answers at their letters.

    States stream, so memory does not grow with the number of questions.

    Args:
        balance: "swap" also asks every question with its two choices exchanged. "weights" weighs the questions as they
            are, and leaves out those whose letters occur one way only (their number is in ``parameters``). "none" is
            the published plain mean, letters included.
        template: how questions are rendered, see `choice_prompts`.
        token_budget: padded tokens in one forward pass.

    Raises:
        DatasetError: "swap" does not find the choices in a question.
        DirectionError: "weights" is left with nothing, or an unknown balance.
        PromptError: the two answers of a question differ in their number of tokens.
    """
    if balance not in get_args(Balance):
        raise DirectionError(f"The balance is one of {', '.join(get_args(Balance))}, not {balance!r}.")
    asked = [*pairs, *map(swap_choices, pairs)] if balance == "swap" else list(pairs)
    shares = _shares(asked, plain=balance == "none")
    kept = [pair for pair in asked if _letters(pair) in shares]
    matching, others = choice_prompts(model, kept, template=template)
    labels = [(kind, *_letters(pair)) for kind in (1, 0) for pair in kept]
    moments = capture(
        model,
        [*matching, *others],
        sites,
        positions=LETTER,
        into=Moments(),
        labels=labels,
        token_budget=token_budget,
    )
    fitted = {site: _site(moments, site, shares) for site in moments.sites}
    return Direction(
        vectors={site: torch.from_numpy(vector) for site, (vector, _) in fitted.items()},
        model_name=model.name,
        fingerprint=model.fingerprint,
        estimator="CAA",
        parameters={
            "balance": balance,
            "template": matching[0].template,
            "asked": len(asked),
            "used": len(kept),
        },
        dataset_hash=choices_hash(pairs),
        position=repr(LETTER),
        statistics={site: statistics for site, (_, statistics) in fitted.items()},
    )


def choice_prompts(
    model: LanguageModel, pairs: Sequence[ChoicePair], *, template: Template = "auto"
) -> tuple[list[Prompt], list[Prompt]]:
    """Every question with its matching answer, and with the other one; the span "letter" marks the answer's letter.

    Args:
        template: "chat" asks in the model's chat template, "plain" as `User: …\\nAssistant: (A)`; "auto" takes the chat
            template if there is one.

    Raises:
        PromptError: no pairs, or two answers that differ in more than the token of the letter.
    """
    if not pairs:
        raise PromptError("There are no questions; give at least one pair of answers.")
    matching = [_answered(model, pair.question, pair.letter, template) for pair in pairs]
    others = [_answered(model, pair.question, pair.other_letter, template) for pair in pairs]
    tokens = model.tokenize([*matching, *others], padding_side="right")
    for i, pair in enumerate(pairs):
        rows = (i, len(pairs) + i)
        places = [(tokens.lengths[row], LETTER.resolve(tokens, row)) for row in rows]
        if places[0] != places[1]:
            raise PromptError(
                f"Question {i} has {places[0][0]} tokens with the answer ({pair.letter}) and {places[1][0]} with "
                f"({pair.other_letter}), or their letters at different places, so their states cannot be subtracted; "
                "leave the question out or use another template."
            )
    return matching, others


def swap_choices(pair: ChoicePair) -> ChoicePair:
    """The same question with the texts of the two choices exchanged, so that the other letter matches.

    Choices are recognised as lines that begin with a letter in brackets.

    Raises:
        DatasetError: one of the two choices is not among the question's lines, or is twice.
    """
    starts = list(re.finditer(r"^[ \t]*\(([A-Z])\)[ \t]*", pair.question, flags=re.MULTILINE))
    ends = [*(start.start() for start in starts[1:]), len(pair.question)]
    spans = [(start[1], start.end(), end) for start, end in zip(starts, ends, strict=False)]
    two_choices = [span for span in spans if span[0] in (pair.letter, pair.other_letter)]
    if Counter(letter for letter, _, _ in two_choices) != Counter((pair.letter, pair.other_letter)):
        raise DatasetError(
            f"The question {pair.question[:60]!r}… does not list ({pair.letter}) and ({pair.other_letter}) once each "
            "at the beginning of a line; write them so, or balance by weights."
        )
    (_, low, middle), (_, high, end) = two_choices
    first, second = pair.question[low:middle].rstrip(), pair.question[high:end].rstrip()
    question = (
        pair.question[:low]
        + second
        + pair.question[low + len(first) : high]
        + first
        + pair.question[high + len(second) :]
    )
    return ChoicePair(question, pair.not_matching, pair.matching)


def equal_norms(directions: Mapping[Key, Direction]) -> dict[Key, Direction]:
    """Several behaviours' directions with the same length at each site: the mean of their lengths there.

    v ← v · mean_behaviours ‖v‖ / ‖v‖, so that one strength means the same for all (Rimsky et al. 2024).

    Raises:
        DirectionError: when the directions do not have the same sites.
    """
    if len({direction.sites for direction in directions.values()}) > 1:
        raise DirectionError("The directions have different sites; restrict them with at(...) first.")
    norms = {
        key: {site: float(direction[site].norm()) for site in direction.sites}
        for key, direction in directions.items()
    }
    mean = {site: np.mean([of[site] for of in norms.values()]) for of in norms.values() for site in of}
    return {
        key: _scaled(direction, {site: float(mean[site] / norm) for site, norm in norms[key].items()})
        for key, direction in directions.items()
    }


def _scaled(direction: Direction, factors: Mapping[Site, float]) -> Direction:
    parts = {site: direction.at(site) * factor for site, factor in factors.items()}
    return replace(
        direction,
        vectors={site: part.vectors[site] for site, part in parts.items()},
        statistics={site: part.statistics[site] for site, part in parts.items()},
    )


def _answered(model: LanguageModel, question: str, letter: str, template: Template) -> Prompt:
    prompt = model.instruction_prompt(question.strip(), template=template, response=f"({letter})")
    start = prompt.spans["response"][0] + 1
    return replace(prompt, spans={**prompt.spans, "letter": (start, start + 1)})


def _letters(pair: ChoicePair) -> Letters:
    return pair.letter, pair.other_letter


def _shares(pairs: Sequence[ChoicePair], *, plain: bool) -> dict[Letters, float]:
    """The weight of each kind of question, by (letter that matches, other letter); those left out are not in it."""
    counts = Counter(map(_letters, pairs))
    weights = {
        (a, b): float(n) if plain else (n + counts[b, a]) / 2
        for (a, b), n in counts.items()
        if plain or counts[b, a]
    }
    if pairs and not weights:
        raise DirectionError(
            "No two letters occur both ways round, so no weights balance them; use balance='swap'."
        )
    total = sum(weights.values())
    return {letters: weight / total for letters, weight in weights.items()}


def _site(
    moments: Moments, site: Site, shares: Mapping[Letters, float]
) -> tuple[NDArray[np.float64], SiteStatistics]:
    def pooled(kind: int) -> NDArray[np.float64]:
        parts = (share * moments.mean(site, (kind, *letters)) for letters, share in shares.items())
        return sum(parts, start=torch.zeros((), dtype=torch.float64)).numpy()

    low, high = pooled(0), pooled(1)
    fitted = DifferenceInMeans().fit_means(high, low)
    # Letters that cancel leave rounding errors where nothing else differs, as at the embedding.
    unit = unit_of(fitted.direction_, site, least=1e-9 * moments.norm(site))
    statistics = site_statistics(
        fitted.direction_[None],
        biases=np.array([fitted.bias_]),
        means={0: np.array([low @ unit]), 1: np.array([high @ unit])},
        stream_norm=moments.norm(site),
        sigma=None,
    )
    return fitted.direction_, statistics
