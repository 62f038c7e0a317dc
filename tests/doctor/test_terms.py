"""Terms of a loss: told apart as they are added, weighed, and one that is too loud found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fogline
from fogline.doctor.terms import Summing, averaged, terms_of, weighed

A, B, C = (torch.tensor(number, requires_grad=True) for number in (2.0, 3.0, 5.0))


@pytest.mark.parametrize(
    ("summed", "terms"),
    [
        (lambda: A + 2 * B, [2.0, 6.0]),
        (lambda: A - 0.5 * B + C, [2.0, -1.5, 5.0]),
        (lambda: sum([A, B, C]), [2.0, 3.0, 5.0]),
        (lambda: A + (B + C), [3.0, 5.0, 2.0]),
        (lambda: (A + 1e-6) * B, []),
        (lambda: torch.add(A, B), [2.0, 3.0]),
    ],
)
def test_terms_of_a_sum(summed: Callable[[], Tensor], terms: list[float]) -> None:
    with Summing() as mode:
        summed()
    assert mode.terms == pytest.approx(terms)


def test_a_term_is_multiplied_in_value_and_gradient() -> None:
    with Summing({1: 0.1}):
        found = A + B - C
    assert float(found.detach()) == pytest.approx(2.0 + 0.3 - 5.0)
    assert [float(g) for g in torch.autograd.grad(found, (A, B, C))] == pytest.approx([1.0, 0.1, -1.0])


def test_rows_with_sums_of_their_own() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets).square().sum(1) + 4 * outputs.abs().sum(1)).mean()

    model, batch = nn.Identity(), (torch.ones(3, 2), torch.zeros(3, 2))
    assert terms_of(loss, model, batch) == [2.0, 8.0]
    assert float(weighed(loss, 1, 0.5)(*batch)) == 6.0
    assert terms_of(fogline.on_batch(lambda m, b: loss(m(b[0]), b[1])), model, batch) == []


class Codes(nn.Module):
    """A variational auto-encoder of 20 numbers, (b, 20)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 8))
        self.decoder = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 20))
        self.divergence = torch.zeros(())

    def forward(self, rows: Tensor) -> Any:
        mean, log_variance = self.encoder(rows).chunk(2, 1)
        noise = torch.randn_like(mean) if self.training else torch.zeros_like(mean)
        self.divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        return self.decoder(mean + noise * (log_variance / 2).exp())


@pytest.mark.parametrize(("loud", "itself"), [(True, True), (True, False), (False, True)])
def test_a_divergence_that_outweighs_the_errors(loud: bool, itself: bool) -> None:
    """Errors are averaged over the numbers of a row, the divergence is summed: twenty times too loud, and more.

    The loss may call the model itself, or a method of its own.
    """
    draws = torch.Generator().manual_seed(0)
    rows = torch.tanh(torch.randn(600, 3, generator=draws) @ torch.randn(3, 20, generator=draws))

    def step(model: Codes, batch: Tensor) -> Tensor:
        errors = F.mse_loss(model(batch) if itself else model.forward(batch), batch)
        return errors + (1.0 if loud else 0.002) * model.divergence

    task = fogline.Task(Codes, fogline.on_batch(step), rows[:400], rows[400:])
    recipe = fogline.Recipe(optimizer="adam", lr=0.003, batch_size=32, duration="30ep")
    report = fogline.diagnose(task, recipe)
    assert [f.cause for f in report.findings] == (["regularization_too_strong"] if loud else [])
    if loud:
        assert report.healed is not None
        assert report.healed > 0.4


def test_a_divergence_that_is_summed_over_the_rows_is_averaged_in_every_batch(tmp_path: Path) -> None:
    """Else the loss of all held-out rows at once would be of little but the divergence."""
    draws = torch.Generator().manual_seed(0)
    rows = torch.sigmoid(2 * torch.randn(600, 3, generator=draws) @ torch.randn(3, 20, generator=draws))

    def step(model: Any, batch: Tensor) -> Tensor:
        errors: Tensor = F.binary_cross_entropy_with_logits(model(batch), batch)
        found: Tensor = errors + model.divergence * len(batch)
        return found

    task = fogline.Task(Codes, fogline.on_batch(step), rows[:400], rows[400:])
    recipe = fogline.Recipe(optimizer="adam", lr=0.003, batch_size=50, duration="60ep")
    report = fogline.diagnose(task, recipe)
    assert report.findings[0].cause == "regularization_too_strong"
    assert report.remedies[0].title.startswith("take the mean of term 2")
    run = fogline.fit(*report.apply(task, recipe), runs=tmp_path)
    rebuilt = torch.sigmoid(run.model.eval()(rows[400:])).detach()
    assert float((rebuilt - rows[400:]).square().mean()) < 0.5 * float(rows[400:].var(0).mean())


def test_a_term_is_averaged_over_the_rows_it_is_given() -> None:
    loss = averaged(fogline.on_batch(lambda m, b: m(b).mean() + m(b).sum()), 1, 0.5)
    few, many = (loss.function(nn.Identity(), torch.full((rows, 3), 2.0)) for rows in (2, 8))
    assert float(few) == float(many) == 2.0 + 0.5 * 6.0
    of_pairs = averaged(lambda outputs, targets: outputs.mean() + (outputs * targets).sum(), 1, 1.0)
    assert float(of_pairs(torch.ones(4), torch.ones(4))) == 2.0


