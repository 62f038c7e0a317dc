"""What is believed of settings that were not tried: in closed form, and beside the formula written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from torch import Tensor

from fogline._tune.belief import Belief, Cube, scores_of
from fogline._tune.space import RATE

SPACE = {
    RATE: FloatDistribution(1 / 30, 30.0, log=True),
    "width": IntDistribution(4, 64, log=True),
    "batch_size": CategoricalDistribution([16, 32, 64]),
    "optimizer": CategoricalDistribution(["adamw", "momentum", "sgd"]),
}


def drawn(count: int, seed: int = 0) -> Tensor:
    """Points of the cube, each where values lie."""
    generator, cube = np.random.default_rng(seed), Cube(SPACE)
    rows = [cube.point(cube.values(list(row))) for row in generator.uniform(size=(count, len(SPACE)))]
    return torch.tensor(rows, dtype=torch.float64)


def test_values_and_points_are_one_another_s_inverse() -> None:
    cube = Cube(SPACE)
    values = {RATE: 3.0, "width": 16, "batch_size": 64, "optimizer": "sgd"}
    point = cube.point(values)
    assert point == pytest.approx([math.log(90) / math.log(900), 0.5, 5 / 6, 5 / 6])
    assert cube.values(point) == {**values, RATE: pytest.approx(3.0)}


def test_numbers_have_an_order_and_names_have_none() -> None:
    cube = Cube(SPACE)
    usual = {RATE: 1.0, "width": 16, "batch_size": 16, "optimizer": "adamw"}
    others = [usual | {"batch_size": 32}, usual | {"batch_size": 64}, usual | {"optimizer": "momentum"}]
    others.append(usual | {"optimizer": "sgd"})
    here, there = (torch.tensor([cube.point(each) for each in rows]) for rows in ([usual], others))
    squares = cube.squares(here, there)[:, 0]
    assert squares[2].tolist() == pytest.approx([1 / 9, 4 / 9, 0, 0])
    assert squares[3].tolist() == [0, 0, 1, 1]


def test_beliefs_are_those_of_the_formula() -> None:
    points, asked = drawn(12), drawn(5, seed=1)
    shares, losses = [1 / 9, 1 / 3, 1.0] * 4, [float(k * k % 13) for k in range(12)]
    belief = Belief(Cube(SPACE), points, shares, losses)
    *lengths, v, noise, c = belief.free.exp().tolist()

    def covariance(x: Tensor, z: Tensor, s: float, t: float) -> float:
        parts = [((a - b) / length) ** 2 for a, b, length in zip(x[:3], z[:3], lengths[:3], strict=True)]
        root = math.sqrt(5 * (sum(parts) + (x[3] != z[3]) / lengths[3] ** 2))
        alike = (1 + root + root**2 / 3) * math.exp(-root - c * abs(math.log(s / t)))
        return v * alike + 1.0 + 2.0 * (s == t)

    within = [
        [covariance(x, z, s, t) for z, t in zip(points, shares, strict=True)]
        for x, s in zip(points, shares, strict=True)
    ]
    inverse = np.linalg.inv(np.array(within) + (noise + 1e-6) * np.eye(12))
    across = np.array([[covariance(x, z, 1.0, t) for z, t in zip(points, shares, strict=True)] for x in asked])
    mean, deviation = belief.at(asked)
    assert mean.numpy() == pytest.approx(across @ inverse @ scores_of(losses).numpy(), abs=1e-4)
    variance = v + 3.0 - np.einsum("ij,jk,ik->i", across, inverse, across)
    assert deviation.square().numpy() == pytest.approx(variance, abs=1e-4)


@pytest.mark.parametrize(("factor", "offset"), [(1e6, 0.0), (1e-6, 0.0), (1.0, 100.0)])
def test_scale_and_offset_of_losses_change_nothing(factor: float, offset: float) -> None:
    points, losses = drawn(20), np.random.default_rng(3).normal(size=20)
    one, other = (Belief(Cube(SPACE), points, [1.0] * 20, list(each)) for each in (losses, factor * losses + offset))
    torch.testing.assert_close(one.at(points)[0], other.at(points)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "losses", [[1.0], [2.0, 2.0, 2.0], [math.inf, math.inf], [0.0, 0.0, math.inf], [-1e300, 1e300]]
)
def test_scores_are_finite_whatever_the_losses(losses: list[float]) -> None:
    scores = scores_of(losses)
    assert bool(scores.isfinite().all())
    assert scores.tolist() == sorted(scores.tolist())


def test_it_learns_what_matters() -> None:
    """A loss that depends on the rate alone: over the others it is expected to change slowly."""
    points = drawn(60)
    belief = Belief(Cube(SPACE), points, [1.0] * 60, ((points[:, 0] - 0.6) ** 2).tolist())
    rate, *others = belief.free[:4].exp().tolist()
    assert min(others) > 5 * rate
    asked = drawn(200, seed=2)
    expected = belief.at(asked)[0]
    assert abs(asked[expected.argmin(), 0] - 0.6) < 0.02


def test_what_is_believed_stays_expected_and_becomes_surer() -> None:
    points, asked = drawn(20), drawn(4, seed=1)
    belief = Belief(Cube(SPACE), points, [1.0] * 20, points.sum(1).tolist())
    (mean, deviation), (after, surer) = belief.at(asked), belief.believing(asked).at(asked)
    torch.testing.assert_close(after, mean, rtol=0, atol=1e-9)
    assert bool((surer < 0.9 * deviation).all())


def test_what_does_not_train_is_worse_than_everything_that_does() -> None:
    points = drawn(20)
    losses = torch.where(points[:, 0] > 0.7, math.inf, 1e9 * (1 - points[:, 0])).tolist()
    mean = Belief(Cube(SPACE), points, [1.0] * 20, losses).at(points)[0]
    assert mean[points[:, 0] > 0.7].min() > mean[points[:, 0] <= 0.7].max()
