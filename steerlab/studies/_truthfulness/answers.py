"""What a model answers about a statement: its own label, with any two words and whatever it answers by habit.

The two words are continued from the same prompt; with s the tokens of a word behind what both have in common,

    log-odds = log P(s_true | prompt) - log P(s_false | prompt),    PD = P(s_true | prompt) - P(s_false | prompt)

where both words are one token that really follows the prompt ("single tokens"), from one pass; otherwise as the sums
of the tokens' log-probabilities ("sequences"). A model may give one answer out of habit, and a longer word is less
likely for its length alone. So a second accuracy is given: "calibrated" says true where the log-odds exceed their
median over the statements of the other topics, which uses no labels (the few-shot baseline of Marks and Tegmark, 2023;
of the same kind as the contextual calibration of Zhao et al., 2021).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

from steerlab.activations import Cell, PatchSweep, Shift, StatePatch
from steerlab.errors import PromptError
from steerlab.models import LanguageModel, Prompt, Selector, Site, Span, Tokens
from steerlab.models.batches import run_in_batches
from steerlab.readouts.questions import QUESTION_END, Plan, question
from steerlab.readouts.scoring import continuation_log_probability
from steerlab.record import Record
from steerlab.statistics import Estimate, proportion
from steerlab.studies._truthfulness.probes import Fit

Scored = Literal["single tokens", "sequences"]
Shifts = Mapping[Site, Float[Tensor, "row width"]]

_BUDGET = {"single tokens": 8192, "sequences": 2048}  # padded tokens in one pass


class Labels(Record):
    """How well a model labels held-out statements itself.

    scored: how the answers were told apart. calibrated: whether the log-odds are compared with their median over
    other topics rather than with zero. shots: labelled lines before the question, one number for each fold. chance:
    always giving the more frequent answer.
    """

    model: str
    scored: Scored
    calibrated: bool
    shots: tuple[int, ...]
    statements: str
    accuracy: Estimate
    chance: float

    @property
    def above_chance(self) -> bool:
        """True when the interval lies above the more frequent answer's share."""
        return self.accuracy.low > self.chance


@dataclass(frozen=True)
class Words:
    """The two answers in one model: their texts, how they are scored, and their tokens where each is one."""

    texts: tuple[str, str]
    scored: Scored
    tokens: tuple[int, int] | None = None


def words_for(model: LanguageModel, texts: tuple[str, str], questions: Sequence[Prompt]) -> Words:
    """How the two answers can be scored after these questions.

    Raises:
        PromptError: one answer begins with the other, so that they cannot be told apart.
    """
    asked = model.tokenize(questions)
    after = [_continued(model, questions, text) for text in texts]
    known: set[tuple[int, ...]] = set()
    for row in range(len(asked)):
        true, false = (_ids(tokens, row) for tokens in after)
        same = _common(true, false)
        if same in (len(true), len(false)):
            raise PromptError(
                f"For {model.name} one of the answers {texts[0]!r} and {texts[1]!r} begins with the other, so they "
                "cannot be told apart; choose others."
            )
        plain = same == len(_ids(asked, row)) and true[:same] == _ids(asked, row)
        known.add((*true[same:], *false[same:]) if plain and len(true) == len(false) == same + 1 else ())
    if len(known) == 1 and () not in known:
        true_id, false_id = next(iter(known))
        return Words(texts, "single tokens", (true_id, false_id))
    return Words(texts, "sequences")


