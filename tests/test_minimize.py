"""minimize: exact steps, known minima, the same answer at every scale, and an honest word about how it ended."""

from __future__ import annotations

import doctest
import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fogline._minimize import METHODS, Progress, minimize
from fogline._minimize.curvature import survey
from fogline._minimize.line_methods import Dense, LimitedMemory
from fogline._minimize.problem import Problem, norm
from fogline._minimize.structure import flatten
from fogline.verdict import Verdict

F64 = torch.float64
FIRST_ORDER = ("gd", "momentum", "nesterov", "adam")
SEARCHING = ("lbfgs", "bfgs", "newton-cg")


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def bowl(x: Tensor) -> Tensor:
    return 0.5 * (torch.arange(1, x.numel() + 1, dtype=x.dtype) * (x - 1) ** 2).sum()


def saddle(x: Tensor) -> Tensor:
    return x[0] ** 2 - x[1] ** 2 + x[1] ** 4


def load_problems() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "benchmark_problems", Path(__file__).parent.parent / "benchmarks" / "problems.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


problems = load_problems()


# Closed forms


def test_the_example_of_the_contract() -> None:
    result = minimize(lambda w: (w - 2) ** 2, torch.tensor([5.0]), method="gd", lr=0.1, max_steps=1)
    torch.testing.assert_close(result.x, torch.tensor([4.4]))
    torch.testing.assert_close(result.grad, torch.tensor([6.0]))
    torch.testing.assert_close(result.jac, torch.tensor([4.8]))
    assert result.fun == pytest.approx(5.76)
    assert (result.verdict, result.success, result.status) == (Verdict.IMPROVING, False, 1)
    assert (result.nit, result.nfev, result.njev) == (1, 2, 2)
    assert "max_steps" in result.message


def test_gradient_descent_on_a_quadratic_is_its_closed_form() -> None:
    curvature, lr = torch.arange(1, 4, dtype=F64), 0.2
    result = minimize(bowl, vector(0, 0, 0), method="gd", lr=lr, max_steps=25)
    steps = torch.arange(26, dtype=F64)[:, None]
    torch.testing.assert_close(result.path.x, 1 - (1 - lr * curvature) ** steps)


def test_newton_minimises_a_quadratic_to_rounding_in_a_few_steps() -> None:
    result = minimize(bowl, torch.zeros(8, dtype=F64), method="newton-cg")
    assert result.nit <= 8
    torch.testing.assert_close(result.x, torch.ones(8, dtype=F64))


def test_bfgs_knows_the_hessian_of_a_quadratic_after_n_steps() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(4, 4, generator=generator, dtype=F64)
    matrix = root @ root.T + torch.eye(4, dtype=F64)
    model, basis = Dense(), torch.linalg.eigh(matrix).eigenvectors
    for step in basis.T:  # conjugate steps
        model.learn(step, matrix @ step)
    torch.testing.assert_close(model.inverse, torch.linalg.inv(matrix))


def test_limited_memory_equals_the_dense_matrix_while_it_holds_every_pair() -> None:
    """The two-loop recursion against its reference twin: the matrices of BFGS multiplied out."""
    generator = torch.Generator().manual_seed(1)
    model, pairs = LimitedMemory(5), []
    for _ in range(5):
        step = torch.randn(6, generator=generator, dtype=F64)
        change = step + 0.3 * torch.randn(6, generator=generator, dtype=F64)
        if step.dot(change) > 0:
            model.learn(step, change)
            pairs.append((step, change))
    step, change = pairs[-1]
    inverse = torch.eye(6, dtype=F64) * step.dot(change) / change.dot(change)
    for step, change in pairs:
        left = torch.eye(6, dtype=F64) - torch.outer(step, change) / step.dot(change)
        inverse = left @ inverse @ left.T + torch.outer(step, step) / step.dot(change)
    grad = torch.randn(6, generator=generator, dtype=F64)
    point = Problem(bowl, flatten(grad)[1], None).evaluate(grad)
    torch.testing.assert_close(model.direction(point, grad, None), -inverse @ grad)


