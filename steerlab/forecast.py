"""What a comparison will cost, told before it starts: tokens of each study, and minutes on this machine.

Tokens come from runs that were measured (`costs.json`: studies of a small and of a large pair, on packaged data),
scaled to the layers of the models at hand. Speeds come from a warm-up of about a second a model. Own data change the
tokens.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from steerlab.errors import RunError
from steerlab.registry import STUDIES, Size
from steerlab.showing import duration, html_table

if TYPE_CHECKING:
    from steerlab.datasets import StudyData
    from steerlab.models import LanguageModel
    from steerlab.studies import Pair

_SECONDS = 0.25  # of each part of the warm-up
_FEW, _MANY, _QUICK = 8, 128, 0.1  # texts of the warm-up: many where a few take less than so many seconds


@dataclass(frozen=True)
class StudyCost:
    """What one study is expected to take.

    read, generated: tokens through both models. patched: token-layers. unembedded: states turned into logits. seconds:
    on this machine; None for a study that was never measured.
    """

    study: str
    read: int
    generated: int
    patched: int
    unembedded: int
    seconds: float | None


@dataclass(frozen=True)
class Forecast:
    """The expected cost of a comparison, study by study; `full` holds the seconds of size "full"."""

    studies: tuple[StudyCost, ...]
    full: float | None

    @property
    def seconds(self) -> float:
        """Seconds of all studies that were measured."""
        return sum(cost.seconds or 0.0 for cost in self.studies)

    @property
    def sentence(self) -> str:
        """ "About 14 minutes on this machine; --size full about 3 hours." """
        more = "" if self.full is None else f"; size 'full' about {duration(self.full)}"
        unknown = [cost.study for cost in self.studies if cost.seconds is None]
        rest = f" (without {' and '.join(unknown)}, never measured)" if unknown else ""
        return f"about {duration(self.seconds)} on this machine{rest}{more}"

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The table: study, tokens read and generated, token-layers patched, states unembedded, time."""
        return [
            (
                cost.study,
                *(f"{value:,}" for value in (cost.read, cost.generated, cost.patched, cost.unembedded)),
                "never measured" if cost.seconds is None else duration(cost.seconds),
            )
            for cost in self.studies
        ]

    def _repr_html_(self) -> str:
        return html_table(self.sentence, COLUMNS, self.rows)


COLUMNS = ("Study", "Tokens read", "Tokens generated", "Token-layers patched", "States unembedded", "Time")


def forecast(
    pair: Pair, studies: Sequence[str], size: Size = "quick", data: StudyData | None = None
) -> Forecast:
    """Expected tokens and seconds of studies on a loaded pair.

    data: what they read; a study of several things (contrasts) takes its measured cost for each.

    Raises:
        RunError: a remote model, whose speed is the server's.
    """
    from steerlab.studies import amounts_of

    if any(model.is_remote for model in pair):
        raise RunError("A remote model runs at the server's speed, so its time is not foreseen; run a study.")
    speeds = [_speed(model) for model in dict.fromkeys(pair)]
    layers = max(model.n_layers for model in pair)
    own = amounts_of(size, pair)
    times = {study: _things(study, data) for study in studies}
    costs = tuple(_cost(study, own, layers, speeds, times[study]) for study in studies)
    full = None
    if size == "quick":
        found = [_cost(study, "full", layers, speeds, times[study]).seconds for study in studies]
        full = None if None in found else sum(value for value in found if value is not None)
    return Forecast(costs, full)


# -- private --


@dataclass(frozen=True)
class _Speed:
    """Seconds a token read, a token generated, a token-layer and a state unembedded."""

    read: float
    generated: float
    patched: float
    unembedded: float


@cache
def measured() -> dict[str, Any]:
    """The measured costs by amounts, then study."""
    found: dict[str, Any] = json.loads(files("steerlab").joinpath("costs.json").read_text("utf-8"))
    return found


def _things(study: str, data: StudyData | None) -> int:
    """How many things a study studies one after the other."""
    needs = STUDIES[study].needs if study in STUDIES else ""
    return len(getattr(data, needs)) if needs and data is not None else 1


def _cost(study: str, amounts: str, layers: int, speeds: Sequence[_Speed], times: int = 1) -> StudyCost:
    known = measured()["amounts"].get(amounts, {}).get(study)
    if known is None:
        return StudyCost(study, 0, 0, 0, 0, None)
    patched = round(times * known["patched"] * layers / measured()["layers"][amounts])
    counts = {
        **{name: round(times * known[name]) for name in ("read", "generated", "unembedded")},
        "patched": patched,
    }
    inside = sum(
        count * sum(getattr(speed, name) for speed in speeds) / len(speeds) for name, count in counts.items()
    )
    return StudyCost(study, **counts, seconds=inside * (1 + known["outside"]))


def _speed(model: LanguageModel) -> _Speed:
    """A timed warm-up, with as many texts at once as the studies ask a model of its pace."""
    import torch

    from steerlab.models.metering import metered

    long = model.context is None or model.context >= 128
    texts = ["The weather is fine today. " * (5 if long else 1)] * _FEW
    started = time.perf_counter()
    model.logits(texts)
    if time.perf_counter() - started < _QUICK:
        texts = texts * (_MANY // _FEW)
    tokens = model.tokenize(texts)
    columns = torch.arange(tokens.width).repeat(len(tokens))
    rows = torch.arange(len(tokens)).repeat_interleave(tokens.width)
    with metered({"model": model}) as spent:
        read = _timed(lambda: model.last_hidden(tokens, rows, columns), lambda: spent["model"].read)
        hidden = model.last_hidden(tokens, rows, columns)
        unembedded = _timed(lambda: list(model.logits_in_slices(hidden)), lambda: spent["model"].unembedded)
        before = replace(spent["model"])
        started = time.perf_counter()
        model.generate(texts, max_new_tokens=8)
        written = spent["model"]
        seconds = time.perf_counter() - started
        seconds -= (written.read - before.read) * read + (written.unembedded - before.unembedded) * unembedded
        generated = max(read, seconds / max(1, written.generated - before.generated))
    return _Speed(read, generated, read / model.n_layers, unembedded)


def _timed(run: Callable[[], object], count: Callable[[], int]) -> float:
    """Seconds a counted thing, over about a quarter of a second; the first call warms up."""
    run()
    before, started = count(), time.perf_counter()
    while time.perf_counter() - started < _SECONDS:
        run()
    return (time.perf_counter() - started) / max(1, count() - before)
