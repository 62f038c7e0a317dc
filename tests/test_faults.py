"""The suite of faults is consistent; that its programs are as good or as bad as they say is for its own check.py."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def faults() -> Iterator[Any]:
    place = str(Path(__file__).parent.parent / "benchmarks")
    sys.path.insert(0, place)
    import faults

    yield faults
    sys.path.remove(place)


def test_each_faulty_program_has_a_healthy_twin_in_its_half(faults):
    for program, twin in faults.twins():
        assert program.causes
        assert not twin.causes
        assert (program.half, program.kind) == (twin.half, twin.kind)


def test_names_are_unique_and_the_halves_share_no_program(faults):
    everything = faults.programs()
    assert len({program.name for program in everything}) == len(everything)
    bases = [{program.twin.split("/")[1] for program in faults.programs(half)} for half in faults.HALVES]
    assert not bases[0] & bases[1]


def test_every_cause_is_planted_in_both_halves(faults):
    from faults.program import CAUSES

    for half in faults.HALVES:
        assert {program.causes[0] for program in faults.programs(half) if len(program.causes) == 1} == CAUSES


def test_a_program_is_made_anew_each_time_and_its_test_rows_are_not_in_it(faults):
    for program in faults.programs():
        if program.make is None:
            continue
        (task, recipe), (again, _) = program.make(3), program.make(3)
        assert recipe.seed == 3
        assert task.train[0] is not again.train[0]
        rows = {tuple(row) for row in program.test()[0].flatten(1).tolist()}
        for inputs, _ in (task.train, task.valid):
            assert not rows & {tuple(row) for row in inputs.flatten(1).tolist()}, program.name


def test_a_wrong_half_is_named(faults):
    with pytest.raises(ValueError, match="half"):
        faults.programs("other")


@pytest.mark.parametrize(
    ("outputs", "labels"),
    [
        ([[0.9, 0.1], [0.2, 0.8]], [0, 1]),
        ([[-3.0], [5.0]], [0, 1]),
        ([[0.4], [0.6]], [0, 1]),
        ([[0.2], [0.9], [2.2]], [0, 1, 2]),
    ],
    ids=["two columns", "logits", "probabilities", "labels as numbers"],
)
def test_accuracy_takes_any_form_of_output(faults, outputs, labels):
    from faults import scores

    predicted = torch.tensor(outputs)
    assert scores.balanced_accuracy(torch.nn.Identity(), (predicted, torch.tensor(labels))) == 1.0


def test_scores_survive_what_is_not_a_number(faults):
    from faults import scores

    bad = torch.full((4, 1), torch.nan)
    assert scores.balanced_accuracy(torch.nn.Identity(), (bad, torch.tensor([0, 1, 0, 1]))) == 0.0
    assert scores.r_squared(torch.nn.Identity(), (bad, torch.arange(4.0))) == scores.WORST
