"""Vectors in which two pictures of one thing lie near each other, and pictures of two things of one kind do not.

A picture is the same thing when it is moved by a pixel or two, drawn a little nearer, blurred or lit differently. So
directions in which such changes move pictures count for little, and those in which pictures differ from each other
count for much: Fisher's linear discriminant, each picture a class of its own, its changed copies the members,

    maximise  (w' B w) / (w' C w),    B covariance of the pictures, C of the changes.

What it looks at are logarithms of the intensities, as light multiplies: as they are, without brightness and contrast of
the picture, and how steep they are in each of four directions, place by place. Then the data is asked how its pictures
of one thing differ: the differences of pictures that are nearest to each other, both ways, join the changes, twice.
They are looked at in 64 directions only, and only where they are many times more than that: what is no pair does not
become one. Nothing else is trained, and the labels are not looked at.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fogline._examples.neighbours import nearest

_DARK = 0.03  # added before the logarithm, as a share of full light
_FLAT = 0.02  # likewise of steepness, and _EVEN to the contrast of a picture
_EVEN = 0.1
_SIDE, _COARSE = 16, 8
_WIDTH = 64
COPIES = 4
MOST = 4096  # pictures that the covariances are taken from
_MOST_PAIRED = 1 << 14
_ROUNDS = 2
_MANY = 4  # pairs for each direction, below which nothing is learned from them
MADE = 0.3  # what the made changes weigh beside those that are found
_RIDGE = 1e-3


def fingerprints(pictures: Tensor) -> Tensor:
    """Rows of unit length, (N, d) float32 with d at most 64.

    Args:
        pictures: (N, channels, height, width), in whatever range; channels 1 to 4.

    >>> pictures = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> fingerprints(pictures).shape
    torch.Size([20, 64])
    """
    light = as_light(pictures)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(light), generator=generator)
    some = light[order[:MOST]]
    rows = looked_at(some)
    middle = rows.mean(0)
    changes = torch.cat([looked_at(changed(some, generator)) - rows for _ in range(COPIES)])
    directions = discriminant(covariance(changes), covariance(rows - middle))
    found = torch.cat([(looked_at(part) - middle) @ directions for part in torch.split(light, MOST)])
    return F.normalize(_with_its_own(found, changes @ directions, order[:_MOST_PAIRED]))


def as_light(pictures: Tensor) -> Tensor:
    """The pictures from 0 to 1."""
    low, high = float(pictures.min()), float(pictures.max())
    return (pictures.float() - low) / max(high - low, 1e-12)


def _with_its_own(rows: Tensor, changes: Tensor, some: Tensor) -> Tensor:
    """The rows in the directions in which pictures of one thing, as far as they are found, differ the least."""
    made, between, sample = covariance(changes), covariance(rows), rows[some]
    found = rows
    for turn in range(_ROUNDS):
        pairs = mutual(F.normalize(found[some]), 1 + turn)
        if len(pairs) < _MANY * rows.shape[1]:
            break
        own = covariance(sample[pairs[:, 0]] - sample[pairs[:, 1]]) / 2  # of both is twice that of one
        found = rows @ discriminant(own + MADE * made, between)
    return found


def mutual(rows: Tensor, k: int) -> Tensor:
    """(M, 2) pairs of rows each of which is among the k nearest of the other.

    >>> mutual(torch.tensor([[0.0], [1.0], [3.0]]), 1).tolist()
    [[0, 1]]
    """
    near = torch.from_numpy(nearest(rows, k=k)[0])
    own = torch.arange(len(near))[:, None].expand_as(near)
    both = (near[near] == own[..., None]).any(-1) & (own < near)
    return torch.stack([own[both], near[both]], 1)


def covariance(rows: Tensor) -> Tensor:
    """About zero, (d, d)."""
    return rows.T @ rows / len(rows)


def discriminant(within: Tensor, between: Tensor, width: int = _WIDTH) -> Tensor:
    """(d, width) directions in which ``between`` is largest against ``within``, which is one in all; the best last."""
    size = len(within)
    within = within + (_RIDGE * between.diagonal().mean() + 1e-12) * torch.eye(size)
    lower = torch.linalg.cholesky(within)
    whitened = torch.linalg.solve_triangular(lower, between, upper=False)
    whitened = torch.linalg.solve_triangular(lower, whitened.T, upper=False)
    _, vectors = torch.linalg.eigh((whitened + whitened.T) / 2)
    found: Tensor = torch.linalg.solve_triangular(lower.T, vectors[:, -min(width, size - 1) :], upper=True)
    return found


def looked_at(light: Tensor) -> Tensor:
    """What is looked at in each picture, (N, d): of at most 16 pixels a side, and of 8."""
    logs = torch.log(_at_most(light.clamp(min=0.0), _SIDE) + _DARK)
    middle = logs.mean((2, 3), keepdim=True)
    contrast = (logs - middle).flatten(1).std(1)[:, None] + _EVEN
    coarse = torch.log(_at_most(light.clamp(min=0.0), _COARSE) + _DARK)
    even = (logs - middle).flatten(1) / contrast
    return torch.cat([even, middle.flatten(1), contrast.log(), coarse.flatten(1), _steepness(light)], 1)


def _steepness(light: Tensor) -> Tensor:
    """Logarithms of how steeply the logarithm of the light rises and falls, along and across."""
    logs = F.pad(torch.log(light.clamp(min=0.0) + _DARK), (1, 1, 1, 1), mode="replicate")
    along, across = logs[..., 1:-1, 2:] - logs[..., 1:-1, :-2], logs[..., 2:, 1:-1] - logs[..., :-2, 1:-1]
    rising = torch.cat([along, -along, across, -across], 1).clamp(min=0.0)
    return torch.log(_at_most(rising, _COARSE) + _FLAT).flatten(1)


def _at_most(light: Tensor, side: int) -> Tensor:
    return F.adaptive_avg_pool2d(light, side) if max(light.shape[-2:]) > side else light


def changed(light: Tensor, generator: torch.Generator, by: float = 0.06) -> Tensor:
    """Copies that are moved, drawn nearer, blurred and lit differently, each in its own way.

    Args:
        light: (N, channels, height, width), from 0 to 1.
        generator: of the changes.
        by: how far they are moved, as a share of half of the picture, and by how much they grow; a deviation.
    """
    count = len(light)
    normal = torch.randn(count, 5, generator=generator)
    place = torch.zeros(count, 2, 3)
    place[:, 0, 0] = 1 + by * normal[:, 0]
    place[:, 1, 1] = place[:, 0, 0] * (1 + 0.02 * normal[:, 1])
    place[:, :, 2] = by * normal[:, 2:4]
    grid = F.affine_grid(place, list(light.shape), align_corners=False)
    moved = F.grid_sample(light, grid, padding_mode="reflection", align_corners=False)
    blurred = F.avg_pool2d(F.pad(moved, (1, 1, 1, 1), mode="replicate"), 3, 1)
    amount = (torch.rand(count, generator=generator) * 2 - 1)[:, None, None, None]
    return (moved + amount * (blurred - moved)) * (1 + 0.08 * normal[:, 4])[:, None, None, None]
