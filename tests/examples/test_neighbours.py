"""Nearest neighbours and duplicates, against the plain way and against what was planted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fogline._examples import neighbours
from fogline._examples.duplicates import groups, near_by_chance, pairs
from fogline._examples.fingerprints import _with_its_own, fingerprints
from fogline._examples.neighbours import nearest, nearest_by_cells, unit
from fogline.record.store import Table


def rows(count: int, width: int = 6) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0))


def plain(points: torch.Tensor, k: int) -> np.ndarray:
    far = torch.cdist(points.double(), points.double()).fill_diagonal_(torch.inf)
    return far.argsort(1)[:, :k].numpy()


def test_they_are_those_of_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_BLOCK", 1000)  # several blocks
    points = rows(150)
    places, distances = nearest(points, k=5)
    assert (places == plain(points, 5)).all()
    expected = torch.cdist(points, points).gather(1, torch.from_numpy(places))
    assert torch.allclose(torch.from_numpy(distances), expected, atol=1e-3)


def test_cells_that_cover_everything_are_exact_and_few_find_nearly_all() -> None:
    points = rows(600, 3)
    exact = plain(points, 5)
    places, _ = nearest_by_cells(points, 5, cell=100, cells=6)
    assert (np.sort(places, 1) == np.sort(exact, 1)).all()
    some, far = nearest_by_cells(points, 5, cell=60, cells=5)
    assert np.mean([len(set(a) & set(b)) / 5 for a, b in zip(some, exact, strict=True)]) > 0.9
    assert np.isfinite(far).all()


def test_planted_copies_are_found_and_little_else() -> None:
    points = rows(1000, 8)
    copies = points[:30] + 0.01 * rows(30, 8)
    whole = torch.cat([points, copies])
    found = pairs(whole, None, near_by_chance(whole))
    hits = found["second"] == found["first"] + 1000
    assert hits.sum() == 30
    assert len(found) < 36
    assert hits[:20].all()  # the nearest come first
    assert len(pairs(points, None, near_by_chance(points))) < 6


def test_labels_keep_pairs_apart() -> None:
    points = torch.cat([rows(100), rows(100)])
    labels = np.repeat([0, 1], 100)
    assert len(pairs(points, None, 0.01)) == 100
    assert len(pairs(points, labels, 0.01)) == 0


def test_groups_are_what_pairs_link() -> None:
    links = Table({"first": np.array([0, 1, 5, 6]), "second": np.array([1, 2, 6, 9]), "distance": np.zeros(4)})
    assert groups(10, links).tolist() == [0, 0, 0, 1, 2, 3, 3, 4, 5, 3]


def test_a_moved_and_darker_picture_is_nearer_than_another_one() -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(200, 3, 6, 6, generator=generator)
    pictures = torch.nn.functional.interpolate(coarse, 26, mode="bilinear")
    first, second = pictures[:, :, 1:25, 1:25], 0.8 * pictures[:, :, 2:26, 2:26]
    found = fingerprints(torch.cat([first, second]))
    near, _ = nearest(found[:200], found[200:], k=1)
    raw, _ = nearest(unit(first), unit(second), k=1)
    right = (near[:, 0] == np.arange(200)).mean()
    assert right > 0.95
    assert right >= (raw[:, 0] == np.arange(200)).mean()


def test_directions_in_which_pairs_differ_are_learned_from_the_pairs() -> None:
    """400 things, two views of each, which differ along half of the axes more than the made changes say."""
    generator = torch.Generator().manual_seed(0)
    strength = torch.tensor([0.7] * 6 + [0.1] * 6)
    views = torch.randn(400, 12, generator=generator).repeat(2, 1)
    views += strength * torch.randn(800, 12, generator=generator)
    made = 0.1 * torch.randn(800, 12, generator=generator)

    def found(rows: torch.Tensor) -> float:
        near = nearest(torch.nn.functional.normalize(rows), k=1)[0][:, 0]
        return float((near % 400 == np.arange(800) % 400).mean())

    assert found(views) < 0.7
    assert found(_with_its_own(views, made, torch.arange(800))) > 0.85


def test_what_has_no_pairs_gets_none_by_learning() -> None:
    """Pictures drawn each on its own: as few are near another one as the chance that is asked for."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1500, 1, 5, 5, generator=generator)
    rows = fingerprints(torch.nn.functional.interpolate(coarse, 20, mode="bilinear"))
    near = pairs(rows, None, near_by_chance(rows))
    assert len(np.union1d(near["first"], near["second"])) < 0.01 * len(rows)