@dataclass(frozen=True)
class Examinee:
    """A model with what its answers need: its name in the study, how answers are scored, and its probes by layer."""

    name: str
    model: LanguageModel
    words: Words
    fits: tuple[Fit, ...]

    def prompts(self, plan: Plan, rows: NDArray[np.int64], shots: int) -> list[Prompt]:
        """The questions about some rows of the plan, each with its topic's lines in an order of its own."""
        return [
            question(
                plan.statements[row],
                plan.examples[str(plan.groups[row])][:shots],
                self.words.texts,
                order=1 + row,
            )
            for row in rows.tolist()
        ]

    def has_room(self, plan: Plan, rows: NDArray[np.int64], shots: int) -> bool:
        """Whether the questions with so many labelled lines fit into the model's context."""
        prompts = [
            Prompt(prompt.text + max(self.words.texts, key=len)) for prompt in self.prompts(plan, rows, shots)
        ]
        try:
            self.model.lengths(prompts)
        except PromptError:
            return False
        return True

    def answers(
        self, prompts: Sequence[Prompt], shifts: Shifts | None = None, at: Selector | None = None
    ) -> Float[np.ndarray, "row 2"]:
        """[prompt, (PD, log-odds of the true answer)], with the shift of each prompt added at some sites and tokens.

        shifts: [prompt, width] by site; many steered versions of one question are simply many prompts.
        """
        log_odds = torch.empty(len(prompts), 2, dtype=torch.float64)
        different = list(dict.fromkeys(prompts))
        length = dict(zip(different, self.model.lengths(different), strict=True))

        def read(batch: list[int]) -> None:
            part = [prompts[row] for row in batch]
            edit = None
            if shifts is not None:
                edit = _RowShift(
                    {site: rows[batch] for site, rows in shifts.items()}, at or Span(QUESTION_END)
                )
            log_odds[batch] = self._scores(part, edit).cpu()

        run_in_batches(read, [length[prompt] for prompt in prompts], _BUDGET[self.words.scored])
        scores: Float[np.ndarray, "row 2"] = log_odds.numpy()
        return scores

    def steered(
        self, prompts: Sequence[Prompt], variants: Sequence[tuple[Shifts, Selector]]
    ) -> tuple[Float[np.ndarray, " row"], Float[np.ndarray, "variant row"]]:
        """PD of each prompt, plain and under each variant: vectors [prompt, width] by site, at the tokens selected.

        The prompts run once; a variant runs from its first shifted token and block on.
        """
        if self.words.tokens is None or self.model.is_remote:
            plain = self.answers(prompts)[:, 0]
            return plain, np.stack([self.answers(prompts, *variant)[:, 0] for variant in variants])
        asked = self.model.tokenize(prompts)
        cells = [
            [_cell(shifts, row, tuple(at.resolve(asked, row))) for shifts, at in variants]
            for row in range(len(prompts))
        ]
        found = PatchSweep(self.model, prompts, cells, _Certainty(*self.words.tokens)).run()
        return found.plain, found.values.T

    def _scores(self, prompts: list[Prompt], edit: _RowShift | None) -> Float[Tensor, "row 2"]:
        steered = nullcontext() if edit is None else self.model.steering(edit)
        with steered:
            if self.words.tokens is not None:
                logits = self.model.run(self.model.tokenize(prompts), logits="last")
                assert logits is not None
                both = logits.log_softmax(dim=-1)[:, list(self.words.tokens)].double()
            else:
                both = torch.stack(self._sequences(prompts), dim=1)
        return torch.stack([both[:, 0].exp() - both[:, 1].exp(), both[:, 0] - both[:, 1]], dim=1)

    def _sequences(self, prompts: list[Prompt]) -> list[Float[Tensor, " row"]]:
        """Log-probability of each answer's tokens behind what the two have in common."""
        after = [_continued(self.model, prompts, text) for text in self.words.texts]
        shared = [_common(*(_ids(tokens, row) for tokens in after)) for row in range(len(prompts))]
        return [continuation_log_probability(self.model, tokens, shared) for tokens in after]


