from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import plotly.graph_objects as go
import pytest

from steerlab import plots
from steerlab.plots import Series
from steerlab.plots.series import looks
from steerlab.plots.theme import DIVERGING, role_of, text
from steerlab.statistics import Estimate

NASTY = "<script>alert('x')</script> $x^2$ %{y} & <b>bold</b>"


def figures(name: str = "label") -> dict[str, go.Figure]:
    line = Series(name, [0.1, 0.5, 0.4], [0.0, 0.4, 0.3], [0.2, 0.6, 0.5], x=[0.1, 0.5, 0.9], n=[3, 4, 5])
    cells = np.array([[0.9, 0.1], [-0.2, 0.5]])
    return {
        "heatmap": plots.heatmap(
            cells, [name, "b"], [name, "d"], title=name, low=cells - 0.1, high=cells + 0.1, colour_title=name
        ),
        "curves": plots.curves([line], title=name, x_title=name, y_title=name, zero_line=True),
        "scatter": plots.scatter(
            [Series(name, [1, 2], x=[1, 2], labels=[name, name])], title=name, diagonal=True
        ),
        "bars": plots.bars([name, name, "c"], [line], title=name),
        "reliability": plots.reliability([line], title=name),
        "histogram": plots.histogram([Series(name, [1, 2, 2, 3])], title=name, marks=[(name, 2.5)]),
    }


@pytest.mark.parametrize("kind", list(figures()))
def test_every_string_is_escaped(kind: str) -> None:
    written = figures(NASTY)[kind].to_json()
    for raw in ("<script", "$x^2$", "%{y} &", "<b>bold"):
        assert raw not in json.dumps(json.loads(written), ensure_ascii=False)
    assert "&lt;scri" in written


@pytest.mark.parametrize("kind", list(figures()))
def test_every_primitive_draws_in_the_theme(kind: str) -> None:
    figure = figures()[kind]
    assert plots.draws_something(figure)
    assert figure.layout.title.text == "label"
    assert figure.layout.template.layout.font.size == 13


def test_text_is_shown_letter_by_letter() -> None:
    assert text("a <i>b</i> & $c$") == "a &lt;i&gt;b&lt;/i&gt; &amp; &#36;c&#36;"
    assert text("one\n  two") == "one two"
    assert text("abcdef", 4) == "abc…"
    assert "%{" not in text("%{x}")


def test_base_and_post_have_their_colours_everywhere() -> None:
    series = [Series("BASE", [1.0, 2.0]), Series("POST", [2.0, 1.0]), Series("random direction", [0.0, 0.0])]
    wanted = [plots.BASE, plots.POST, plots.CONTROL]
    assert [trace.line.color for trace in plots.curves(series, title="t").data] == wanted
    assert [trace.marker.color for trace in plots.bars(["a", "b"], series, title="t").data] == wanted
    clouds = [Series(one.name, one.y, x=[0, 1]) for one in series]
    assert [trace.marker.color for trace in plots.scatter(clouds, title="t").data] == wanted
    # whatever the order, and with an explicit role over the name
    assert looks([Series("POST", [1]), Series("BASE", [1])])[1].colour == plots.BASE
    assert looks([Series("Qwen", [1], role="post")])[0].colour == plots.POST


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("BASE", "base"),
        ("POST, ablated", "post"),
        ("Shuffled labels", "control"),
        ("BASE, random", "control"),
        ("x", "other"),
    ],
)
def test_roles_by_name(name: str, role: str) -> None:
    assert role_of(name) == role


def test_repeats_of_a_role_are_told_apart_by_dash() -> None:
    found = looks(
        [Series("BASE", [1]), Series("BASE, POST's direction", [1]), Series("a", [1]), Series("b", [1])]
    )
    assert found[0].colour == found[1].colour
    assert found[0].dash != found[1].dash
    assert found[2].colour != found[3].colour