@pytest.mark.parametrize(
    ("method", "make"),
    [
        ("gd", lambda p: torch.optim.SGD(p, lr=1e-3)),
        ("momentum", lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9)),
        ("nesterov", lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, nesterov=True)),
        ("adam", lambda p: torch.optim.Adam(p, lr=1e-3, eps=0)),
    ],
)
def test_a_given_rate_takes_the_steps_of_torch_optim(
    method: str, make: Callable[[list[Tensor]], torch.optim.Optimizer]
) -> None:
    result = minimize(rosenbrock, vector(-1.2, 1.0), method=method, lr=1e-3, max_steps=100)
    x = vector(-1.2, 1.0).requires_grad_()
    optimizer = make([x])
    for _ in range(100):
        optimizer.zero_grad()
        rosenbrock(x).backward()
        optimizer.step()
    torch.testing.assert_close(result.x, x.detach(), rtol=1e-6, atol=1e-6)


def test_the_survey_sees_the_spectrum_and_what_is_left() -> None:
    start = vector(0, 0, 0)
    problem = Problem(bowl, flatten(start)[1], None)
    seen = survey(problem, problem.evaluate(start))
    assert (seen.smallest, seen.largest) == (pytest.approx(1), pytest.approx(3))
    assert seen.left == pytest.approx(3.0)  # the whole way down
    torch.testing.assert_close(seen.heading, torch.ones(3, dtype=F64))


# Problems x methods


@pytest.mark.parametrize("method", SEARCHING)
@pytest.mark.parametrize("problem", problems.everything(), ids=lambda problem: problem.name)
def test_every_benchmark_function_is_solved(problem: problems.TestFunction, method: str) -> None:  # type: ignore[name-defined]
    result = minimize(problem.function, problem.start, method=method)
    height = problem.function(problem.start).item()
    lowest = min(problem.minima, key=lambda minimum: abs(result.fun - minimum))
    assert result.verdict is Verdict.CONVERGED
    assert result.fun - lowest <= max(1e-10 * (height - lowest), 1e-5 * lowest)