def label_accuracy(
    examinee: Examinee,
    log_odds: Mapping[int, Float[np.ndarray, " row"]],
    shots: Sequence[int],
    plan: Plan,
    rows: NDArray[np.int64],
) -> list[Labels]:
    """`Labels`, plain and calibrated, of all rows and, where there are both, of affirmed and of negated ones.

    log_odds: [row] of the true answer by the number of labelled lines; shots: the number used in each fold.
    """
    groups, truth = plan.groups[rows], plan.labels[rows]
    plain, calibrated = np.zeros(len(rows), dtype=bool), np.zeros(len(rows), dtype=bool)
    for fold, n in zip(plan.folds, shots, strict=True):
        here, elsewhere = np.isin(groups, fold.test), np.isin(groups, fold.train)
        plain[here] = (log_odds[n][here] > 0) == truth[here]
        calibrated[here] = (log_odds[n][here] > np.median(log_odds[n][elsewhere])) == truth[here]
    polarity = plan.polarity[rows]
    kinds = {"all": polarity != 0, "affirmed": polarity == 1, "negated": polarity == -1}
    both = kinds["affirmed"].any() and kinds["negated"].any()
    return [
        Labels(
            model=examinee.name,
            scored=examinee.words.scored,
            calibrated=right is calibrated,
            shots=tuple(shots),
            statements=kind,
            accuracy=proportion(right[chosen], clusters=plan.clusters[rows][chosen]),
            chance=max(share := float(truth[chosen].mean()), 1 - share),
        )
        for right in (plain, calibrated)
        for kind, chosen in kinds.items()
        if kind == "all" or both
    ]


def choose_shots(
    log_odds: Sequence[Mapping[int, Float[np.ndarray, " row"]]], plan: Plan, rows: NDArray[np.int64]
) -> list[int]:
    """For each fold the fewest labelled lines that part true from false statements of its training topics well.

    log_odds: for each model [row] by number of lines. Judged by the area under the curve, which no habit moves; well is
    within a hundredth of the best.
    """
    chosen = []
    for fold in plan.folds:
        train = np.isin(plan.groups[rows], fold.train)
        truth = plan.labels[rows][train]
        areas = {n: np.mean([roc_auc_score(truth, odds[n][train]) for odds in log_odds]) for n in log_odds[0]}
        best = max(areas.values())
        chosen.append(min(n for n, area in areas.items() if area >= best - 0.01))
    return chosen


# -- private, in the order they are called --


def _continued(model: LanguageModel, questions: Sequence[Prompt], text: str) -> Tokens:
    """The questions with an answer behind them, padded on the right; spans stay where they were."""
    return model.tokenize(
        [Prompt(prompt.text + text, prompt.spans) for prompt in questions], padding_side="right"
    )


def _ids(tokens: Tokens, row: int) -> list[int]:
    first = tokens.column(row, 0)
    ids: list[int] = tokens.input_ids[row, first : first + tokens.lengths[row]].tolist()
    return ids


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    same = 0
    while same < min(len(first), len(second)) and first[same] == second[same]:
        same += 1
    return same


def _cell(shifts: Shifts, row: int, places: tuple[int, ...]) -> Cell:
    source = Shift({site: vectors[row] for site, vectors in shifts.items()})
    return tuple(StatePatch(site, places, source) for site in shifts)


class _Certainty:
    """PD: the probability of one word minus that of another."""

    tokens: Int[Tensor, "prompt k"] | None = None

    def __init__(self, true: int, false: int) -> None:
        self._words = [true, false]

    def __call__(
        self, logits: Float[Tensor, "row vocab"], prompts: Int[Tensor, " row"]
    ) -> Float[Tensor, " row"]:
        both = logits.log_softmax(dim=-1)[:, self._words].exp()
        return both[:, 0] - both[:, 1]

    def identity(self) -> str:
        return f"certainty {self._words}"


class _RowShift:
    """Adds to each row of a batch a vector of its own, at some tokens."""

    def __init__(self, shifts: Shifts, positions: Selector) -> None:
        self._shifts = shifts
        self.sites, self.positions = tuple(shifts), positions

    def apply(self, state: Float[Tensor, "batch position width"], site: Site) -> Tensor:
        return state + self._shifts[site].to(state.device, state.dtype)[:, None]

    def check(self, model: LanguageModel) -> None:
        for site in self.sites:
            model.require(site)
