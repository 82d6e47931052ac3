"""Objects show themselves: short texts, small HTML tables, everything escaped, nothing harmful."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from families import tiny

import steerlab as sl
from steerlab import showing
from steerlab.results import StudyResult, Table
from steerlab.selection import Candidate, Selection

EVIL = "<script>alert('x')</script>"
TEXTS, LABELS = ["a cat", "two dogs", "a horse", "three cats"], [1, 0, 1, 0]


class _Balanced(HTMLParser):
    """Counts what is open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def tags(html: str) -> list[str]:
    parser = _Balanced()
    parser.feed(html)
    assert parser.open == []
    return parser.tags


@pytest.fixture(scope="module")
def model() -> sl.LanguageModel:
    made = tiny("llama")
    made.name = EVIL
    return made


def test_texts_are_escaped_and_cut() -> None:
    html = showing.html_table(EVIL, [EVIL], [[EVIL], [None], [float("nan")], [0.12345], ["x" * 500]])
    assert EVIL not in html
    assert set(tags(html)) == {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert [showing.text_of(cell) for cell in (None, 0.12345)] == ["–", "0.123"]
    assert len(showing.text_of("x" * 500)) == 160
    assert (showing.counted(1, "row"), showing.counted(2, "row")) == ("1 row", "2 rows")


def test_models_states_and_directions(model: sl.LanguageModel) -> None:
    states = sl.capture(model, TEXTS, ["resid_post", "embed"])
    moments = sl.capture(model, TEXTS, "resid_post", into=sl.Moments(), labels=LABELS)
    direction = sl.fit_direction(states, LABELS, "lda").at("resid_post")
    shown: list[tuple[object, list[str]]] = [
        (model, ["LlamaForCausalLM", "resid_post.0 to 2", "mlp_post", "48"]),
        (states, ["resid_post.2", "Mean norm", "4 prompts", "Last()"]),
        (moments, ["resid_post.2", "Mean norm", "rows by class 0: 2, 1: 2"]),
        (sl.Moments(), ["0 rows"]),
        (direction, ["Lda", "Class gap", "resid_post.2", "Stream norm"]),
        (sl.Direction({"resid_post.1": states["resid_post.1"][0]}, EVIL, "f"), ["given", "Norm"]),  # type: ignore[dict-item]
        (sl.Add(direction, 2, layers="all"), ["adds 2 class gaps of Lda at resid_post.0 to 2, every token"]),
    ]
    for thing, words in shown:
        html = thing._repr_html_()  # type: ignore[attr-defined]
        assert EVIL not in html
        assert all(word in html for word in words), html
        tags(html)
        assert len(repr(thing)) < 220
    assert "Class gap" not in shown[5][0]._repr_html_()  # type: ignore[attr-defined]
    assert repr(moments).startswith("Moments(mean, rows by class 0: 2, 1: 2, 3 sites")
    assert "rows by class 0: 1, 1: 1" not in repr(sl.capture(model, "a", "embed", into=sl.Moments()))


def test_data_show_counts_and_harmless_examples_only() -> None:
    packaged = sl.datasets.requests()
    data = sl.datasets.StudyData()
    for thing in (packaged, packaged.split("test"), data):
        for text in (repr(thing), thing._repr_html_()):
            assert len(text) < 4000
            assert not [request for request in packaged.positive if request[:40] in text]
    assert len(repr(packaged)) < 300
    assert packaged.negative[0][:40] in repr(packaged)
    assert f"{len(packaged.positive)} harmful" in repr(packaged)
    swapped = sl.datasets.ContrastSet(("nice",), ("cruel",), "harmless", "harmful")
    assert "cruel" not in repr(swapped) + swapped._repr_html_()
    assert "nice" in repr(swapped)
    statements = sl.datasets.statements()
    assert statements.texts[0] in statements._repr_html_()
    assert len(repr(statements)) < 500
    evil = sl.datasets.ContrastSet((EVIL,), (EVIL + " too",), EVIL, EVIL)
    assert EVIL not in evil._repr_html_()
    tags(evil._repr_html_())


class Drawn(StudyResult):
    study: str = "drawn"

    def tables(self) -> list[Table]:
        return [Table.of("one", EVIL, [1, 2], {"Number": lambda n: float(n), "Text": lambda n: EVIL})]

    def figures(self) -> dict[str, object]:  # type: ignore[override]
        series = sl.plots.Series("a", [0.0, 1.0])
        return {"one": sl.plots.curves([series], title="t", x_title="x", y_title="y")}


def test_results_show_a_figure_and_a_table_and_bring_plotly_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(showing, "_drawn", False)
    result = Drawn(summary=["It is 3 of 4.", EVIL])
    first, second = result._repr_html_(), result._repr_html_()
    assert len(first) > 1_000_000 > len(second)
    assert "Plotly.newPlot" in second
    assert "<caption>&lt;script&gt;" in second
    assert EVIL not in second
    assert repr(result) == "Drawn(drawn, done: It is 3 of 4.)"


def test_a_selection_and_a_run_show_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(showing, "_drawn", True)
    places = [Candidate(layer=layer, position=-1, bypass=layer, induce=1.0, kl=0.01) for layer in range(3)]
    selection = Selection(
        model=EVIL, n_layers=5, site="resid_post", template="chat", tokens=("I",), token_ids=(1,), rule="published",
        candidates=tuple(places), chosen=places[0], token="a", kept=(1, 1, 1, 1),
    )  # fmt: skip
    html = selection._repr_html_()
    assert "chosen" in html
    assert "<caption>Selection(layer 0, position -1" in html
    assert len(repr(selection)) < 200
    assert EVIL not in html
    run = sl.comparison.Run.__new__(sl.comparison.Run)
    object.__setattr__(run, "results", {"drawn": Drawn(summary=[EVIL])})
    object.__setattr__(run, "folder", type("Folder", (), {"report": "run/report.html"})())
    assert EVIL not in run._repr_html_()
    assert repr(run) == "Run(drawn (done); run/report.html)"
    with pytest.raises(sl.SteerlabError, match="no study 'refusal'; it has drawn"):
        run["refusal"]


ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b1A\rgone\x7f"
SHOWN = "␛]0;owned␇␛[2J\\x9b1A␍gone␡"


def test_what_would_act_on_a_terminal_is_shown_by_a_sign() -> None:
    assert showing.visible(ESCAPES) == SHOWN
    assert showing.visible("a\tb\nc ä 猫 👩‍🚀 عربي") == "a\tb\nc ä 猫 👩‍🚀 عربي"
    assert showing.visible("\u202ereversed\u2066 \ud800") == r"\u202ereversed\u2066 ?"
    assert showing.visible(SHOWN) == SHOWN
    assert "\x1b" not in showing.html_table(ESCAPES, [ESCAPES], [[ESCAPES]]) + showing.html_text(ESCAPES)


def test_words_from_the_right_turn_only_themselves_on_a_page() -> None:
    assert showing.isolated("model שלום עולם 0.93") == "model \u2068שלום עולם\u2069 0.93"
    assert showing.isolated("من 5 إلى 6 في base") == "\u2068من 5 إلى 6 في\u2069 base"
    assert showing.isolated("\u202efrom base") == r"\u202efrom base"
    assert "\u2068שלום\u2069" in showing.html_table("", ["name"], [["שלום"]])
