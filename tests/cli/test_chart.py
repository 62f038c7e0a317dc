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
