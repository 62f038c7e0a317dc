"""Derivatives inside a loss that are taken without their graph; and those that are meant to be numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fogline
from fogline.doctor.case import open_case
from fogline.doctor.causes.loop.cut import detached_graph
from fogline.doctor.causes.loop.slopes import slopes_without_graph
from fogline.doctor.examination import Examination
from fogline.recipe import Recipe
from fogline.task import Task

X = torch.rand(96, 2, generator=torch.Generator().manual_seed(0))
Y = torch.sin(3 * X[:, :1]) + X[:, 1:]


class Net(nn.Module):
    """Two nets of one kind: answers, and somebody who watches them."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
        self.other = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.own(x)
        return out


def slope(outputs: Tensor, x: Tensor, **how: Any) -> Tensor:
    found: Tensor = torch.autograd.grad(outputs.sum(), x, **how)[0]
    return found


def points(batch: Any) -> Tensor:
    x: Tensor = batch[0].detach().clone().requires_grad_()
    return x


def fit(model: nn.Module, batch: Any) -> Any:
    return F.mse_loss(model(batch[0]), batch[1])


def ends(model: nn.Module) -> Tensor:
    out: Tensor = model(torch.tensor([[0.0, 0.0], [1.0, 0.0]])).square().mean()
    return out


def poisson(model: nn.Module, batch: Any, **how: bool) -> Any:
    """The second derivative is compared with numbers."""
    x = points(batch)
    first = slope(model(x), x, create_graph=True)
    return (slope(first[:, 0], x, **how)[:, 0] - torch.sin(x[:, 0])).square().mean() + ends(model)


def heat(model: nn.Module, batch: Any, **how: bool) -> Any:
    """The second derivative is compared with a first one that has its graph."""
    x = points(batch)
    first = slope(model(x), x, create_graph=True)
    rest = first[:, 1] - 0.1 * slope(first[:, 0], x, retain_graph=True, **how)[:, 0]
    return (rest * rest).mean() + ends(model)


def decay(model: nn.Module, batch: Any, **how: bool) -> Any:
    """The only derivative is added to what it is the derivative of."""
    x = points(batch)
    u = model(x)
    return (slope(u, x, retain_graph=True, **how)[:, :1] + 2 * u).square().mean() + ends(model)


def critic(model: nn.Module, batch: Any, **how: bool) -> Any:
    """Slopes of length one are asked for between two kinds of rows."""
    x = points(batch)
    penalty = (slope(model(x), x, **how).norm(2, dim=1) - 1).square().mean()
    return fit(model, batch) + 10.0 * penalty


EQUATIONS: dict[str, tuple[Callable[..., Tensor], bool]] = {
    "poisson": (poisson, True),
    "heat": (heat, True),
    "decay": (decay, False),
    "critic": (critic, True),
}


def adversarial(model: nn.Module, batch: Any) -> Any:
    x = points(batch)
    step = slope((model(x) - batch[1]).square(), x).sign()
    return fit(model, batch) + F.mse_loss(model(x + 0.05 * step), batch[1])


def virtual_adversarial(model: nn.Module, batch: Any) -> Any:
    x = points(batch)
    step = slope((model(x) - batch[1]).square(), x)
    return fit(model, batch) + F.mse_loss(model(x + 0.05 * step / step.norm()), batch[1])


def logged(model: nn.Module, batch: Any) -> Any:
    x = points(batch)
    model.seen = float(slope(model(x), x).norm())  # type: ignore[assignment]
    return fit(model, batch)


def weighted(model: nn.Module, batch: Any) -> Any:
    """Rows count by how steep the answer is there."""
    x = points(batch)
    steep = slope(model(x), x).norm(dim=1, keepdim=True)
    return (steep * (model(batch[0]) - batch[1]).square()).mean()


def balanced(model: nn.Module, batch: Any) -> Any:
    """Two losses, the second of the same length of gradient as the first."""
    one, two = fit(model, batch), ends(model)
    last = model.own[2].weight  # type: ignore[index, union-attr]
    lengths = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (one, two)]
    return one + lengths[0] / (lengths[1] + 1e-3) * two


def first_order(model: nn.Module, batch: Any) -> Any:
    """What is learned to learn, without second derivatives."""
    weights = dict(model.named_parameters())
    names = [name for name in weights if name.startswith("own")]
    steps = torch.autograd.grad(fit(model, batch), [weights[name] for name in names])
    fast = weights | {name: weights[name] - 0.1 * step for name, step in zip(names, steps, strict=True)}
    return F.mse_loss(torch.func.functional_call(model, fast, (batch[0],)), batch[1])


def langevin(model: nn.Module, batch: Any) -> Any:
    x = points(batch)
    for _ in range(3):
        x = x - 0.1 * slope(model(x), x)
        x = x.detach().requires_grad_()
    return fit(model, batch) + 0.1 * (model(batch[0]).mean() - model(x).mean()).square()


def told(model: Any, batch: Any) -> Any:
    """Another net learns what the slope is, which is its target."""
    x = points(batch)
    return fit(model, batch) + F.mse_loss(model.other(batch[0]), slope(model(x), x)[:, :1])


def synthetic(model: Any, batch: Any) -> Any:
    """A net learns the gradient of what stands behind it, on outputs that are begun anew."""
    hidden = torch.tanh(model.own[0](batch[0])).detach().requires_grad_()
    loss = F.mse_loss(model.own[2](hidden), batch[1])
    known = slope(loss, hidden, retain_graph=True)
    return loss + (model.own[0](batch[0]) - known).square().mean()


