"""Planes with closed forms: filters, principal components, eigenvectors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fogline._landscape.directions import Plane, hessian_plane, path_plane, random_plane


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_random_filters_are_as_long_as_those_of_the_weights_and_vectors_stay() -> None:
    kernel = torch.randn(4, 3, 3, 3, generator=generator())
    kernel[2] = 0.0
    bias, matrix = torch.randn(4, generator=generator()), torch.randn(5, 7, generator=generator()).double().float()
    flat = torch.cat([kernel.reshape(-1), bias, matrix.reshape(-1)])
    plane = random_plane(flat, [(4, 3, 3, 3), (4,), (5, 7)], seed=3)
    for direction in (plane.first, plane.second):
        first, vector, second = torch.split(direction, [108, 4, 35])
        assert torch.allclose(first.view(4, -1).norm(dim=1), kernel.view(4, -1).norm(dim=1), rtol=1e-5)
        assert torch.allclose(second.view(5, -1).norm(dim=1), matrix.norm(dim=1), rtol=1e-5)
        assert not vector.any()
    assert not torch.equal(plane.first, plane.second)
    assert torch.equal(plane.first, random_plane(flat, [(4, 3, 3, 3), (4,), (5, 7)], seed=3).first)
    assert not torch.equal(plane.first, random_plane(flat, [(4, 3, 3, 3), (4,), (5, 7)], seed=4).first)


def test_weights_without_a_matrix_have_no_random_filters() -> None:
    with pytest.raises(ValueError, match="at least one matrix"):
        random_plane(torch.ones(3), [(3,)], seed=0)


def planar(places: list[tuple[float, float]]) -> tuple[list[Tensor], Tensor]:
    """Rows on a tilted plane of 50 dimensions, and an orthonormal basis of it, shape (50, 2)."""
    basis, _ = torch.linalg.qr(torch.randn(50, 2, generator=generator(), dtype=torch.float64))
    offset = torch.randn(50, generator=generator(), dtype=torch.float64)
    return [offset + a * basis[:, 0] + b * basis[:, 1] for a, b in places], basis


def test_a_planar_path_is_explained_whole_and_lies_on_its_plane() -> None:
    places = [(3 * math.cos(t), math.sin(t) + 0.2 * t) for t in torch.linspace(0, 4, 20).tolist()]
    rows, basis = planar(places)
    plane = path_plane(rows[-1], rows)
    assert plane.explained is not None
    assert sum(plane.explained) == pytest.approx(1.0, abs=1e-12)
    assert plane.explained[0] > plane.explained[1] > 0
    found, distances = plane.project(rows)
    assert max(distances) < 1e-12
    assert found[-1] == pytest.approx((0.0, 0.0), abs=1e-12)
    # The coordinates keep distances: they are a rotation of the true ones.
    for (a, b), (c, d), (e, f), (g, h) in zip(places, places[1:], found, found[1:], strict=False):
        assert math.hypot(a - c, b - d) == pytest.approx(math.hypot(e - g, f - h), abs=1e-12)
    spanned = torch.stack([plane.first, plane.second], 1)
    assert torch.allclose(basis @ (basis.T @ spanned), spanned, atol=1e-12)


def test_shares_are_those_of_the_covariance() -> None:
    rows = list(torch.randn(12, 30, generator=generator(), dtype=torch.float64))
    plane = path_plane(rows[-1], rows)
    values = torch.linalg.eigvalsh(torch.cov(torch.stack(rows).T))
    assert plane.explained == pytest.approx((float(values[-1] / values.sum()), float(values[-2] / values.sum())))


def test_a_straight_path_gets_a_second_direction_at_a_right_angle() -> None:
    rows, _ = planar([(float(t), 2.0 * t) for t in range(5)])
    plane = path_plane(rows[-1], rows)
    assert plane.explained == pytest.approx((1.0, 0.0))
    assert float(plane.first.dot(plane.second)) == pytest.approx(0.0, abs=1e-12)
    assert float(plane.second.norm()) == pytest.approx(1.0)
    assert float((rows[-1] - rows[0]).dot(plane.first)) > 0  # it goes along the axis


def test_a_path_that_does_not_move_spans_nothing() -> None:
    with pytest.raises(ValueError, match="all the same"):
        path_plane(torch.ones(4), [torch.ones(4)] * 3)


def test_the_eigenvectors_of_a_known_matrix() -> None:
    basis, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator(), dtype=torch.float64))
    matrix = basis @ torch.diag(torch.tensor([1.0, -8.0, 0.5, 5.0, 0.0, 2.0], dtype=torch.float64)) @ basis.T
    plane = hessian_plane(torch.zeros(6, dtype=torch.float64), lambda v: matrix @ v, seed=0)
    assert plane.eigenvalues == pytest.approx((-8.0, 5.0))
    assert abs(float(plane.first.dot(basis[:, 1]))) == pytest.approx(1.0)
    assert abs(float(plane.second.dot(basis[:, 3]))) == pytest.approx(1.0)


def test_a_flat_function_has_no_eigenvectors_to_span_a_plane() -> None:
    with pytest.raises(ValueError, match="Hessian that is zero"):
        hessian_plane(torch.zeros(3), torch.zeros_like, seed=0)


def test_projection_onto_directions_that_are_not_orthogonal() -> None:
    plane = Plane(torch.ones(4), torch.tensor([1.0, 0, 0, 0]), torch.tensor([1.0, 2, 0, 0]))
    places, distances = plane.project([plane.at(0.5, -2.0), plane.at(1.0, 1.0) + torch.tensor([0, 0, 3.0, 4.0])])
    assert places == [pytest.approx((0.5, -2.0)), pytest.approx((1.0, 1.0))]
    assert distances == pytest.approx([0.0, 5.0])
