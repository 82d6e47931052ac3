"""Nothing changed: a model against a second load of itself gives no difference in any table, and no sentence tells one.

With the same batches numbers are equal to the last bit; with others they are equal but for the order of float32 sums.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from smaller import use_smaller_amounts
from tolerances import close

from steerlab import zoo
from steerlab.comparison import run_study
from steerlab.models import LanguageModel, Site, batches
from steerlab.readouts import samples
from steerlab.results import StudyResult, Table
from steerlab.run_data import on_topics, read_data
from steerlab.statistics import Estimate
from steerlab.studies import Pair

STUDIES = ("truthfulness", "refusal", "confidence", "branching", "knowledge")
MODEL = "small-post"  # it refuses, knows its topics and has a chat template
#: What a sentence says where two models differ.
CHANGED = re.compile(
    r"narrows|widens|\(changed\)|a change of|more than any control|more than they do\.|[1-9]\d* of \d+ cells differ|"
    r"[1-9]\d* of the intervals exclude 1"
)
#: Columns of differences and ratios between the two models, by study and table, in the rows that are named.
BETWEEN = {
    ("confidence", "changes"): ("change", 0.0, ""),
    ("branching", "ratios"): ("value", 1.0, "base over post"),
    ("branching", "prompt_sets"): ("ratio", 1.0, ""),
    ("branching", "attribution"): ("factor on BF", 1.0, "model"),
    ("knowledge", "recovery"): ("recovered", 1.0, ""),
    ("knowledge", "agreement"): ("correlation, all cells", 1.0, "base and post"),
    ("truthfulness", "cosine"): ("cosine", 1.0, ""),
    ("refusal", "cosine_own"): ("cosine", 1.0, ""),
    ("refusal", "cosine_plain"): ("cosine", 1.0, ""),
    ("confidence", "neuron_overlap"): ("value", 1.0, "overlap of the candidates"),
}
COSINES = {"cosine", "correlation, all cells"}  # quotients of norms: one but for the last bits


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair(zoo.load(MODEL), zoo.load(MODEL))


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    use_smaller_amounts(monkeypatch)


def run(study: str, pair: Pair) -> StudyResult:
    result = run_study(study, pair, on_topics(read_data(None, None, None), pair.topics))
    assert result.status in ("done", "not identified")
    return result


def exchanged(label: object) -> object:
    """A label with base and post the other way round."""
    return re.sub(r"\b(base|post)\b", lambda found: {"base": "post", "post": "base"}[found[0]], str(label))


def numbers(cell: object) -> tuple[float, ...] | None:
    """The numbers of a cell, none of a label."""
    if isinstance(cell, Estimate):
        return (cell.value, cell.low, cell.high, float(cell.n))
    return (float(cell),) if isinstance(cell, int | float) else None


def counterparts(table: Table) -> Iterator[tuple[object, object]]:
    """Cells of base beside those of post: in the row, or the column, whose labels are exchanged."""
    rows = [[numbers(cell) for cell in row] for row in table.rows]
    labels = [tuple(cell for cell in row if numbers(cell) is None) for row in table.rows]
    keys = [tuple(map(exchanged, label)) for label in labels]
    plain = [tuple(map(str, label)) for label in labels]
    for at, key in enumerate(keys):
        same = [other for other in range(len(rows)) if plain[other] == key]
        if len(same) == plain.count(plain[at]) and plain[at] != key:
            yield from zip(rows[at], rows[same[plain[:at].count(plain[at])]], strict=True)
    for first, second in itertools.combinations(range(len(table.columns)), 2):
        if table.columns[first] == exchanged(table.columns[second]) != table.columns[second]:
            yield from ((row[first], row[second]) for row in rows)


def between(study: str, table: Table) -> Iterator[tuple[Estimate, float, bool]]:
    """Differences and ratios of a table with what they are of equal models, and whether they are so to the last bit."""
    column, none, named = BETWEEN.get((study, table.key), ("", 0.0, ""))
    for row in table.rows if column else ():
        cell = row[list(table.columns).index(column)]
        if str(row[0]).startswith(named) and isinstance(cell, Estimate):
            yield cell, none, column not in COSINES


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.filterwarnings("ignore")
def test_the_same_batches_give_exactly_no_difference(study: str, pair: Pair) -> None:
    result = run(study, pair)
    assert not [said for said in result.summary if CHANGED.search(said)]
    compared, told = 0, 0
    for table in result.tables():
        for first, second in counterparts(table):
            assert first is None or np.array_equal(first, second, equal_nan=True), (study, table.key)
            compared += 1
        for cell, none, exactly in between(study, table):
            assert cell.value == (none if exactly else pytest.approx(none, abs=1e-12)), (study, table.key)
            assert cell.low - 1e-12 <= none <= cell.high + 1e-12
            told += 1
    assert compared > 20
    assert told


@pytest.fixture
def other_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call cuts its batches to a size of its own, so that base and post are read in different ones."""
    draw = np.random.default_rng(0)
    by_length, drawn = batches.batches_by_length, samples.sample_tokens

    def cut(lengths: list[int], token_budget: int, **options: float) -> list[list[int]]:
        return by_length(lengths, token_budget // int(draw.choice([1, 8, 32, 128])), **options)

    monkeypatch.setattr(batches, "batches_by_length", cut)
    monkeypatch.setattr(
        samples,
        "sample_tokens",
        lambda *given, **options: drawn(*given, **{**options, "rows": int(draw.choice([7, 12, 24]))}),
    )


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("other_batches")
def test_other_batches_give_no_difference_beyond_rounding(study: str, pair: Pair) -> None:
    result = run(study, pair)
    assert not [said for said in result.summary if CHANGED.search(said)]
    for table in result.tables():
        for cell, none, _ in between(study, table):
            assert cell.low - 1e-5 <= none <= cell.high + 1e-5, (study, table.key, cell)


def test_states_are_the_same_in_batches_of_any_size(pair: Pair) -> None:
    texts = list(read_data(None, None, None).plain_text[:24])
    first, second = (
        last_states(model, texts, budget) for model, budget in zip(pair, (8192, 64), strict=True)
    )
    for site in first:
        close(first[site], second[site], 1e-5)


def last_states(model: LanguageModel, texts: list[str], token_budget: int) -> dict[Site, torch.Tensor]:
    """The state at every text's last token behind every block, read in batches of so many tokens."""
    found = {site: torch.empty(len(texts), model.d_model) for site in model.sites("resid_post")}

    def read(numbers: list[int]) -> None:
        tokens = model.tokenize([texts[number] for number in numbers])

        def keep(site: Site) -> Callable[[torch.Tensor], None]:
            return lambda state: found[site].index_copy_(0, torch.tensor(numbers), state[tokens.ends].cpu())

        model.run(tokens, read={site: keep(site) for site in found})

    batches.run_in_batches(read, model.lengths(texts), token_budget)
    return found