def followed(model: Any, batch: Any) -> Any:
    """Answers go where somebody who watches them likes them better: the policy gradient of a deterministic policy."""
    action = model(batch[0])
    anew = action.detach().requires_grad_()
    better = slope(model.other(torch.cat([batch[0][:, :1], anew], 1)), anew)
    return fit(model, batch) + 0.5 * (better + anew.detach() - action).square().mean()


def weighted_equation(model: nn.Module, batch: Any) -> Any:
    """Where it is steep an equation counts less."""
    x = points(batch)
    u = model(x)
    weight = 1 / (1 + slope(u, x, retain_graph=True).norm(dim=1))
    return (weight * (slope(u, x, create_graph=True)[:, 0] + u[:, 0]).square()).mean() + ends(model)


SOUND = (
    adversarial,
    virtual_adversarial,
    logged,
    weighted,
    balanced,
    first_order,
    langevin,
    told,
    synthetic,
    followed,
    weighted_equation,
)


def exam(loss: Callable[..., Tensor]) -> Examination:
    torch.manual_seed(0)
    task = Task(Net, fogline.on_batch(loss), (X, Y))
    return Examination(open_case(task, Recipe(optimizer="adam", lr=0.01, duration="2ep", batch_size=32)))


@pytest.mark.parametrize("name", EQUATIONS)
def test_a_derivative_without_graph(name: str) -> None:
    equation, proof = EQUATIONS[name]
    assert slopes_without_graph(exam(partial(equation, create_graph=True))) is None
    faulty = exam(equation)
    found = slopes_without_graph(faulty)
    assert found is not None
    assert found.cause == "detached_graph"
    assert found.proof == proof
    mended = faulty.program_with(found.remedies[0])
    sound = exam(partial(equation, create_graph=True))
    one, other = (
        Examination(open_case(Task(Net, loss, (X, Y)), faulty.case.recipe))
        for loss in (mended.loss, sound.program.loss)
    )
    for key, gradient in one.anatomy.gradients.items():
        known = other.anatomy.gradients[key]
        assert (gradient is None) == (known is None)
        assert gradient is None or known is None or torch.equal(gradient, known)


@pytest.mark.parametrize("loss", SOUND)
def test_derivatives_that_are_meant_to_be_numbers(loss: Callable[..., Tensor]) -> None:
    given = exam(loss)
    assert given.anatomy.stage == ""
    assert slopes_without_graph(given) is None


def test_a_graph_that_is_freed() -> None:
    """Without ``create_graph`` and ``retain_graph`` the rest of the equation has no graph any more."""

    def equation(model: nn.Module, batch: Any, **how: bool) -> Any:
        x = points(batch)
        first = slope(model(x), x, create_graph=True)
        return (first[:, 1] - 0.1 * slope(first[:, 0], x, **how)[:, 0]).square().mean() + ends(model)

    given = exam(equation)
    assert given.anatomy.stage
    found = slopes_without_graph(given)
    assert found is not None
    assert found.proof
    assert found.blocks
    assert Examination(given.case, found.remedies).anatomy.stage == ""
    assert slopes_without_graph(exam(partial(equation, create_graph=True))) is None


def test_a_graph_that_is_freed_by_something_else() -> None:
    def twice(model: nn.Module, batch: Any) -> Any:
        loss = fit(model, batch)
        model.steps = torch.autograd.grad(loss, list(model.own.parameters()))  # type: ignore[assignment, union-attr]
        return loss

    given = exam(twice)
    assert given.anatomy.stage
    assert slopes_without_graph(given) is None


class Forces(nn.Module):
    """Gives an energy and its slope."""

    def __init__(self, create_graph: bool, energy: bool = True) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
        self.create_graph, self.energy = create_graph, energy

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self.net(x)
            force = -torch.autograd.grad(energy.sum(), x, create_graph=self.create_graph, retain_graph=True)[0]
        return torch.cat([energy, force], 1) if self.energy else force


@pytest.mark.parametrize("energy", [True, False])
def test_forces_of_a_model(energy: bool) -> None:
    y = torch.cat([Y, -3 * torch.cos(3 * X[:, :1]), -torch.ones(96, 1)], 1)[:, 0 if energy else 1 :]
    cause = slopes_without_graph if energy else detached_graph

    def given(create_graph: bool) -> Examination:
        task = Task(partial(Forces, create_graph, energy), nn.MSELoss(), (X, y))
        return Examination(open_case(task, Recipe(optimizer="adam", lr=0.01, duration="2ep", batch_size=32)))

    assert cause(given(True)) is None
    found = cause(given(False))
    assert found is not None
    assert found.proof is not energy  # the slope of what one loss compares is no term of its own
    assert "create_graph=True" in found.remedies[0].patch


@pytest.mark.parametrize("equation", [poisson, critic])
def test_the_report_of_an_equation(equation: Callable[..., Tensor]) -> None:
    """A term that has no slope is no reason to call another one too loud."""

    def causes(**how: bool) -> list[str]:
        task = Task(Net, fogline.on_batch(partial(equation, **how)), (X[:64], Y[:64]), (X[64:], Y[64:]))
        recipe = Recipe(optimizer="adam", lr=0.01, duration="40ep", batch_size=32)
        return [finding.cause for finding in fogline.diagnose(task, recipe).findings]

    assert causes() == ["detached_graph"]
    assert "detached_graph" not in causes(create_graph=True)
