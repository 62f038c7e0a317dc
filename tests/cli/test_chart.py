from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fogline.cli.chart import chart


@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=200),
    st.integers(20, 120),
    st.integers(1, 20),
    st.booleans(),
)
def test_any_values_fit_the_width_and_height(values: list[float], width: int, height: int, unicode: bool) -> None:
    y = np.clip(np.array(values, dtype=float), -1e300, 1e300)
    lines = chart(np.arange(len(y), dtype=float), y, width=width, height=height, unicode=unicode)
    if np.isfinite(y).any():
        assert len(lines) == height + 1
    assert max(map(len, lines)) <= max(width, 32)


def test_a_falling_line_falls_from_the_left_edge_to_the_right() -> None:
    lines = chart(np.arange(100.0), np.linspace(9, 1, 100), width=60, height=8, unicode=False)
    marks = [line.index("*") for line in lines[:-1]]
    assert marks == sorted(marks)
    assert float(lines[0].split()[0]) == pytest.approx(9, abs=0.1)
    assert float(lines[-2].split()[0]) == pytest.approx(1, abs=0.1)


def test_a_wide_range_is_drawn_on_a_logarithmic_axis_where_a_power_law_is_straight() -> None:
    lines = chart(np.arange(100.0), np.geomspace(1, 1e-6, 100), width=60, height=6, unicode=False)
    assert "(logarithmic)" in lines[-1]
    marks = np.array([line.index("*") for line in lines[:-1]])
    assert np.ptp(np.diff(marks)[1:-1]) <= 1


@pytest.mark.parametrize("values", [[], [np.nan, np.inf]])
def test_nothing_to_draw_is_said_in_words(values: list[float]) -> None:
    assert chart(np.arange(float(len(values))), np.array(values)) == ["(no finite values to draw)"]


def test_every_dot_is_a_braille_character() -> None:
    lines = chart(np.arange(50.0), np.cos(np.arange(50.0)), width=40, height=5)
    drawn = "".join(line.split("┤")[1] for line in lines[:-1])
    assert {"\u2800" <= character <= "\u28ff" for character in drawn} == {True}


def test_equal_factors_are_equally_wide_where_positions_are_logarithmic() -> None:
    lines = chart(
        np.array([0.001, 0.01, 0.1]), np.array([1.0, 0.0, 1.0]), width=61, height=5, unicode=False, logarithmic_x=True
    )
    lowest = lines[-2].split("|")[1]
    assert (len(lowest) + lowest.index("*")) / 2 == pytest.approx(25, abs=2)
    assert lines[-1].split() == ["0.001", "0.1"]


@pytest.mark.parametrize("mark", [0.001, 0.002, 0.01, 0.07, 0.1])
@pytest.mark.parametrize("width", [20, 32, 80])
def test_a_mark_points_at_its_position_within_the_width(mark: float, width: int) -> None:
    rates = np.array([0.001, 0.01, 0.1])
    lines = chart(rates, rates, width=width, height=3, unicode=False, logarithmic_x=True, mark=mark)
    assert len(lines[-1]) <= max(width, 32)
    assert f"{mark:g}" in lines[-1]
    margin = lines[0].index("|") + 1
    cells = max(8, width - len("-1.2e-104") - 2)
    share = (lines[-1].index("^") - margin) / (cells - 1)
    assert share == pytest.approx(np.log(mark / 0.001) / np.log(100), abs=1 / cells)


def test_a_mark_outside_is_not_drawn() -> None:
    rates = np.array([0.001, 0.1])
    assert len(chart(rates, rates, height=3, logarithmic_x=True, mark=1.0)) == 4
