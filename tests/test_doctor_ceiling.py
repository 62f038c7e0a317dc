"""Which faulty programs have lost something, what could be done about them, and the line that this adds to a table."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import fogline

pytest.importorskip("sklearn")

X = torch.arange(40.0).reshape(20, 2)
Y = torch.arange(20.0)[:, None]
SHUFFLED = torch.tensor([7, 3, 18, 0, 12, 5, 9, 1, 16, 11, 2, 19, 4, 14, 8, 6, 17, 10, 13, 15])


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    place, environment = str(Path(__file__).parent.parent / "benchmarks"), dict(os.environ)
    sys.path.insert(0, place)
    import doctor
    import doctor_ceiling
    from doctor_parts import hindsight

    yield SimpleNamespace(doctor=doctor, ceiling=doctor_ceiling, hindsight=hindsight)
    sys.path.remove(place)
    os.environ.clear()
    os.environ.update(environment)  # the benchmarks set a number of threads


@pytest.fixture
def ceiling(bench: SimpleNamespace) -> ModuleType:
    found: ModuleType = bench.ceiling
    return found


@pytest.mark.parametrize(
    ("rows", "lost"),
    [
        ((X, Y), False),
        ((X[SHUFFLED], Y[SHUFFLED]), False),
        ((X, 3 * Y + 100), False),
        ((X, -Y.exp()), False),
        ((X / 255, Y), False),
        ((torch.cat([X, X[:5]]), torch.cat([Y, Y[:5]])), False),
        ((X[1:], Y[1:]), True),
        ((X, Y[SHUFFLED]), True),
        ((X, Y.where(Y > 3, Y.mean())), True),
        ((X, 0 * Y), True),
    ],
    ids=[
        "the same", "another order", "other units", "other scale, turned round", "units of inputs", "some twice",
        "one left out", "targets shuffled", "some replaced", "constant",
    ],
)  # fmt: skip
def test_rows_are_lost_where_the_twins_cannot_be_told_from_them(ceiling: ModuleType, rows: Any, lost: bool) -> None:
    assert ceiling.rows_are_lost(rows, (X, Y)) is lost


def test_a_row_with_a_gap_is_lost(ceiling: ModuleType) -> None:
    holed = X.clone()
    holed[4, 1] = torch.nan
    assert len(ceiling.usable((holed, Y))[0]) == 19
    assert ceiling.rows_are_lost(ceiling.usable((holed, Y)), (X, Y))


def test_a_row_is_the_twins_own_where_both_input_and_target_are(ceiling: ModuleType) -> None:
    wrong = Y.clone()
    wrong[:15] += 1
    kept = ceiling.own((X[5:], wrong[5:]), (X, Y))
    assert torch.equal(kept[0], X[15:])
    assert torch.equal(kept[1], Y[15:])
    assert ceiling.own((X, Y + 1), (X, Y)) is None


def test_of_the_planted_faults_those_count_that_take_rows_or_targets(ceiling: ModuleType) -> None:
    causes = {name.split("/")[0] for _, name in ceiling._chosen(["calibration"])}
    assert causes >= {"label_noise", "shuffled_labels", "constant_target", "class_imbalance", "overfitting"}
    assert not causes & {"unscaled_input", "unscaled_target", "unshuffled_data", "duplicate_leak", "underfitting"}


def test_the_oracle_is_the_twin_with_the_rows_that_are_left_for_as_many_steps(ceiling: ModuleType) -> None:
    by_name = {program.name: program for program in ceiling.programs("calibration")}
    program = by_name["overfitting/mlp-digits/mild"]
    twin = by_name[program.twin]
    (task, recipe), (healthy, usual) = program.make(3), twin.make(3)
    taught, taken = ceiling.repairs(program, twin, 3)[ceiling.PLAIN]
    assert torch.equal(taught.train[0], task.train[0])
    assert taught.model is healthy.model
    assert (taken.batch_size, taken.lr, taken.seed) == (usual.batch_size, usual.lr, 3)
    assert taken.duration == f"{max(ceiling.steps(task, recipe), ceiling.steps(healthy, usual))}st"


def test_what_is_closed(ceiling: ModuleType) -> None:
    assert ceiling.closed(0.5, 0.9, 0.8) == pytest.approx(0.75)
    assert ceiling.closed(0.5, 0.4, 0.3) == 1.0


def test_totals_are_of_each_cause_and_of_the_half(ceiling: ModuleType) -> None:
    rows = [
        {"half": "calibration", "cause": cause, "reparable": good, "oracle_closed": 0.0, "closed": share}
        for cause, good, share in (("label_noise", True, 1.0), ("label_noise", False, 0.5), ("overfitting", False, 0.0))
    ]
    found = {row["cause"]: row for row in ceiling.totals(rows)}
    assert [(row["programs"], row["reparable"]) for row in found.values()] == [(2, 1), (1, 0), (3, 1)]
    assert found["label_noise"]["closed"] == 0.75


def few_of_one_class() -> fogline.Task:
    """90 rows of one class and 10 of the other."""
    inputs, labels = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)), (torch.arange(100) >= 90).long()

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))

    return fogline.Task(model, nn.CrossEntropyLoss(), (inputs, labels), (inputs, labels))


def changed(bench: SimpleNamespace, name: str, task: fogline.Task | None = None) -> fogline.Task:
    made = bench.hindsight.METHODS[name](task or few_of_one_class(), fogline.Recipe())
    assert made is not None
    only: fogline.Task = made[0]
    return only


def test_every_method_can_be_trained(bench: SimpleNamespace, tmp_path: Path) -> None:
    recipe = fogline.Recipe(optimizer="adam", lr=0.01, batch_size=20, duration="5st", schedule="constant")
    for name, method in bench.hindsight.METHODS.items():
        task, taken = method(few_of_one_class(), recipe)
        assert fogline.fit(task, taken, runs=tmp_path, progress=False).steps, name


def test_classes_are_balanced_by_rows_or_by_the_loss(bench: SimpleNamespace) -> None:
    repeated = changed(bench, "oversampling").train[1]
    assert torch.bincount(repeated).tolist() == [90, 90]
    weights = changed(bench, "class weights").loss.weight
    assert float(90 * weights[0]) == pytest.approx(float(10 * weights[1]))


def test_there_is_nothing_to_balance_where_no_class_is_rare(bench: SimpleNamespace) -> None:
    even = few_of_one_class()
    even = dataclasses.replace(even, train=(even.train[0], torch.arange(100) % 2))
    for name in ("class weights", "oversampling", "logit adjustment", "half of each"):
        assert bench.hindsight.METHODS[name](even, fogline.Recipe()) is None


@pytest.mark.parametrize("name", ["mixup", "noise on the inputs", "dropout 0.5"])
def test_chance_is_for_learning_only(bench: SimpleNamespace, name: str) -> None:
    given = few_of_one_class()
    task = changed(bench, name, given)
    torch.manual_seed(0)
    model = task.model()  # type: ignore[misc, operator]

    def loss() -> float:
        (inputs, targets), with_model = task.train, name != "dropout 0.5"
        with torch.no_grad():
            return float(task.loss.function(model, task.train) if with_model else task.loss(model(inputs), targets))

    model.train()
    assert loss() != loss()
    model.eval()
    assert loss() == pytest.approx(float(given.loss(model(given.train[0]), given.train[1]).detach()))


def rows() -> list[dict[str, Any]]:
    """Three programs with a fault: repaired, not, and not."""
    return [
        {"name": name, "causes": ["label_noise"], "also": [], "bites": True, "kind": "mlp", "closed": share,
         "repaired": share > 0.9, "worse": False}
        for name, share in (("a", 1.0), ("b", 0.5), ("c", 0.5))
    ]  # fmt: skip


def found(lines: list[tuple[str, str, str]]) -> dict[str, str]:
    return {title: share for title, share, _ in lines}


def test_the_repaired_are_counted_among_those_that_hindsight_repairs(bench: SimpleNamespace) -> None:
    said = found(bench.doctor.summary(rows(), frozenset({"c"})))
    assert said["repaired, one fault"] == "1 of 3 (33%)"
    assert said["repaired, of those that hindsight repairs, one fault"] == "1 of 2 (50%)"


def test_what_the_doctor_repaired_can_be_repaired(bench: SimpleNamespace) -> None:
    said = found(bench.doctor.summary(rows(), frozenset({"a", "b"})))
    assert said["repaired, of those that hindsight repairs, one fault"] == "1 of 2 (50%)"


def test_there_is_no_such_line_where_hindsight_was_not_measured(bench: SimpleNamespace, tmp_path: Path) -> None:
    assert bench.doctor.beyond_repair(tmp_path / "doctor-ceiling.json") is None
    assert not any("hindsight" in title for title in found(bench.doctor.summary(rows())))
