"""Which plane through the space of weights is looked at: a random one, that of the path, or that of the curvature."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fogline.data.privacy import derived_seed
from fogline.lanczos import lanczos

SPANS = ("path", "filter", "hessian")
PRODUCTS = 30
"""Hessian-vector products, at most, for the two eigenvectors."""
_PIECE = 2**18  # numbers that are taken to float64 at a time


@dataclass(frozen=True)
class Plane:
    """``origin + a * first + b * second``: the coordinates (a, b) of a place are in lengths of the two directions.

    Attributes:
        origin, first, second: flat weights, each of shape (n,).
        labels: what the two axes show.
        explained: shares of the path's variance along each direction; None where the plane is not that of the path.
        eigenvalues: of the Hessian along each direction; None where the plane is not spanned by its eigenvectors.
    """

    origin: Tensor
    first: Tensor
    second: Tensor
    labels: tuple[str, str] = ("first direction", "second direction")
    explained: tuple[float, float] | None = None
    eigenvalues: tuple[float, float] | None = None

    def at(self, a: float, b: float) -> Tensor:
        """The weights at a place, shape (n,)."""
        return self.origin + a * self.first + b * self.second

    def project(self, weights: Sequence[Tensor]) -> tuple[list[tuple[float, float]], list[float]]:
        """The nearest places of the plane to some weights, each of shape (n,), and how far they are from them.

        >>> plane = Plane(torch.zeros(3), torch.tensor([2.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 0.0]))
        >>> plane.project([torch.tensor([5.0, 3.0, 4.0])])
        ([(1.0, 3.0)], [4.0])
        """
        u, v = self.first.double(), self.second.double()
        uu, uv, vv = (float(p.dot(q)) for p, q in ((u, u), (u, v), (v, v)))
        determinant = uu * vv - uv * uv
        places, distances = [], []
        for row in weights:
            gap = row.double() - self.origin.double()
            gu, gv = float(gap.dot(u)), float(gap.dot(v))
            a, b = (gu * vv - gv * uv) / determinant, (gv * uu - gu * uv) / determinant
            places.append((a, b))
            distances.append(float((gap - a * u - b * v).norm()))
        return places, distances


def random_plane(origin: Tensor, shapes: Sequence[tuple[int, ...]], seed: int) -> Plane:
    """Two random directions, each filter of which is as long as that filter of the weights.

    Without it a layer's scale would decide how flat its surroundings look, and in a network with rectifiers that scale
    is arbitrary. Vectors (biases, scales of a normalisation) are left where they are. Li, Xu, Taylor, Studer &
    Goldstein, Visualizing the Loss Landscape of Neural Nets, 2018, arXiv:1712.09913, section 4.

    Args:
        origin: flat weights, shape (n,).
        shapes: of the parameters they consist of; the first dimension counts the filters of each.
        seed: of the directions.
    """
    first, second = (
        torch.cat([_random_filters(part, derived_seed(seed, k, turn)) for k, part in enumerate(_parts(origin, shapes))])
        for turn in range(2)
    )
    if not (bool(first.any()) and bool(second.any())):
        raise ValueError(
            "expected weights with at least one matrix that is not zero for span='filter', received none; "
            "vectors such as biases are not moved: take span='hessian' or span='path'"
        )
    words = "random direction, in lengths of the weights"
    return Plane(origin, first, second, (words, words))


def _parts(flat: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    pieces = torch.split(flat, [math.prod(shape) for shape in shapes])
    return [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def _random_filters(weight: Tensor, seed: int) -> Tensor:
    if weight.ndim < 2:
        return torch.zeros_like(weight).reshape(-1)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64).reshape(len(weight), -1)
    lengths = weight.detach().double().cpu().reshape(len(weight), -1).norm(dim=1, keepdim=True)
    return drawn.mul(lengths / drawn.norm(dim=1, keepdim=True)).to(weight).reshape(-1)


def path_plane(origin: Tensor, rows: Sequence[Tensor]) -> Plane:
    """The plane through ``origin`` in which most of a path's variance lies: its first two principal components.

    They come from the Gram matrix of the rows, as large as the path is long, and not from the covariance of the
    weights. With one direction only (two rows, a straight path) the second is a coordinate direction made orthogonal.

    Args:
        origin: shape (n,), n at least 2.
        rows: the path, each of shape (n,).

    Raises:
        ValueError: the rows are all the same: there is no path.
    """
    gram = _gram(rows)
    values, vectors = torch.linalg.eigh(gram)
    total = float(values.clamp_min(0).sum())
    if not total > 0:
        raise ValueError(
            "expected a path that moves, received places that are all the same; take span='filter' or span='hessian'"
        )
    middle = torch.zeros_like(rows[0], dtype=torch.float64)
    for row in rows:
        middle += row / len(rows)
    found: list[Tensor] = []
    shares: list[float] = []
    for k in (-1, -2):
        share = max(0.0, float(values[k])) / total if len(rows) >= -k else 0.0
        shares.append(share if share > 1e-12 else 0.0)
        if shares[-1]:
            weighted = (float(c) * (row.double() - middle) for c, row in zip(vectors[:, k], rows, strict=True))
            direction = sum(weighted, torch.zeros_like(middle))
            found.append(_towards_end(direction / direction.norm(), rows))
        else:
            found.append(_orthogonal(found[0]))
    labels = tuple(f"component {k + 1} of the path: {100 * share:.1f} %" for k, share in enumerate(shares))
    first, second = (direction.to(origin) for direction in found)
    return Plane(origin, first, second, (labels[0], labels[1]), explained=(shares[0], shares[1]))


def _gram(rows: Sequence[Tensor]) -> Tensor:
    """Products of all rows with each other about their mean, float64, taken piece by piece: the rows may be long."""
    size = rows[0].numel()
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for start in range(0, size, _PIECE):
        piece = torch.stack([row[start : start + _PIECE].double() for row in rows])
        piece = piece - piece.mean(0, keepdim=True)
        gram += (piece @ piece.T).cpu()
    return gram


def _towards_end(direction: Tensor, rows: Sequence[Tensor]) -> Tensor:
    """The sign of a principal direction is arbitrary: the path is to go along it."""
    return direction if float((rows[-1].double() - rows[0].double()).dot(direction)) >= 0 else -direction


def _orthogonal(direction: Tensor) -> Tensor:
    axis = torch.zeros_like(direction)
    axis[int(direction.abs().argmin())] = 1.0
    axis -= axis.dot(direction) * direction
    return axis.div(axis.norm())


def hessian_plane(origin: Tensor, product: Callable[[Tensor], Tensor], seed: int) -> Plane:
    """The two eigenvectors of the Hessian whose eigenvalues are largest in size, of length one each.

    Args:
        origin: shape (n,).
        product: the Hessian at the origin times a vector of shape (n,), float64.
        seed: of the vector that the Lanczos iteration starts from.

    Raises:
        ValueError: the Hessian is zero, or not finite.
    """
    generator = torch.Generator().manual_seed(derived_seed(seed))
    start = torch.randn(origin.numel(), generator=generator, dtype=torch.float64)
    basis, values, vectors = lanczos(product, start, PRODUCTS)
    order = values.abs().argsort(descending=True)[:2].tolist()
    if not order or not float(values[order[0]].abs()) > 0:
        raise ValueError(
            "expected a loss that curves, received a Hessian that is zero or not finite; take span='filter'"
        )
    found = [basis @ vectors[:, k] for k in order]
    eigenvalues = [float(values[k]) for k in order]
    if len(found) < 2:
        found.append(_orthogonal(found[0]))
        eigenvalues.append(0.0)
    labels = [f"eigenvector of the Hessian, eigenvalue {value:.3g}" for value in eigenvalues]
    first, second = (vector.to(origin) for vector in found)
    return Plane(origin, first, second, (labels[0], labels[1]), eigenvalues=(eigenvalues[0], eigenvalues[1]))
