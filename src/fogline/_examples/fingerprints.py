"""Vectors in which two pictures of one thing lie near each other, and pictures of two things of one kind do not.

A picture is the same thing when it is moved by a pixel or two, drawn a little nearer, blurred or lit differently. So
directions in which such changes move pictures count for little, and those in which pictures differ from each other
count for much: Fisher's linear discriminant, each picture a class of its own, its changed copies the members,

    maximise  (w' B w) / (w' C w),    B covariance of the pictures, C of the changes,

on logarithms of the intensities, as light multiplies. Nothing is trained, and the labels are not looked at.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_DARK = 0.03  # added before the logarithm, as a share of full light
_SIDE = 16
_WIDTH = 64
_COPIES = 4
_MOST = 4096  # pictures that the covariances are taken from
_RIDGE = 1e-3


def fingerprints(pictures: Tensor) -> Tensor:
    """Rows of unit length, (N, d) float32 with d at most 64.

    Args:
        pictures: (N, channels, height, width), in whatever range; channels 1 to 4.

    >>> pictures = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> fingerprints(pictures).shape
    torch.Size([20, 63])
    """
    low, high = float(pictures.min()), float(pictures.max())
    light = (pictures.float() - low) / max(high - low, 1e-12)
    generator = torch.Generator().manual_seed(0)
    some = light[torch.randperm(len(light), generator=generator)[:_MOST]]
    rows = _rows(some)
    middle = rows.mean(0)
    changes = torch.cat([_rows(_changed(some, generator)) - rows for _ in range(_COPIES)])
    within = changes.T @ changes / len(changes)
    between = (rows - middle).T @ (rows - middle) / len(rows)
    within += (_RIDGE * between.diagonal().mean() + 1e-12) * torch.eye(len(within))
    lower = torch.linalg.cholesky(within)
    whitened = torch.linalg.solve_triangular(lower, between, upper=False)
    whitened = torch.linalg.solve_triangular(lower, whitened.T, upper=False)
    width = min(_WIDTH, len(within) - 1)
    _, vectors = torch.linalg.eigh((whitened + whitened.T) / 2)
    directions = torch.linalg.solve_triangular(lower.T, vectors[:, -width:], upper=True)
    found = torch.cat([(_rows(part) - middle) @ directions for part in torch.split(light, _MOST)])
    return F.normalize(found)


def _rows(light: Tensor) -> Tensor:
    """Logarithms of pictures of at most 16 pixels a side, (N, d)."""
    side = max(light.shape[-2:])
    if side > _SIDE:
        light = F.adaptive_avg_pool2d(light, _SIDE)
    return torch.log(light.clamp(min=0.0) + _DARK).flatten(1)


def _changed(light: Tensor, generator: torch.Generator) -> Tensor:
    """Copies that are moved, drawn nearer, blurred and lit differently, each in its own way."""
    count = len(light)
    normal = torch.randn(count, 5, generator=generator)
    place = torch.zeros(count, 2, 3)
    place[:, 0, 0] = 1 + 0.06 * normal[:, 0]
    place[:, 1, 1] = place[:, 0, 0] * (1 + 0.02 * normal[:, 1])
    place[:, :, 2] = 0.06 * normal[:, 2:4]
    grid = F.affine_grid(place, list(light.shape), align_corners=False)
    moved = F.grid_sample(light, grid, padding_mode="reflection", align_corners=False)
    blurred = F.avg_pool2d(F.pad(moved, (1, 1, 1, 1), mode="replicate"), 3, 1)
    amount = (torch.rand(count, generator=generator) * 2 - 1)[:, None, None, None]
    return (moved + amount * (blurred - moved)) * (1 + 0.08 * normal[:, 4])[:, None, None, None]
