"""Does an alarm keep its promise, and does it find the thing? Rates, recall and AUROC beside two baselines.

The chats without the thing are split in halves by conversation, some times over: the threshold is learnt on one half
and its false alarms are counted on the other; their mean over the splits is what the promise is held to. On chats of
another kind (`shifted`) nothing is promised, and the rate is reported because probes are known to fail there. Recall is
the share of chats with the thing that sound the alarm, AUROC the chance that one of them scores above one without.

A baseline that reads the texts alone (a logistic regression on their words, out of fold) tells what of this a probe is
not needed for; directions fitted to shuffled labels, read on each answer's mean state, tell what chance gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field

from steerlab import plots
from steerlab.directions import Direction, ScoreCalibration
from steerlab.errors import SteeringError
from steerlab.models import LanguageModel
from steerlab.monitoring.alarm import Alarm, Per, losses
from steerlab.monitoring.chats import Answer, Chat, ChatScores, answers_of, score_chats
from steerlab.monitoring.watching import one_vector, unit_vectors
from steerlab.record import Record
from steerlab.results import Table
from steerlab.statistics import (
    Estimate,
    auroc,
    bootstrap_mean,
    conformal_threshold,
    mean_and_extremes,
    proportion,
)

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_MARGIN = 0.01  # what the mean over splits may pass the rate by


class Assessment(Record):
    """What an alarm does on chats that were written already.

    Attributes:
        rate, per: the alarm's promise.
        threshold: learnt on all chats without the thing.
        units: how many conversations without it; a question with its answer is one.
        false_alarms: mean rate over the splits, with the least and the greatest one.
        splits: how many.
        shifted: by name the rate on chats of other kinds, with its interval.
        recall: with the thing, the mean share of a chat's units that sound it; None without such chats.
        auroc: of the largest scores (per token: of the tokens), with its interval.
        text_recall, text_auroc: of the baseline that reads the words, always answer by answer.
        shuffled_auroc: of directions fitted to shuffled labels, least to greatest.
    """

    rate: float
    per: Per
    threshold: float
    units: int
    false_alarms: Estimate
    splits: int
    shifted: dict[str, Estimate] = Field(default_factory=dict)
    recall: Estimate | None = None
    auroc: Estimate | None = None
    text_recall: Estimate | None = None
    text_auroc: Estimate | None = None
    shuffled_auroc: Estimate | None = None

    @property
    def keeps_promise(self) -> bool:
        """Whether the mean rate over the splits is at most the promised one and a point."""
        return self.false_alarms.value <= self.rate + _MARGIN

    @property
    def summary(self) -> tuple[str, ...]:
        """The findings in sentences."""
        kept = "keeps its promise" if self.keeps_promise else "does not keep its promise"
        said = [
            f"The alarm {kept}: of {self.rate:.1%} per {self.per} promised, "
            f"{self.false_alarms.value:.1%} sounded on held-out halves (mean of {self.splits} splits)."
        ]
        for name, rate in self.shifted.items():
            verdict = "more than promised" if rate.low > self.rate else "not told from the promise"
            verdict = "less than promised" if rate.high < self.rate else verdict
            said.append(f"On {name} it sounds at {rate:%}, {verdict}.")
        if self.recall is not None and self.auroc is not None:
            what = "tokens of an answer" if self.per == "token" else f"{self.per}s"
            beside = ""
            if self.text_auroc is not None:
                beside = (
                    f"; the words of whole answers have {self.text_auroc:.3f}, shuffled labels "
                    f"{self.shuffled_auroc:.3f}"
                )
            said.append(
                f"With the thing it sounds at {self.recall:%} of {what} (AUROC {self.auroc:.3f}){beside}."
            )
        return tuple(said)

    def table(self) -> Table:
        """Every number with its interval."""
        rows: list[tuple[str, Estimate | float | None]] = [
            ("promised rate", self.rate),
            ("rate on held-out halves", self.false_alarms),
            *((f"rate on {name}", rate) for name, rate in self.shifted.items()),
            ("recall", self.recall),
            ("AUROC", self.auroc),
            ("recall of the words alone", self.text_recall),
            ("AUROC of the words alone", self.text_auroc),
            ("AUROC of shuffled labels", self.shuffled_auroc),
        ]
        return Table.of(
            "alarm",
            f"An alarm per {self.per}",
            [row for row in rows if row[1] is not None],
            {"what": lambda row: row[0], "value": lambda row: row[1]},
        )

    def plot(self) -> Figure:
        """Rates of false alarms beside the promised one, and recall."""
        named = {"held-out halves": self.false_alarms, **self.shifted}
        if self.recall is not None:
            named["with the thing (recall)"] = self.recall
        figure = plots.bars(
            list(named),
            [plots.Series.of(f"share per {self.per}", list(named.values()), role="post")],
            title=f"Alarms per {self.per}",
            y_title="share",
            y_range=(0.0, 1.05),
        )
        figure.add_hline(y=self.rate, line={"dash": "dot", "width": 1}, annotation_text="promised")
        return figure

    def _repr_html_(self) -> str:
        from steerlab.showing import html_table, html_text

        table = self.table()
        return "".join(map(html_text, self.summary)) + html_table(table.title, table.columns, table.rows)


@overload
def assess(
    probe: Direction,
    model: LanguageModel,
    alarm: Alarm,
    *,
    without: Iterable[Chat],
    having: Iterable[Chat] = ...,
    shifted: Mapping[str, Iterable[Chat]] | None = ...,
    splits: int = ...,
    shuffles: int = ...,
    seed: int = ...,
) -> Assessment: ...


@overload
def assess(
    probe: Direction,
    model: LanguageModel,
    alarm: Sequence[Alarm],
    *,
    without: Iterable[Chat],
    having: Iterable[Chat] = ...,
    shifted: Mapping[str, Iterable[Chat]] | None = ...,
    splits: int = ...,
    shuffles: int = ...,
    seed: int = ...,
) -> list[Assessment]: ...


# Long: most of it documents its options.
def assess(
    probe: Direction,
    model: LanguageModel,
    alarm: Alarm | Sequence[Alarm],
    *,
    without: Iterable[Chat],
    having: Iterable[Chat] = (),
    shifted: Mapping[str, Iterable[Chat]] | None = None,
    splits: int = 20,
    shuffles: int = 20,
    seed: int = 0,
) -> Assessment | list[Assessment]:
    """Measure an alarm, or several, on chats that neither the direction nor a calibration has seen.

    Args:
        probe: a direction; a calibration of its own is not used.
        alarm: one gives one assessment, a list of them a list; the chats are read once.
        without: chats without the thing, like those that will be watched; halves must support the rate.
        having: chats with the thing.
        shifted: chats without the thing of other kinds, by name.
        splits: how often the chats without the thing are halved.
        shuffles: directions fitted to shuffled labels.

    Raises:
        SteeringError: too few chats for the rate, or a chat without an answer.
    """
    if splits < 1:
        raise SteeringError(f"An alarm is assessed on one split or more, not on {splits}.")
    probe = one_vector(probe)
    probe.check(model)
    quiet = _read(model, probe, answers_of(model, without))
    alarms = [alarm] if isinstance(alarm, Alarm) else list(alarm)
    count = quiet.known.n_conversations
    for each in alarms:
        if count // 2 < each.needed:
            raise SteeringError(
                f"Halves of {count} chats cannot support {each}; give at least {2 * each.needed} without the thing, or "
                "allow a higher rate."
            )
    others = {
        name: _read(model, probe, answers_of(model, chats, name)) for name, chats in (shifted or {}).items()
    }
    chats = list(having)
    loud = _read(model, probe, answers_of(model, chats, "having")) if chats else None
    found = [_assessed(each, quiet, loud, others, (splits, shuffles, seed)) for each in alarms]
    return found[0] if isinstance(alarm, Alarm) else found


# -- private --


@dataclass(frozen=True, eq=False)
class _Chats:
    """Answers with their scores."""

    answers: Sequence[Answer]
    read: ChatScores
    known: ScoreCalibration


def _read(model: LanguageModel, probe: Direction, answers: Sequence[Answer]) -> _Chats:
    (site,) = probe.sites
    read = score_chats(model, answers, site, unit_vectors([probe], site))
    known = ScoreCalibration(read.values[:, 0], read.answer, read.conversation, read.dataset_hash)
    return _Chats(answers, read, known)


def _assessed(
    alarm: Alarm,
    quiet: _Chats,
    loud: _Chats | None,
    others: Mapping[str, _Chats],
    amounts: tuple[int, int, int],
) -> Assessment:
    splits, shuffles, seed = amounts
    rng, known = np.random.default_rng(seed), quiet.known
    limit = alarm.limit(known)
    rates = [_split_rate(known, alarm, rng) for _ in range(splits)]
    result = Assessment(
        rate=alarm.rate,
        per=alarm.per,
        threshold=limit,
        units=known.n_conversations,
        false_alarms=mean_and_extremes(rates, "mean of {n} splits in halves, least to greatest"),
        splits=splits,
        shifted={name: _rate(each.known, alarm, limit, seed) for name, each in others.items()},
    )
    if loud is None:
        return result
    update: dict[str, Estimate | None] = {
        "recall": _rate(loud.known, alarm, limit, seed),
        "auroc": _auroc(known, loud.known, alarm, seed),
        "shuffled_auroc": _shuffled(quiet.read, loud.read, shuffles, rng),
        **_by_words(quiet.answers, loud.answers, alarm, seed),
    }
    return result.model_copy(update=update)


def _split_rate(known: ScoreCalibration, alarm: Alarm, rng: np.random.Generator) -> float:
    """Of one split in halves by conversation: the threshold of one, the false alarms of the other."""
    names = known.conversations.unique().numpy()
    first = torch.from_numpy(rng.permutation(names)[: len(names) // 2])
    mine = torch.isin(known.conversations[known.answers], first)
    learnt, tested = (
        ScoreCalibration(known.scores[chosen], known.answers[chosen], known.conversations)
        for chosen in (mine, ~mine)
    )
    return float(losses(tested, alarm.per, alarm.limit(learnt)).mean())


def _rate(known: ScoreCalibration, alarm: Alarm, limit: float, seed: int) -> Estimate:
    """The mean share of a chat's units that sound an alarm."""
    lost = losses(known, alarm.per, limit).numpy()
    whole = bool(np.isin(lost, (0.0, 1.0)).all())  # one answer a chat
    return (
        proportion(lost.astype(bool)) if whole and alarm.per != "token" else bootstrap_mean(lost, seed=seed)
    )


