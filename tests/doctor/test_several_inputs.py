"""Tasks whose models take several inputs: what is asked of the data of others is asked of theirs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fogline
from fogline import Recipe, Task
from fogline.doctor.causes.data.split import shifted

_DRAWS = torch.Generator().manual_seed(0)
NUMBERS = torch.randn(900, 6, generator=_DRAWS)
CODES = torch.randint(5, (900,), generator=_DRAWS)
OTHERS = torch.randn(900, 4, generator=_DRAWS)
SIGNAL = NUMBERS[:, 0] * 1.5 + torch.tensor([-1.0, 0, 1, 2, -2])[CODES] + OTHERS[:, 0] * OTHERS[:, 1]
LENGTHS = SIGNAL + 0.2 * torch.randn(900, generator=_DRAWS)
CLASSES = (SIGNAL > 0.2).long()
Rows = tuple[Tensor, Tensor, Tensor, Tensor]


class Mixed(nn.Module):
    """Reads numbers and a code, in a tuple or a dict."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.codes = nn.Embedding(5, 4)
        self.body = nn.Sequential(nn.Linear(14, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs))

    def forward(self, x: Any) -> Tensor:
        numbers, codes, others = x.values() if isinstance(x, dict) else x
        out: Tensor = self.body(torch.cat([numbers, self.codes(codes), others], 1))
        return out if out.shape[1] > 1 else out[:, 0]


def parts(targets: Tensor, edit: Callable[[Rows, bool], Rows], form: type) -> list[tuple[Any, Tensor]]:
    """Training rows and held-out rows."""
    found = []
    for rows, held in ((slice(0, 660), False), (slice(660, 900), True)):
        numbers, codes, others, y = edit(
            (NUMBERS[rows].clone(), CODES[rows].clone(), OTHERS[rows].clone(), targets[rows].clone()), held
        )
        three = (numbers, codes, others)
        found.append((three if form is tuple else dict(zip("abc", three, strict=True)), y))
    return found


def as_they_are(rows: Rows, held: bool) -> Rows:
    return rows


def in_units(rows: Rows, held: bool) -> Rows:
    return *rows[:3], rows[3] * 5000 + 20000


def moved(rows: Rows, held: bool) -> Rows:
    return ((rows[0] - 3) / 4, rows[1], rows[2] * 3 + 2, rows[3]) if held else rows


def flipped(rows: Rows, held: bool) -> Rows:
    wrong = torch.rand(len(rows[3]), generator=torch.Generator().manual_seed(1)) < 0.25
    return rows if held else (*rows[:3], torch.where(wrong, 1 - rows[3], rows[3]))


def with_slips(rows: Rows, held: bool) -> Rows:
    if not held:
        rows[3][::50] = rows[3][::50] * 300 + 1000
    return rows


def repeated(rows: Rows, held: bool) -> Rows:
    if held:
        for own, other in zip(rows, (NUMBERS, CODES, OTHERS, CLASSES), strict=True):
            own[:120] = other[:120]
    return rows


@pytest.mark.parametrize("form", [tuple, dict])
@pytest.mark.parametrize(
    ("edit", "cause"),
    [
        (as_they_are, None),
        (in_units, "unscaled_target"),
        (moved, "train_valid_mismatch"),
        (flipped, "label_noise"),
        (with_slips, "label_noise"),
        (repeated, "duplicate_leak"),
    ],
)
def test_faults_of_data(edit: Callable[[Rows, bool], Rows], cause: str | None, form: type, tmp_path: Path) -> None:
    classes = edit in (flipped, repeated)
    train, valid = parts(CLASSES if classes else LENGTHS, edit, form)
    task = Task(lambda: Mixed(1 + classes), nn.CrossEntropyLoss() if classes else nn.MSELoss(), train, valid)
    recipe = Recipe(optimizer="adam", lr=3e-3, batch_size=32, duration="15ep", seed=0)
    report = fogline.diagnose(task, recipe)
    assert [f.cause for f in report.findings][:1] == ([] if cause is None else [cause])
    if cause is not None:
        assert report.remedies
        run = fogline.fit(*report.apply(task, recipe.replace(duration="1ep")), runs=tmp_path)
        assert math.isfinite(run.steps["loss"][-1])


