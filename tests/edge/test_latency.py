"""Two programs against each other: who is faster is said, and a difference that is none is not."""

from __future__ import annotations

import pytest

from fogline.edge.latency import Latency, alternating


@pytest.mark.parametrize(
    ("floating", "own", "words"),
    [
        (200.0, 100.0, "int8 is 2.00x faster here: 100 us a call, float 200 us"),
        (100.0, 200.0, "int8 is slower here: 200 us a call, float 100 us"),
        (100.0, 101.0, "int8 is as fast as float here: 101 us a call, float 100 us"),
    ],
)
def test_the_verdict_is_a_sentence(floating: float, own: float, words: str) -> None:
    assert Latency(floating, own, floating / own, 1, 1, 15).verdict == words


def test_programs_take_turns() -> None:
    order: list[str] = []
    alternating([lambda: order.append("a"), lambda: order.append("b")], rounds=2)
    measured = order[4:]  # behind the first calls, which warm up and say how long one takes
    assert measured[:4] == ["a", "b", "a", "b"]
    assert measured.count("a") == measured.count("b")