def _auroc(quiet: ScoreCalibration, loud: ScoreCalibration, alarm: Alarm, seed: int) -> Estimate:
    if alarm.per == "token":
        scores = torch.cat([quiet.scores, loud.scores])
        units = torch.cat([quiet.answers, loud.answers + len(quiet.conversations)])
    else:
        parts = [
            each.largest(each.conversations[each.answers] if alarm.per == "conversation" else each.answers)
            for each in (quiet, loud)
        ]
        scores, units = torch.cat(parts), torch.arange(sum(map(len, parts)))
    count = len(quiet.scores) if alarm.per == "token" else len(parts[0])
    labels = np.arange(len(scores)) >= count
    return auroc(scores.numpy(), labels, units.numpy(), seed=seed)


def _shuffled(quiet: ChatScores, loud: ChatScores, draws: int, rng: np.random.Generator) -> Estimate:
    """Differences in means of shuffled labels on a half of the answers, read on the other half with the real ones."""
    states = torch.cat([quiet.means, loud.means]).double().numpy()
    real = np.arange(len(states)) >= len(quiet.means)
    found = []
    for _ in range(draws):
        order = rng.permutation(len(states))
        fit, rest = order[: len(order) // 2], order[len(order) // 2 :]
        labels = rng.permutation(real[fit])
        if labels.all() or not labels.any() or real[rest].all() or not real[rest].any():
            continue
        direction: Float[np.ndarray, " width"] = states[fit][labels].mean(0) - states[fit][~labels].mean(0)
        found.append(auroc(states[rest] @ direction, real[rest], seed=0, draws=1).value)
    return mean_and_extremes(found, "mean of {n} shufflings, least to greatest")


def _by_words(
    quiet: Sequence[Answer], loud: Sequence[Answer], alarm: Alarm, seed: int
) -> dict[str, Estimate | None]:
    """A logistic regression on the answers' words, out of fold with conversations held out whole."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline

    texts = [each.text for each in (*quiet, *loud)]
    labels = np.arange(len(texts)) >= len(quiet)
    groups = np.array(
        [each.conversation for each in quiet] + [each.conversation + len(quiet) for each in loud]
    )
    least = min(len({*groups[labels]}), len({*groups[~labels]}))
    if least < 2:
        return {"text_recall": None, "text_auroc": None}
    folds = StratifiedGroupKFold(min(5, least), shuffle=True, random_state=seed)
    reader = make_pipeline(
        CountVectorizer(token_pattern=r"\S+"), LogisticRegression(max_iter=2000, class_weight="balanced")
    )
    scores = cross_val_predict(reader, texts, labels, groups=groups, cv=folds, method="decision_function")
    limit = conformal_threshold(scores[~labels], alarm.rate)
    return {
        "text_recall": proportion(scores[labels] > limit),
        "text_auroc": auroc(scores, labels, groups, seed=seed),
    }