EASY = {
    "bowl": (bowl, vector(0, 0, 0), 0.0),
    "beale": (problems.more_garbow_hillstrom()[15].function, vector(1, 1), 0.0),
    "rosenbrock": (rosenbrock, vector(-1.2, 1.0), 0.0),
    "logistic": (lambda x: torch.logaddexp(x, -0.3 * x).sum(), vector(3.0, -20.0), None),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", EASY)
def test_every_method_finds_easy_minima_without_a_rate(name: str, method: str) -> None:
    function, start, lowest = EASY[name]
    result = minimize(function, start, method=method)
    assert result.verdict is Verdict.CONVERGED
    if lowest is not None:
        assert result.fun - lowest <= 1e-10
    else:
        torch.testing.assert_close(result.x, torch.full_like(start, math.log(0.3) / 1.3), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("problem", problems.more_garbow_hillstrom(), ids=lambda problem: problem.name)
def test_a_start_ten_times_as_far_does_not_fool_the_verdict(problem: problems.TestFunction) -> None:  # type: ignore[name-defined]
    """From some of these the value falls by 25 orders of magnitude: the first gain is no measure for the last."""
    result = minimize(problem.function, problem.start * 10 if problem.start.any() else problem.start + 10)
    lowest = min(problem.minima, key=lambda minimum: abs(result.fun - minimum))
    if problem.name == "Powell badly scaled":  # it starts on a shelf whose slope drowns in rounding, and says so
        assert result.verdict is Verdict.STALLED
    else:
        assert result.fun - lowest <= max(1e-12, 1e-5 * lowest)


# Scale


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1.0, 1e6, 1e-6])
def test_a_shallow_parabola_is_not_called_done_at_its_start(method: str, scale: float) -> None:
    result = minimize(lambda w: scale * 1e-9 * (w - 3) ** 2, 0.0, method=method)
    assert result.success
    assert result.x.item() == pytest.approx(3.0, abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factor", [2.0**20, 2.0**-20, 1e6, 1e-6])
def test_multiplying_the_function_or_x_changes_nothing(method: str, factor: float) -> None:
    start = vector(-1.2, 1.0)
    cap = 300
    plain = minimize(rosenbrock, start, method=method, max_steps=cap)
    taller = minimize(lambda x: factor * rosenbrock(x), start, method=method, max_steps=cap)
    wider = minimize(lambda x: rosenbrock(x / factor), start * factor, method=method, max_steps=cap)
    for other, unit in ((taller, 1.0), (wider, factor)):
        assert other.verdict is plain.verdict
        assert abs(other.nit - plain.nit) <= max(2, 0.2 * plain.nit)
        if plain.success:
            torch.testing.assert_close(other.x / unit, plain.x, rtol=1e-6, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(exponent=st.integers(-200, 200), size=st.integers(1, 6), shift=st.floats(-10, 10))
def test_any_power_of_two_gives_the_same_steps(exponent: int, size: int, shift: float) -> None:
    start = torch.full((size,), shift, dtype=F64)
    plain = minimize(bowl, start)
    scaled = minimize(lambda x: 2.0**exponent * bowl(x), start)
    assert (scaled.verdict, scaled.nit) == (plain.verdict, plain.nit)
    assert torch.equal(scaled.x, plain.x)


# Verdicts


@pytest.mark.parametrize("method", FIRST_ORDER)
def test_first_order_methods_say_that_they_stand_on_a_saddle(method: str) -> None:
    result = minimize(saddle, vector(1.0, 0.0), method=method)
    assert result.verdict is Verdict.STALLED
    assert "saddle" in result.message
    assert result.evidence["smallest_curvature"] == pytest.approx(-2)


@pytest.mark.parametrize("method", SEARCHING)
@pytest.mark.parametrize("start", [(1.0, 0.0), (0.0, 0.0)])
def test_searching_methods_leave_a_saddle(method: str, start: tuple[float, float]) -> None:
    result = minimize(saddle, vector(*start), method=method)
    assert result.success
    assert result.fun == pytest.approx(-0.25)


def test_a_plain_is_not_a_minimum_and_a_flat_minimum_is() -> None:
    plain = minimize(lambda x: torch.relu(x - 3) + 0 * x, vector(1.0))
    assert plain.verdict is Verdict.STALLED
    assert "plain" in plain.message
    quartic = minimize(lambda x: ((x - 2) ** 4).sum(), vector(5.0, -3.0))
    assert quartic.success
    torch.testing.assert_close(quartic.x, vector(2.0, 2.0), atol=1e-3, rtol=0)


def test_starting_at_the_minimum_is_converged_without_a_step() -> None:
    result = minimize(bowl, vector(1, 1))
    assert (result.verdict, result.nit, len(result.path)) == (Verdict.CONVERGED, 0, 1)


def test_too_high_a_rate_diverges_and_the_last_finite_place_is_kept() -> None:
    result = minimize(bowl, vector(0, 0), method="gd", lr=1.5)
    assert result.verdict is Verdict.DIVERGED
    assert "lower lr" in result.message
    assert torch.isfinite(result.x).all()
    assert torch.isfinite(result.path.fun).all()


def test_a_rate_on_the_edge_jumps_about() -> None:
    result = minimize(lambda w: (w - 2) ** 2, 5.0, method="gd", lr=1.0, max_steps=20)
    assert result.verdict is Verdict.STALLED
    assert "lower lr" in result.message


def test_too_low_a_rate_stalls() -> None:
    result = minimize(lambda w: (w - 2) ** 2, 5.0, method="gd", lr=1e-30)
    assert result.verdict is Verdict.STALLED
    assert "raise lr" in result.message


@pytest.mark.parametrize("method", METHODS)
def test_a_kink_is_not_called_a_minimum_on_the_way(method: str) -> None:
    result = minimize(lambda x: (x - 2).abs().sum() + 1, vector(5.0), method=method, max_steps=200)
    assert result.fun < 4.0
    assert result.verdict in (Verdict.STALLED, Verdict.IMPROVING) or result.fun == 1.0


@pytest.mark.parametrize("method", METHODS)
def test_searches_back_off_from_nan(method: str) -> None:
    result = minimize(lambda x: (x - x.log()).sum(), vector(1e-3, 30.0), method=method)
    assert result.success
    torch.testing.assert_close(result.x, vector(1.0, 1.0), rtol=1e-6, atol=1e-6)


def test_a_given_rate_into_nan_is_nonfinite() -> None:
    outside = minimize(lambda x: x + x.sqrt(), vector(0.5), method="gd", lr=1.0)
    assert outside.verdict is Verdict.NONFINITE
    assert outside.x.item() == 0.5


@pytest.mark.parametrize("method", ["lbfgs", "bfgs", "newton-cg", "gd"])
def test_a_function_without_a_bottom_is_said_to_have_none(method: str) -> None:
    result = minimize(lambda x: -x.exp().sum(), vector(1.0), method=method)
    assert result.verdict is Verdict.DIVERGED
    assert "without bound" in result.message


def test_the_callback_sees_the_structure_and_can_stop() -> None:
    seen = []

    def stop(progress: Progress) -> bool:
        seen.append((progress.step, progress.x["a"].item(), progress.fun))
        return progress.step == 3

    result = minimize(lambda w: (w["a"] - 2) ** 2, {"a": 5.0}, method="gd", lr=0.1, callback=stop)
    assert (result.verdict, result.nit) == (Verdict.INTERRUPTED, 3)
    assert [step for step, _, _ in seen] == [1, 2, 3]
    assert seen[0][1] == pytest.approx(4.4)


def test_functions_with_a_first_derivative_only_are_minimised_all_the_same() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
            return 2 * x * grad

    for method in METHODS:
        result = minimize(lambda x: Square.apply(x - 1).sum() + 1, vector(4.0, -2.0), method=method)
        assert result.success, (method, result)
        torch.testing.assert_close(result.x, vector(1.0, 1.0), rtol=1e-5, atol=1e-5)


# Bounds


@pytest.mark.parametrize("method", METHODS)
def test_bounds_hold_and_the_minimum_on_them_is_found(method: str) -> None:
    inside = True

    def function(x: Tensor) -> Tensor:
        nonlocal inside
        inside = inside and bool(((x >= vector(-2, 2)) & (x <= vector(0.5, 3))).all())
        return rosenbrock(x) + 0.1 * x.sum()

    result = minimize(lambda x: function(x), vector(-1.2, 9.0), method=method, bounds=[(-2, 0.5), (2, 3)])
    assert inside
    assert result.verdict is Verdict.CONVERGED
    expected = minimize(lambda a: 100 * (2 - a**2) ** 2 + (1 - a) ** 2 + 0.1 * a, -1.2, bounds=(-2.0, 0.5)).x.item()
    torch.testing.assert_close(result.x, vector(expected, 2.0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", SEARCHING)
def test_bounded_quadratics_satisfy_the_kkt_conditions(method: str) -> None:
    generator = torch.Generator().manual_seed(3)
    root = torch.randn(20, 20, generator=generator, dtype=F64)
    matrix = root @ root.T + 0.01 * torch.eye(20, dtype=F64)
    target = 3 * torch.randn(20, generator=generator, dtype=F64)
    result = minimize(
        lambda x: 0.5 * (x - target).dot(matrix @ (x - target)),
        torch.zeros(20, dtype=F64),
        method=method,
        bounds=(-1, 1),
    )
    assert result.success
    at_low, at_high = result.x == -1, result.x == 1
    free = ~(at_low | at_high)
    assert at_low.any()
    assert at_high.any()
    assert free.any()
    size = matrix.diagonal().max()
    assert (result.jac[at_low] >= 0).all()
    assert (result.jac[at_high] <= 0).all()
    assert (result.jac[free].abs() <= 1e-6 * size).all()


def test_bounds_come_in_every_form() -> None:
    def function(w: dict[str, Tensor]) -> Tensor:
        return ((w["a"] - 5) ** 2).sum() + (w["b"] + 5) ** 2

    start = {"a": torch.zeros(2), "b": torch.tensor(0.0)}
    result = minimize(function, start, bounds=({"a": None, "b": -1.0}, {"a": torch.tensor([1.0, 2.0]), "b": None}))
    torch.testing.assert_close(result.x, {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(-1.0)})
    assert minimize(bowl, vector(9.0), bounds=(None, 0.5)).x.item() == 0.5
    assert minimize(bowl, vector(9.0), bounds=[(2.0, None)]).x.item() == 2.0
    assert minimize(bowl, vector(9.0), bounds=(3.0, 3.0)).verdict is Verdict.CONVERGED


# Structures, types, nothing disturbed


@pytest.mark.parametrize("method", METHODS)
def test_nested_structures_come_back_as_they_went_in(method: str) -> None:
    start = {"layer": (torch.zeros(2, 3, dtype=F64), [torch.tensor(4.0, dtype=F64)]), "bias": np.zeros(2)}

    def function(w: dict[str, Tensor]) -> Tensor:
        weight, (scale,) = w["layer"]
        return ((weight - 2) ** 2).sum() + (scale + 1) ** 2 + ((w["bias"] - 3) ** 2).sum()

    result = minimize(function, start, method=method)
    assert result.success
    weight, (scale,) = result.x["layer"]
    assert weight.shape == result.grad["layer"][0].shape == (2, 3)
    torch.testing.assert_close(weight, torch.full((2, 3), 2.0, dtype=F64), atol=1e-6, rtol=0)
    torch.testing.assert_close(scale, torch.tensor(-1.0, dtype=F64), atol=1e-6, rtol=0)
    torch.testing.assert_close(result.x["bias"], torch.full((2,), 3.0, dtype=F64), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("start", "dtype", "shape"),
    [
        (5.0, F64, ()),
        (5, F64, ()),
        ([1.0, 2], F64, (2,)),
        ([[1.0, 2.0], [3.0, 4.0]], F64, (2, 2)),
        (np.ones((2, 2), dtype=np.float32), torch.float32, (2, 2)),
        (np.float64(3.0), F64, ()),
        (np.arange(3), F64, (3,)),
        (torch.arange(3), F64, (3,)),
        (torch.ones(2), torch.float32, (2,)),
        (torch.ones(1, 2, dtype=F64), F64, (1, 2)),
    ],
)
def test_starts_of_every_kind(start: object, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    result = minimize(lambda x: ((x - 7) ** 2).mean(), start)
    assert (result.x.dtype, result.x.shape) == (dtype, shape)
    assert result.success
    torch.testing.assert_close(result.x, torch.full(shape, 7.0, dtype=dtype))


def test_mixed_precision_leaves_keep_their_dtypes() -> None:
    def function(w: tuple[Tensor, Tensor]) -> Tensor:
        assert (w[0].dtype, w[1].dtype) == (torch.float32, F64)
        return (w[0] - 1) ** 2 + (w[1] - 2) ** 2

    result = minimize(function, (torch.tensor(0.0), torch.tensor(0.0, dtype=F64)))
    assert (result.x[0].dtype, result.x[1].dtype) == (torch.float32, F64)


@pytest.mark.parametrize("method", METHODS)
def test_single_precision_converges(method: str) -> None:
    result = minimize(bowl, torch.zeros(3), method=method)
    assert result.success
    torch.testing.assert_close(result.x, torch.ones(3), atol=1e-3, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_disturbed(method: str) -> None:
    start = vector(-1.2, 1.0).requires_grad_()
    other = torch.ones(2, dtype=F64, requires_grad=True)
    start.grad, other.grad = vector(7.0, 8.0), vector(9.0, 10.0)
    before = (start.detach().clone(), torch.get_rng_state(), np.random.get_state()[1].copy())  # type: ignore[index]
    with torch.no_grad():
        result = minimize(lambda x: (rosenbrock(x) * other).sum(), start, method=method, max_steps=50)
    assert torch.equal(start, before[0])
    assert torch.equal(start.grad, vector(7.0, 8.0))
    assert torch.equal(other.grad, vector(9.0, 10.0))
    assert torch.equal(torch.get_rng_state(), before[1])
    assert (np.random.get_state()[1] == before[2]).all()  # type: ignore[index]
    assert not result.x.requires_grad


def test_it_runs_under_inference_mode() -> None:
    with torch.inference_mode():
        assert minimize(bowl, torch.zeros(3, dtype=F64)).success


# The path


@pytest.mark.parametrize("method", METHODS)
def test_the_path_is_complete_and_true(method: str) -> None:
    result = minimize(rosenbrock, vector(-1.2, 1.0), method=method, max_steps=60)
    path = result.path
    assert len(path) == result.nit + 1 == len(path.x) == len(path.grad) == len(path.lr) + 1
    assert path.step.tolist() == list(range(result.nit + 1))
    for x, fun, grad in zip(path.x, path.fun, path.grad, strict=True):
        leaf = x.clone().requires_grad_()
        value = rosenbrock(leaf)
        assert value.item() == fun.item()
        assert torch.equal(torch.autograd.grad(value, leaf)[0], grad)
    assert torch.equal(path.grad[-2], result.grad)


def test_gradient_descent_can_be_replayed_from_its_path() -> None:
    for lr in (1e-3, "auto"):
        path = minimize(rosenbrock, vector(-1.2, 1.0), method="gd", lr=lr, max_steps=30).path
        torch.testing.assert_close(path.x[1:], path.x[:-1] - path.lr[:, None] * path.grad[:-1])


def test_a_thinner_path_keeps_the_start_and_the_end() -> None:
    full = minimize(rosenbrock, vector(-1.2, 1.0), method="gd", lr=1e-3, max_steps=10).path
    third = minimize(rosenbrock, vector(-1.2, 1.0), method="gd", lr=1e-3, max_steps=10, path=3).path
    ends = minimize(rosenbrock, vector(-1.2, 1.0), method="gd", lr=1e-3, max_steps=10, path="none").path
    assert third.step.tolist() == [0, 3, 6, 9, 10]
    assert torch.equal(third.x, full.x[third.step])
    assert len(third.lr) == 4
    assert ends.step.tolist() == [0, 10]
    assert len(ends.lr) == 1


@pytest.mark.parametrize("method", ["momentum", "nesterov", "adam", "lbfgs", "bfgs", "newton-cg"])
def test_a_measured_rate_never_goes_up(method: str) -> None:
    fun = minimize(rosenbrock, vector(-1.2, 1.0, 0.5, 2.0), method=method, max_steps=500).path.fun
    assert (fun[1:] <= fun[:-1] + 1e-14).all()


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"method": "lbgfs"}, ValueError, "did you mean 'lbfgs'"),
        ({"method": "L-BFGS"}, ValueError, "did you mean 'lbfgs'"),
        ({"method": "sgdd"}, ValueError, "expected a method out of gd"),
        ({"method": "gd", "lr": -0.1}, ValueError, "above 0"),
        ({"method": "gd", "lr": math.nan}, ValueError, "above 0"),
        ({"method": "gd", "lr": "automatic"}, ValueError, "'auto'"),
        ({"lr": 0.1}, ValueError, "searches the length"),
        ({"max_steps": -1}, ValueError, "max_steps"),
        ({"max_steps": 1.5}, ValueError, "max_steps"),
        ({"tol": -1e-3}, ValueError, "tol"),
        ({"method": "momentum", "momentum": 1.0}, ValueError, "momentum"),
        ({"betas": (0.9, 1.0)}, ValueError, "betas"),
        ({"history": 0}, ValueError, "history"),
        ({"path": "half"}, ValueError, "path"),
        ({"bounds": [(0, 1)]}, ValueError, "list of 2"),
        ({"bounds": (2.0, 1.0)}, ValueError, "lower <= upper"),
        ({"bounds": (math.nan, 1.0)}, ValueError, "lower <= upper"),
        ({"bounds": (torch.zeros(3), None)}, ValueError, "fits shape"),
        ({"bounds": 3}, TypeError, "list of"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        minimize(bowl, vector(0, 0), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("function", "start", "error", "words"),
    [
        (lambda x: x**2, vector(1, 2, 3), ValueError, r"shape \(3,\).*\.sum\(\)"),
        (lambda x: (x**2).sum().item(), vector(1, 2), TypeError, "torch tensor"),
        (lambda x: (x**2).sum().detach(), vector(1, 2), ValueError, "require grad"),
        (lambda x: torch.tensor(1.0), vector(1, 2), ValueError, "require grad"),
        (lambda x: (x * 1j).sum(), vector(1, 2), TypeError, "complex"),
        (lambda x: x.log().sum(), vector(-1, 2), ValueError, "nan"),
        (lambda x: x.sqrt().sum(), vector(0.0), ValueError, "finite value and gradient"),
        (bowl, vector(1, math.inf), ValueError, "inf in start"),
        (bowl, {"a": vector(1.0), "b": vector(math.nan)}, ValueError, r"nan in start\['b'\]"),
        (bowl, torch.tensor([True]), TypeError, "bool"),
        (bowl, torch.tensor([1j]), TypeError, "complex"),
        (bowl, "5", TypeError, "str"),
        (bowl, None, TypeError, "NoneType"),
        (bowl, {"a": "b"}, TypeError, r"str at start\['a'\]"),
        (bowl, torch.zeros(0), ValueError, "empty"),
        (bowl, {}, ValueError, "empty"),
        (bowl, np.array(["a"]), TypeError, "real numbers"),
    ],
)
def test_functions_and_starts_are_checked(
    function: Callable[..., Tensor], start: object, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        minimize(function, start)


def test_a_bound_structure_must_be_that_of_the_start() -> None:
    with pytest.raises(ValueError, match="structure of the start"):
        minimize(lambda w: w["a"] ** 2, {"a": 1.0}, bounds=({"b": 0.0}, None))


def test_a_dense_matrix_has_a_limit() -> None:
    with pytest.raises(ValueError, match="lbfgs"):
        minimize(lambda x: x.dot(x), torch.ones(30_000), method="bfgs")


def test_the_norm_neither_overflows_nor_underflows() -> None:
    for size in (1e-200, 1.0, 1e200):
        assert norm(vector(3, 4) * size) == pytest.approx(5 * size)
    assert norm(vector(0, 0)) == 0.0
    assert not math.isfinite(norm(vector(math.nan, 1.0)))


@pytest.mark.parametrize("method", METHODS)
def test_a_slope_whose_square_is_zero(method: str) -> None:
    """In single precision (1e-25)^2 is 0, and what a slope is divided by must not be."""
    found = minimize(
        lambda w: 1e30 + 1e-25 * (w - 2).square().sum(), torch.tensor([5.0, 1.0]), method=method, max_steps=20
    )
    assert torch.isfinite(found.x).all()


def test_the_examples_in_the_docstring_run() -> None:
    module = sys.modules["fogline._minimize"]
    assert doctest.testmod(module, extraglobs={"torch": torch}).failed == 0
