from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from steerlab.statistics import Estimate, percent


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"value": 0.83, "low": 0.79, "high": 0.87}, "0.83 [0.79, 0.87]"),
        ({"value": 0.00312, "low": 0.0029, "high": 0.0034}, "0.0031 [0.0029, 0.0034]"),
        ({"value": 1234.5, "low": 900.0, "high": 1500.0}, "1234 [900, 1500]"),
        ({"value": 1, "low": 1, "high": 1}, "1.00 [1.00, 1.00]"),
        ({"value": -0.001, "low": -0.3, "high": 0.3}, "0.00 [-0.30, 0.30]"),
        ({"value": 0.5}, "0.50 [n/a]"),
        ({"value": 0.00312}, "0.0031 [n/a]"),
        ({"value": math.nan}, "n/a"),
    ],
)
def test_text(fields: dict[str, float], text: str) -> None:
    assert str(Estimate(**fields)) == text


def test_what_the_data_cannot_give_is_never_printed_as_nan() -> None:
    for estimate in (
        Estimate(value=math.nan),
        Estimate(value=float("nan"), low=np.float64("nan")),
        Estimate.model_validate_json('{"value": null, "low": null}'),
    ):
        assert (
            f"{estimate.value:.2f}, at most {estimate.high:.3g} ({estimate.low})" == "n/a, at most n/a (n/a)"
        )
        assert math.isnan(estimate.value)
        assert math.isnan(estimate.high)
        assert estimate.model_dump_json() == Estimate(value=math.nan).model_dump_json()
    changed = Estimate(value=1).model_copy(update={"value": math.nan, "low": float("nan")})
    assert changed.model_dump() == Estimate(value=math.nan).model_dump()  # one NaN, which is itself


def test_format_spec_is_kept() -> None:
    assert f"{Estimate(value=0.83456, low=0.79, high=0.87):.3f}" == "0.835 [0.790, 0.870]"


def test_a_share_is_read_in_percent() -> None:
    assert f"{Estimate(value=0.917, low=0.742, high=0.977):%}" == "92 % [74, 98]"
    assert f"{Estimate(value=-0.001, low=-0.16, high=0.16):%}" == "0 % [-16, 16]"
    assert f"{Estimate(value=0.5):%}" == "50 % [n/a]"
    assert f"{Estimate(value=float('nan')):%}" == percent(float("nan")) == "n/a"
    assert percent(0.25) == "25 %"


@given(st.floats(allow_nan=True, allow_infinity=False), st.integers(0, 10**6))
def test_json_round_trip_with_nan_as_null(value: float, n: int) -> None:
    written = Estimate(value=value, n=n, method="x").model_dump_json()
    assert "NaN" not in written
    read = Estimate.model_validate_json(written)
    assert read.model_dump_json() == written
    assert math.isnan(read.low)
    assert json.loads(written)["low"] is None


def test_transform_keeps_the_ends_in_order() -> None:
    estimate = Estimate(value=0.0, low=-1.0, high=1.0, n=3, method="m")
    assert estimate.transform(math.exp).low == pytest.approx(math.exp(-1))
    turned = estimate.transform(lambda x: -2 * x)
    assert (turned.low, turned.high, turned.n, turned.method) == (-2, 2, 3, "m")


def test_excludes() -> None:
    assert Estimate(value=1, low=0.5, high=1.5).excludes(0)
    assert not Estimate(value=1, low=-0.5, high=1.5).excludes(0)
    assert not Estimate(value=1).excludes(0)


def test_frozen_strict_and_ordered() -> None:
    with pytest.raises(ValidationError, match="low <= high"):
        Estimate(value=1, low=2, high=1)
    with pytest.raises(ValidationError, match="extra"):
        Estimate(value=1, width=2)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="frozen"):
        Estimate(value=1).value = 2  # type: ignore[misc]