def test_rows_sorted_by_class() -> None:
    def ordered(rows: Rows, held: bool) -> Rows:
        order = rows[3].argsort()
        return rows if held else tuple(leaf[order] for leaf in rows)  # type: ignore[return-value]

    train, valid = parts(CLASSES, ordered, tuple)
    recipe = Recipe(optimizer="adam", lr=1e-2, batch_size=64, duration="8ep", shuffle=False, seed=0)
    report = fogline.diagnose(Task(lambda: Mixed(2), nn.CrossEntropyLoss(), train, valid), recipe)
    assert report.findings[0].cause == "unshuffled_data"


def test_a_metric_of_a_model_of_several_inputs() -> None:
    train, valid = parts(CLASSES, as_they_are, tuple)
    wrong = {"accuracy": lambda outputs, targets: (outputs.argmax(0)[:1] == targets[:1]).float().mean()}
    task = Task(lambda: Mixed(2), nn.CrossEntropyLoss(), train, valid, metrics=wrong)
    recipe = Recipe(optimizer="adam", lr=3e-3, batch_size=32, duration="15ep", seed=0)
    assert [f.cause for f in fogline.diagnose(task, recipe).findings] == ["metric_mismatch"]


def test_a_few_rows_far_off_are_no_other_units() -> None:
    draws = torch.Generator().manual_seed(0)
    one, other = torch.randn(500, 2, generator=draws).double(), torch.randn(200, 2, generator=draws).double()
    one[::50] *= 1000
    shift, ratio, counted = shifted(one, other)
    assert counted == 2
    assert float(shift.max()) < 1
    assert float(ratio.max()) < 2
    shift, ratio, _ = shifted(other, 3 * other + 5)
    assert float(shift.min()) > 3
    assert float(ratio.min()) > 2


def test_names_of_things_tell_a_classical_learner_nothing() -> None:
    """Of ratings that are products of what users and items are like, their names tell nothing one by one."""
    draws = torch.Generator().manual_seed(0)
    users, items = torch.randint(40, (2, 1500), generator=draws)
    likes, kinds = torch.randn(2, 40, 3, generator=draws)
    ratings = (likes[users] * kinds[items]).sum(1)

    class Factors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.users, self.items = nn.Embedding(40, 8), nn.Embedding(40, 8)

        def forward(self, names: tuple[Tensor, Tensor]) -> Tensor:
            found: Tensor = (self.users(names[0]) * self.items(names[1])).sum(1)
            return found

    data = ((users[:1200], items[:1200]), ratings[:1200]), ((users[1200:], items[1200:]), ratings[1200:])
    recipe = Recipe(optimizer="adam", lr=1e-6, batch_size=32, duration="10ep", seed=0)
    report = fogline.diagnose(Task(Factors, nn.MSELoss(), *data), recipe)
    assert report.reference is None
    assert "lr_too_low" in [finding.cause for finding in report.findings]


@pytest.mark.parametrize("wrong", [True, False])
def test_a_data_set_whose_examples_have_several_inputs(wrong: bool, tmp_path: Path) -> None:
    """Batches of them are lists of lists."""
    kinds = CLASSES.tolist()
    examples = [{"numbers": torch.cat([NUMBERS[k], OTHERS[k]]), "code": CODES[k], "kind": kinds[k]} for k in range(900)]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.codes = nn.Embedding(5, 4)
            self.body = nn.Sequential(nn.Linear(14, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))

        def forward(self, numbers: Tensor, code: Tensor) -> Tensor:
            said: Tensor = self.body(torch.cat([numbers, self.codes(code)], 1))
            return said.softmax(1) if wrong else said

    def loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch["numbers"], code=batch["code"]), batch["kind"])

    task = Task(Net, fogline.on_batch(loss), examples[:660], valid=examples[660:])
    recipe = Recipe(optimizer="adam", lr=3e-3, batch_size=32, duration="15ep", seed=0)
    report = fogline.diagnose(task, recipe)
    assert [finding.cause for finding in report.findings] == ["double_softmax"] * wrong
    run = fogline.fit(*report.apply(task, recipe.replace(duration="3ep")), runs=tmp_path)
    assert run.steps["loss"][-1] < run.steps["loss"][0]
    assert run.model(torch.randn(3, 10), torch.zeros(3, dtype=torch.long)).shape == (3, 2)
