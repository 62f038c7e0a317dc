"""Pictures that come in series: frames of one thing, seen again and again, as by a camera that drives past it.

A frame is like the next one, and the first not like the last. So what belongs together is found in turns. Pictures that
are nearest to each other, both ways, show how pictures of one thing differ here; directions in which they do count for
little, those in which pictures differ at all for much (the discriminant of :mod:`fogline._examples.fingerprints`, in
more directions). Average linkage then makes groups, and these show once more how pictures of one thing differ, of all
kinds and of each kind: differences between frames that follow each other add up to that of the first and the last.

What pictures of a kind have in common is subtracted before. Two pictures are compared at the best of some positions and
sizes of the one. Their distance is in units of what is usual around them, the geometric mean over their neighbours.

So many directions fit any pairs, also pairs by chance. Therefore this is for data of which it is known that they come
in series of eight or more, and :func:`in_series` asks first whether there can be series at all, by distances that did
not learn from so many. Copies in twos and threes it would join with others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fogline._examples import fingerprints as prints
from fogline._examples.duplicates import groups, near_by_chance, pairs
from fogline._examples.linkage import joined
from fogline._examples.neighbours import nearest
from fogline.record.store import Table

_DOUBTFUL, _COMPANY = 0.1, 0.25
_LEAST = 100  # examples of a label, below which it is no kind of its own
_DIMENSIONS, _WIDTH = 400, 128
_ROUNDS, _TURNS = 3, 2
_SURE = 0.8  # distance of clusters that are learned from
_OWN_KIND = 0.5  # weight of the differences within the kind itself, beside those within all kinds
_NEAR = 32
_BLOCK = 2048


def in_series(rows: Tensor, labels: NDArray[np.int64] | None) -> bool:
    """Whether many more examples have company than by chance: a quarter more of those that have none by chance.

    Args:
        rows: (N, d) fingerprints.
        labels: (N,), where they are classes.
    """
    found = pairs(rows, labels, near_by_chance(rows, _DOUBTFUL))
    with_company = len(np.union1d(found["first"], found["second"])) / len(rows)
    alone = np.exp(-_DOUBTFUL)
    return len(rows) > _LEAST and with_company > 1 - alone + _COMPANY * alone


def links(pictures: Tensor, labels: NDArray[np.int64] | None) -> Table:
    """Pairs of pictures that are near each other, each with its nearest 32, of one label alone.

    Args:
        pictures: (N, channels, height, width), in whatever range; channels 1 to 4.
        labels: (N,), where they are classes.

    Returns:
        ``first`` < ``second``, and ``distance`` in units of what is usual around them.
    """
    labels = np.zeros(len(pictures), dtype=np.int64) if labels is None else labels
    views = _views(pictures, _kinds(labels))
    directions = [_from_pairs(views)] * len(views.kinds)
    for _ in range(_TURNS):
        found = joined(len(pictures), _near(views, directions, labels), _SURE)
        directions = _from_groups(views, torch.from_numpy(groups(len(pictures), found)))
    return _near(views, directions, labels)


@dataclass(frozen=True)
class _Views:
    """What is compared.

    Attributes:
        rows: (N, d) of the pictures.
        moved: (M, N, d) float16, of the pictures moved and drawn nearer or further away.
        made: (d, d) covariance of small changes.
        kinds: the positions of the pictures of each kind.
    """

    rows: Tensor
    moved: Tensor
    made: Tensor
    kinds: list[Tensor]


def _kinds(labels: NDArray[np.int64]) -> list[Tensor]:
    """The positions of each label; labels of few examples are one kind together."""
    _, kind, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    kind = np.where(sizes[kind] < _LEAST, len(sizes), kind)
    return [torch.from_numpy(np.flatnonzero(kind == one)) for one in np.unique(kind)]


def _views(pictures: Tensor, kinds: list[Tensor]) -> _Views:
    light = prints.as_light(pictures)
    generator = torch.Generator().manual_seed(0)
    some = torch.randperm(len(light), generator=generator)[: prints.MOST]
    seen = _in_parts(prints.looked_at, light)
    middle = torch.zeros_like(seen)
    for members in kinds:
        middle[members] = seen[members].mean(0)
    changed = [prints.looked_at(prints.changed(light[some], generator, by=0.03)) for _ in range(prints.COPIES)]
    changes = torch.cat(changed) - seen[some].repeat(prints.COPIES, 1)
    between = prints.covariance((seen - middle)[some])
    axes = prints.discriminant(prints.covariance(changes), between, _DIMENSIONS)
    corners = [(0.0, 0.0), *((x, y) for x in (-0.06, 0.06) for y in (-0.06, 0.06))]
    places = [(1.0, 0.0, 0.0), *((size, *corner) for size in (0.9, 1.1) for corner in corners)]
    common = middle @ axes
    moved = [(_in_parts(partial(_seen_from, place, axes), light) - common).half() for place in places]
    return _Views((seen - middle) @ axes, torch.stack(moved), prints.covariance(changes @ axes), kinds)


def _in_parts(what: Callable[[Tensor], Tensor], light: Tensor) -> Tensor:
    return torch.cat([what(part) for part in torch.split(light, _BLOCK)])


def _seen_from(place: tuple[float, float, float], axes: Tensor, light: Tensor) -> Tensor:
    """What is looked at in pictures of which a part is taken: its size, and where its middle lies."""
    size, x, y = place
    place_of_each = torch.tensor([[size, 0.0, x], [0.0, size, y]]).expand(len(light), 2, 3)
    grid = F.affine_grid(place_of_each, list(light.shape), align_corners=False)
    moved = F.grid_sample(light, grid, padding_mode="reflection", align_corners=False)
    return prints.looked_at(moved) @ axes


def _from_pairs(views: _Views) -> Tensor:
    """(d, 128) directions, learned from pictures that are nearest to each other."""
    between, found = prints.covariance(views.rows), views.rows
    directions = torch.eye(found.shape[1])
    for turn in range(_ROUNDS):
        near = [m[prints.mutual(F.normalize(found[m]), 1 + turn)] for m in views.kinds if len(m) > 1]
        one, other = torch.cat(near).T
        own = prints.covariance(views.rows[one] - views.rows[other]) / 2
        directions = prints.discriminant(own + prints.MADE * views.made, between, _WIDTH)
        found = views.rows @ directions
    return directions


def _from_groups(views: _Views, group: Tensor) -> list[Tensor]:
    """(d, 128) directions for each kind, learned from what is in one group."""
    between = prints.covariance(views.rows)
    sizes = torch.bincount(group)
    middle = torch.zeros(len(sizes), views.rows.shape[1]).index_add_(0, group, views.rows) / sizes[:, None]
    apart = views.rows - middle[group]

    def within(members: Tensor) -> Tensor:
        free = len(members) - int(group[members].bincount().count_nonzero())
        return apart[members].T @ apart[members] / max(1, free)

    shared = (1 - _OWN_KIND) * within(torch.arange(len(group))) + prints.MADE * views.made
    return [prints.discriminant(shared + _OWN_KIND * within(m), between, _WIDTH) for m in views.kinds]


def _near(views: _Views, directions: list[Tensor], labels: NDArray[np.int64]) -> Table:
    """The nearest 32 of each picture, among its kind; of these pairs, those of one label."""
    ones, others, fars = [], [], []
    usual = np.ones(len(labels))
    for members, axes in zip(views.kinds, directions, strict=True):
        rows = F.normalize(views.rows[members] @ axes)
        near = nearest(rows, k=_NEAR)[0]
        far = _at_best(views, members, axes, rows, torch.from_numpy(near))
        ones.append(np.repeat(members.numpy(), near.shape[1]))
        others.append(members.numpy()[near.ravel()])
        fars.append(far.ravel())
        usual[members.numpy()] = _usual(far)
    one, other, far = (np.concatenate(parts) for parts in (ones, others, fars))
    first, second = np.minimum(one, other), np.maximum(one, other)
    relative = far / np.sqrt(usual[one] * usual[other])
    order = np.lexsort((relative, second, first))
    order = order[labels[first[order]] == labels[second[order]]]
    first, second, relative = first[order], second[order], relative[order]
    new = np.ones(len(first), dtype=bool)
    new[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])  # of both ways the nearer one
    return Table({"first": first[new], "second": second[new], "distance": relative[new]})


def _at_best(views: _Views, members: Tensor, axes: Tensor, rows: Tensor, near: Tensor) -> NDArray[np.float64]:
    """(n, k) the distance of each row to each of those near it, at the best position and size of its own."""
    best = torch.full(near.shape, -1.0)
    for part in torch.split(torch.arange(len(members)), _BLOCK):
        others = rows[near[part]]
        for moved in views.moved:
            own = F.normalize(moved[members[part]].float() @ axes)
            best[part] = torch.maximum(best[part], torch.einsum("ij,ikj->ik", own, others))
    return (2 - 2 * best.double()).clamp(min=0.0).sqrt().numpy()


def _usual(far: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) the geometric mean of the distances to all neighbours but the nearest, of which none counts as very near."""
    ordered = np.sort(far, axis=1)
    rest = ordered[:, 1:] if ordered.shape[1] > 1 else ordered
    least = np.maximum(0.1 * ordered[:, -1:], 1e-6)
    found: NDArray[np.float64] = np.exp(np.log(np.maximum(rest, least)).mean(1))
    return found