class Heads(nn.Module):
    """A kind and an amount of one row."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 32), nn.ReLU())
        self.kind, self.amount = nn.Linear(32, 2), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.body(x)
        return {"kind": self.kind(h), "amount": self.amount(h).squeeze(1)}


@pytest.mark.parametrize(("unit", "found"), [(300.0, ["unscaled_target"]), (1.0, [])])
@pytest.mark.parametrize("whole", [True, False])
def test_a_target_in_large_units_beside_another(unit: float, found: list[str], whole: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(500, 6, generator=generator)
    kind, amount = (X[:, 0] * X[:, 1] > 0).long(), unit * (X[:, 2] + X[:, 3].abs())

    def of_pairs(outputs: Any, targets: Any) -> Tensor:
        return F.cross_entropy(outputs["kind"], targets[0]) + F.mse_loss(outputs["amount"], targets[1])

    def of_batch(model: nn.Module, batch: Any) -> Tensor:
        return of_pairs(model(batch[0]), batch[1:])

    recipe = fogline.Recipe(optimizer="adam", lr=5e-3, batch_size=25, duration="30ep")
    if whole:
        task = fogline.Task(Heads, fogline.on_batch(of_batch), (X, kind, amount))
    else:
        both = torch.stack([kind, amount], 1)
        task = fogline.Task(Heads, lambda outputs, t: of_pairs(outputs, (t[:, 0].long(), t[:, 1])), (X, both))
    report = fogline.diagnose(task, recipe)
    assert report.metric == "skill (halfway between the mean and the worst of its targets)"
    assert [finding.cause for finding in report.findings][:1] == found


class Beside(Heads):
    """The same of a row that comes in two parts."""

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return super().forward(torch.cat([left, right], 1))


def test_a_model_of_two_parts_keeps_them_under_a_remedy(tmp_path: Path) -> None:
    X = torch.randn(500, 6, generator=torch.Generator().manual_seed(0))
    data = {"left": X[:, :2], "right": X[:, 2:], "kind": (X[:, 0] * X[:, 1] > 0).long(), "amount": 300 * X[:, 2]}

    def step(model: Any, batch: Any) -> Tensor:
        said = model(batch["left"], right=batch["right"])
        return F.cross_entropy(said["kind"], batch["kind"]) + F.mse_loss(said["amount"], batch["amount"])

    task = fogline.Task(Beside, fogline.on_batch(step), data)
    recipe = fogline.Recipe(optimizer="adam", lr=5e-3, batch_size=25, duration="30ep")
    report = fogline.diagnose(task, recipe)
    assert report.findings[0].cause == "unscaled_target"
    run = fogline.fit(*report.apply(task, recipe), runs=tmp_path, progress=False)
    with torch.no_grad():
        said = run.model(data["left"], data["right"])["amount"]
    assert float((said - data["amount"]).square().mean()) < 0.1 * float(data["amount"].var())


class Boxes(nn.Module):
    """A box and a kind of one picture."""

    def __init__(self, *end: nn.Module) -> None:
        super().__init__()
        self.body, self.kind = nn.Sequential(nn.Linear(6, 32), nn.ReLU()), nn.Linear(32, 2)
        self.box = nn.Sequential(nn.Linear(32, 4), *end)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.box(h), self.kind(h)


@pytest.mark.parametrize(("unit", "found"), [(20.0, ["output_activation"]), (1.0, [])])
def test_one_of_several_targets_out_of_reach(unit: float, found: list[str]) -> None:
    X = torch.randn(500, 6, generator=torch.Generator().manual_seed(0))
    data = {"x": X, "box": unit * X[:, :4].sigmoid(), "kind": (X[:, 4] > 0).long()}

    def step(model: Any, batch: Any) -> Tensor:
        box, kind = model(batch["x"])
        return F.smooth_l1_loss(box, batch["box"]) + F.cross_entropy(kind, batch["kind"])

    task = fogline.Task(lambda: Boxes(nn.Sigmoid()), fogline.on_batch(step), data)
    report = fogline.diagnose(task, fogline.Recipe(optimizer="adam", lr=5e-3, batch_size=25, duration="20ep"))
    assert [finding.cause for finding in report.findings][:1] == found


@pytest.mark.parametrize(("axis", "found"), [(1, ["shape_broadcast"]), (2, [])])
def test_places_that_meet_each_other_in_a_masked_loss(axis: int, found: list[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(400, 8, 3, generator=generator)
    data = {"x": X, "y": X.sum(2), "counts": (torch.rand(400, 8, generator=generator) > 0.3).float()}

    def step(model: Any, batch: Any) -> Tensor:
        error = (model(batch["x"]) - batch["y"].unsqueeze(axis)).square()
        return (error * batch["counts"][..., None]).sum() / batch["counts"].sum()

    task = fogline.Task(
        lambda: nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 1)), fogline.on_batch(step), data
    )
    report = fogline.diagnose(task, fogline.Recipe(optimizer="adam", lr=5e-3, batch_size=20, duration="10ep"))
    assert [finding.cause for finding in report.findings][:1] == found
