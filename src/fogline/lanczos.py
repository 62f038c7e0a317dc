"""The ends of a symmetric matrix's spectrum from a few products with it, for functions and for models alike."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def lanczos(product: Callable[[Tensor], Tensor], start: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lanczos iteration with full reorthogonalisation (Golub & Van Loan, Matrix Computations, 2013, section 10.3).

    The outer Ritz values come close to the outer eigenvalues first, always from inside the spectrum; in exact
    arithmetic they are eigenvalues once ``count`` reaches the number of distinct ones.

    Args:
        product: the matrix times a vector of shape (n,).
        start: shape (n,); directions orthogonal to it are not seen.
        count: products at most.

    Returns:
        Basis (n, k), Ritz values in rising order (k,) and their vectors in that basis (k, k); k is 0 where ``start`` is
        zero or a product is not finite.

    >>> matrix = torch.diag(torch.tensor([4.0, 1.0, -9.0], dtype=torch.float64))
    >>> _, values, _ = lanczos(lambda v: matrix @ v, torch.ones(3, dtype=torch.float64), 3)
    >>> [round(value, 9) for value in values.tolist()]
    [-9.0, 1.0, 4.0]
    """
    nothing = start.new_zeros(start.numel(), 0), start.new_zeros(0), start.new_zeros(0, 0)
    length = float(start.norm())
    if not 0 < length < math.inf:
        return nothing
    basis: list[Tensor] = [start / length]
    images: list[Tensor] = []
    while len(images) < min(count, start.numel()):
        images.append(product(basis[-1]))
        rest = images[-1]
        for _ in range(2):  # twice is enough (Kahan, in Parlett 1998)
            for earlier in basis:
                rest = rest - rest.dot(earlier) * earlier
        length = float(rest.norm())
        if not math.isfinite(length) or length <= 1e-10 * float(images[-1].norm()):
            break
        basis.append(rest / length)
    known = torch.stack(basis[: len(images)], 1)
    small = known.T @ torch.stack(images, 1)
    if not bool(torch.isfinite(small).all()):
        return nothing
    values, vectors = torch.linalg.eigh((small + small.T) / 2)
    return known, values, vectors
