"""What steering does to whole answers that nobody wants changed, and to what the model knows.

Benign requests are answered greedily, unsteered, at every dose and with the wish in the prompt. Of every answer: does
it loop, how long is it, does it end by itself, is what the question asks for still in it (of those questions that the
unsteered model answers), is it a refusal, and how likely is it under the unsteered model. And on sentences about
facts, does the model still prefer the right end.

Changes are paired by request. A change is harm where its interval lies on the bad side of zero. Whatever steering does
makes an answer less likely to the unsteered model, so that loss is held against the answers with the wish in the
prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from steerlab.card.asking import Asked
from steerlab.card.doses import at_dose
from steerlab.datasets.facts import facts
from steerlab.datasets.steering_tasks import Benign
from steerlab.judging import refuses
from steerlab.models import Generation, LanguageModel, Prompt, Tokens
from steerlab.models.batches import run_in_batches
from steerlab.progress import track
from steerlab.readouts.repetition import loops
from steerlab.readouts.scoring import continuation_log_probability
from steerlab.record import Record
from steerlab.statistics import Estimate, bootstrap_mean, paired_difference, paired_share, proportion
from steerlab.steering import Intervention

ASKED = "asked in the prompt"
TOKENS = "tokens of an answer"
LOSS = "loss under the unsteered model (nats a token)"
Bad = Literal["more", "less", ""]
_FACTS = {
    "capitals": "The capital of {} is",
    "cities": "{} is a city in",
    "continents": "{} is a country in",
    "animals": "The {} is a kind of",
}


class Measure(Record):
    """One thing measured of one way to answer.

    way: a dose as text, or "asked in the prompt". what: the measure. unsteered, value: its means. change: paired by
    request, against the unsteered answers. bad: the direction that is harm. excess: the change beyond that of the
    answers with the wish in the prompt, for measures that are held against those.
    """

    way: str
    what: str
    unsteered: Estimate
    value: Estimate
    change: Estimate
    bad: Bad
    excess: Estimate | None = None

    @property
    def is_number(self) -> bool:
        """Whether it is no share: tokens, or nats."""
        return self.what in (TOKENS, LOSS)

    @property
    def harmful(self) -> bool:
        """Whether the interval of the change (its excess, where there is one) lies on the bad side of zero."""
        change = self.change if self.excess is None else self.excess
        return (self.bad == "more" and change.low > 0) or (self.bad == "less" and change.high < 0)


class Utility(Record):
    """All measures of all ways. requests: how many were answered. new_tokens: the longest answer."""

    measures: list[Measure]
    requests: int
    new_tokens: int

    def of(self, dose: float) -> list[Measure]:
        """The measures at a dose."""
        return [measure for measure in self.measures if measure.way == f"{dose:g}"]

    def harms(self, dose: float) -> list[Measure]:
        """Those of a dose that are harm."""
        return [measure for measure in self.of(dose) if measure.harmful]


def utility(
    model: LanguageModel,
    benign: Sequence[Benign],
    wish: str,
    interventions: Sequence[Intervention],
    doses: Sequence[float],
    *,
    new_tokens: int,
    n_facts: int,
    seed: int,
) -> Utility:
    """Every measure at every dose, and of the answers with the wish in the prompt."""
    plain = [model.instruction_prompt(one.request, think=False) for one in benign]
    wished = [model.instruction_prompt(f"{one.request} {wish}", think=False) for one in benign]
    known = _facts(n_facts, seed)

    def answered(prompts: Sequence[Prompt], edits: Sequence[Intervention]) -> _Answers:
        with model.steering(*edits) if edits else nullcontext():
            written = model.generate(prompts, max_new_tokens=new_tokens)
            right = known.log_odds(model) > 0
        return _Answers.of(model, benign, plain, written, right)

    ways: list[tuple[str, Callable[[], _Answers]]] = [
        ("unsteered", lambda: answered(plain, ())),
        (ASKED, lambda: answered(wished, ())),
        *((f"{dose:g}", lambda dose=dose: answered(plain, at_dose(interventions, dose))) for dose in doses),
    ]
    found = {name: answer() for name, answer in track(ways, "answering benign requests", len(ways))}
    unsteered, asked = found.pop("unsteered"), found[ASKED]
    return Utility(
        measures=[
            measure
            for name, answers in found.items()
            for measure in answers.against(unsteered, None if name == ASKED else asked, name, seed)
        ],
        requests=len(benign),
        new_tokens=new_tokens,
    )


# -- private --


@dataclass(frozen=True)
class _Answers:
    """What is measured of the answers in one way, by request; loss is NaN where nothing was written."""

    loops: Bool[np.ndarray, " request"]
    tokens: Float[np.ndarray, " request"]
    ended: Bool[np.ndarray, " request"]
    kept: Bool[np.ndarray, " request"]
    refused: Bool[np.ndarray, " request"]
    loss: Float[np.ndarray, " request"]
    right: Bool[np.ndarray, " fact"]

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        benign: Sequence[Benign],
        plain: Sequence[Prompt],
        written: Sequence[Generation],
        right: Bool[np.ndarray, " fact"],
    ) -> _Answers:
        """Read off answers; their loss is that of the unsteered model after the plain request."""
        texts = [answer.text for answer in written]
        return cls(
            loops=loops(written),
            tokens=np.array([len(answer.token_ids) for answer in written], dtype=float),
            ended=np.array([answer.finished for answer in written], dtype=bool),
            kept=np.array([one.kept_in(text) for one, text in zip(benign, texts, strict=True)], dtype=bool),
            refused=np.array([refuses(text) for text in texts], dtype=bool),
            loss=_loss(model, plain, written),
            right=right,
        )

    def against(self, unsteered: _Answers, asked: _Answers | None, way: str, seed: int) -> list[Measure]:
        """The measures of this way, each change paired with the unsteered answers."""
        known = unsteered.kept
        shares: list[tuple[str, Bad, Bool[np.ndarray, " row"], Bool[np.ndarray, " row"]]] = [
            ("answers that loop", "more", self.loops, unsteered.loops),
            ("answers that end by themselves", "less", self.ended, unsteered.ended),
            ("right answers kept", "less", self.kept[known], unsteered.kept[known]),
            ("refusals of harmless requests", "more", self.refused, unsteered.refused),
            ("facts told right", "less", self.right, unsteered.right),
        ]
        measures = [
            Measure(
                way=way,
                what=what,
                unsteered=proportion(before),
                value=proportion(after),
                change=paired_share(after, before),
                bad=bad,
            )
            for what, bad, after, before in shares
            if len(before)
        ]
        written = ~np.isnan(self.loss) & ~np.isnan(unsteered.loss)
        numbers: list[
            tuple[str, Bad, Float[np.ndarray, " row"], Float[np.ndarray, " row"], Estimate | None]
        ] = [(TOKENS, "", self.tokens, unsteered.tokens, None)]
        if written.any():
            excess = None if asked is None else _excess(self.loss, asked.loss, seed)
            numbers.append(
                (LOSS, "more" if asked else "", self.loss[written], unsteered.loss[written], excess)
            )
        return measures + [
            Measure(
                way=way,
                what=what,
                unsteered=bootstrap_mean(before, seed=seed),
                value=bootstrap_mean(after, seed=seed),
                change=paired_difference(after, before, seed=seed),
                bad=bad,
                excess=beyond,
            )
            for what, bad, after, before, beyond in numbers
        ]


def _excess(
    steered: Float[np.ndarray, " request"], asked: Float[np.ndarray, " request"], seed: int
) -> Estimate | None:
    both = ~np.isnan(steered) & ~np.isnan(asked)
    return paired_difference(steered[both], asked[both], seed=seed) if both.any() else None


def _loss(
    model: LanguageModel, prompts: Sequence[Prompt], written: Sequence[Generation]
) -> Float[np.ndarray, " request"]:
    """Nats a token of each answer under the model as it is here; NaN where nothing was written."""
    found = np.full(len(written), np.nan)
    rows = [row for row, answer in enumerate(written) if answer.token_ids]
    heads = model.token_ids(prompts)
    ids = [[*heads[row], *written[row].token_ids] for row in rows]

    def score(batch: list[int]) -> None:
        tokens = Tokens.of_ids([ids[at] for at in batch])
        starts = [len(heads[rows[at]]) for at in batch]
        total = continuation_log_probability(model, tokens, starts)
        for at, value in zip(batch, total.tolist(), strict=True):
            found[rows[at]] = -value / len(written[rows[at]].token_ids)

    if ids:
        run_in_batches(score, list(map(len, ids)), 2048)
    return found


def _facts(count: int, seed: int) -> Asked:
    """Sentences about facts: the right end, and that of another fact of the same kind."""
    rng = np.random.default_rng(seed)
    prompts, right, wrong = [], [], []
    for topic, sentence in _FACTS.items():
        every = facts(topic)
        for at in rng.permutation(len(every))[: count // len(_FACTS)]:
            fact = every[at]
            others = [other.object for other in every if other.object != fact.object]
            prompts.append(Prompt(sentence.format(fact.subject)))
            right.append(f" {fact.object}")
            wrong.append(f" {others[rng.integers(len(others))]}")
    return Asked(prompts, right, wrong)
