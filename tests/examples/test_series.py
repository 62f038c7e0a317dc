"""What belongs together in series: average linkage against the plain way, and chains of pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fogline._examples.duplicates import groups
from fogline._examples.fingerprints import changed, fingerprints
from fogline._examples.linkage import FAR, joined
from fogline._examples.series import in_series, links
from fogline.record.store import Table


def plain(far: np.ndarray, within: float) -> dict[tuple[int, int], float]:
    """Average linkage by comparing all clusters with all."""
    clusters = [[row] for row in range(len(far))]
    found: dict[tuple[int, int], float] = {}
    while len(clusters) > 1:
        apart = [(far[np.ix_(clusters[a], clusters[b])].mean(), a, b) for b in range(len(clusters)) for a in range(b)]
        height, a, b = min(apart)
        if height > within:
            break
        found |= {(min(i, j), max(i, j)): height for i in clusters[a] for j in clusters[b]}
        clusters[a] += clusters.pop(b)
    return found


@pytest.mark.parametrize("listed", [1.0, 0.3])
def test_average_linkage_is_that_of_the_plain_way(listed: float) -> None:
    random = np.random.default_rng(0)
    first, second = np.triu_indices(30, 1)
    distance = np.where(random.random(len(first)) < listed, random.uniform(0.1, 1.4, len(first)), FAR)
    far = np.full((30, 30), FAR)
    far[first, second] = far[second, first] = distance
    near = distance < FAR
    found = joined(30, Table({"first": first[near], "second": second[near], "distance": distance[near]}), 1.0)
    expected = plain(far, 1.0)
    assert set(zip(found["first"].tolist(), found["second"].tolist(), strict=True)) == set(expected)
    for one, other, height in zip(found["first"], found["second"], found["distance"], strict=True):
        assert height == pytest.approx(expected[one, other], abs=1e-5)
    assert (np.diff(found["distance"]) >= 0).all()


def series(things: int, frames: int) -> tuple[torch.Tensor, np.ndarray]:
    """Frames of drawn things, each a little changed from the one before; and of what thing."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(things, 1, 5, 5, generator=generator)
    made = [torch.nn.functional.interpolate(coarse, 20, mode="bilinear")]
    for _ in range(frames - 1):
        made.append(changed(made[-1], generator, by=0.03))
    return torch.cat(made), np.tile(np.arange(things), frames)


def test_series_are_found_from_the_first_frame_to_the_last() -> None:
    pictures, thing = series(60, 8)
    labels = thing % 2
    assert in_series(fingerprints(pictures), labels)
    found = joined(len(pictures), links(pictures, labels), 1.0)
    right = thing[found["first"]] == thing[found["second"]]
    assert right.mean() > 0.9
    assert right.sum() > 0.9 * 60 * 28
    assert (labels[found["first"]] == labels[found["second"]]).mean() == 1.0
    assert abs(groups(len(pictures), found).max() + 1 - 60) < 6


def test_pictures_drawn_each_on_its_own_are_no_series() -> None:
    pictures, _ = series(400, 1)
    assert not in_series(fingerprints(pictures), None)