def test_heatmap_values_intervals_and_scale() -> None:
    cells = np.array([[0.9, -0.1], [0.2, np.nan]])
    figure = plots.heatmap(cells, "ab", "cd", title="t", low=cells - 0.1, high=cells + 0.2, diverging=True)
    trace = figure.data[0]
    assert trace.text[0][1] == "<b>-0.10</b><br>[-0.20, 0.10]"
    assert trace.text[1][1] == ""
    assert (trace.zmin, trace.zmax) == (-0.9, 0.9)
    middle = [colour for at, colour in trace.colorscale if at == 0.5]
    assert middle == [DIVERGING[2][1]]
    # the first row is on top
    assert (
        figure.layout.yaxis.autorange == "reversed"
        or figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]
    )
    big = plots.heatmap(np.zeros((10, 10)), range(10), range(10), title="t").data[0]
    assert big.texttemplate is None
    assert plots.heatmap([[0.5]], "a", "b", title="t", limits=(0, 1)).data[0].zmax == 1


def test_bands_and_error_bars_reach_the_ends() -> None:
    line = Series("BASE", [1.0, 2.0, 3.0], [0.5, np.nan, 2.5], [1.5, np.nan, 4.0])
    band, curve = plots.curves([line], [0, 1, 2], title="t").data
    assert sorted(band.y) == [0.5, 1.5, 2.5, 4.0]
    assert list(curve.y) == [1, 2, 3]
    bar = plots.bars("abc", [line], title="t").data[0]
    assert list(bar.error_y.array) == [0.5, 0, 1.0]
    assert list(bar.error_y.arrayminus) == [0.5, 0, 0.5]


def test_layers_have_whole_ticks() -> None:
    assert plots.curves([Series("BASE", [1, 2, 3])], title="t").layout.xaxis.dtick == 1
    assert plots.curves([Series("BASE", [1, 2, 3])], [0, 0.5, 1], title="t").layout.xaxis.dtick is None
    assert plots.curves([Series("BASE", range(100))], title="t").layout.xaxis.dtick is None


def test_equal_labels_stay_two_categories() -> None:
    figure = plots.bars(["1", "1", "2020-01-01"], [Series("BASE", [1, 2, 3])], title="t")
    assert list(figure.data[0].x) == [0, 1, 2]
    assert list(figure.layout.xaxis.ticktext) == ["1", "1", "2020-01-01"]


def test_histogram_counts_every_finite_value_once() -> None:
    values = np.append(np.random.default_rng(0).normal(size=500), np.nan)
    figure = plots.histogram([Series("random", values)], title="t", marks=[("observed", 4.0)])
    assert sum(figure.data[0].y) == 500
    assert figure.layout.shapes[0].x0 == 4.0


def test_reliability_has_the_diagonal_and_the_counts() -> None:
    line = Series("POST", [0.1, 0.6], [0.0, 0.5], [0.3, 0.8], x=[0.2, 0.7], n=[10, 20])
    figure = plots.reliability([line], title="t")
    assert list(figure.data[0].x) == list(figure.data[0].y) == [0, 1]
    assert [list(trace.y) for trace in figure.data if trace.type == "bar"] == [[10, 20]]
    assert len(plots.reliability([Series("POST", [0.1], x=[0.2])], title="t").data) == 2


@pytest.mark.parametrize(
    "figure",
    [
        go.Figure(),
        plots.curves([], title="t"),
        plots.curves([Series("BASE", [np.nan, np.nan])], title="t"),
        plots.heatmap([[np.nan]], "a", "b", title="t"),
    ],
)
def test_a_figure_that_draws_nothing_is_known(figure: go.Figure) -> None:
    assert not plots.draws_something(figure)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: plots.heatmap([[1.0]], "ab", "c", title="t"), r"\[1, 2\]"),
        (lambda: plots.heatmap([[1.0]], "a", "c", title="t", low=[1.0], high=[1.0]), "shape of the values"),
        (lambda: plots.curves([Series("BASE", [1.0])], [1, 2], title="t"), "'BASE'"),
        (lambda: plots.curves([Series("BASE", [1.0], [1.0, 2.0], [1.0, 2.0])], title="t"), "low and high"),
        (lambda: plots.bars("abc", [Series("BASE", [1.0])], title="t"), "3 categories"),
    ],
)
def test_wrong_shapes_are_a_sentence(call: Callable[[], go.Figure], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


def test_a_series_of_estimates_keeps_value_and_interval() -> None:
    estimates = [Estimate(value=0.5, low=0.25, high=0.75), Estimate(value=1.0, low=0.5, high=1.0)]
    series = Series.of("accuracy", estimates, role="post")
    assert series.values().tolist() == [0.5, 1.0]
    ends = series.ends()
    assert ends is not None
    assert [end.tolist() for end in ends] == [[0.25, 0.5], [0.75, 1.0]]
