"""Slices that do worse are found, and chance is not."""

from __future__ import annotations

import numpy as np
import torch

from fogline._examples.slices import benjamini_hochberg, clusters, worse_slices


def test_a_planted_slice_is_found_and_comes_first() -> None:
    random = np.random.default_rng(0)
    city = random.choice(["Bern", "Oslo", "Rome"], 3000)
    age = random.uniform(20, 80, 3000).astype(np.float32)
    bad = random.normal(0, 1, 3000) + np.where(city == "Oslo", 0.5, 0.0) + np.where(age > 65, 0.4, 0.0)
    found = worse_slices(bad, {"city": city, "age": age}, 0.05)
    assert (found["column"][0], found["value"][0]) == ("city", "Oslo")
    assert found["count"][0] == (city == "Oslo").sum()
    assert found["mean"][0] == np.float64(bad[city == "Oslo"].mean())
    assert found["column"][1] == "age"
    assert float(found["value"][1].split()[0]) > 60
    assert len(found) == 2


def test_where_nothing_differs_nearly_nothing_is_found() -> None:
    random = np.random.default_rng(1)
    columns = {f"c{k}": random.integers(0, 8, 2000) for k in range(40)}
    assert len(worse_slices(random.normal(0, 1, 2000), columns, 0.05)) <= 1


def test_unknown_values_are_left_out() -> None:
    bad = np.array([np.nan, *np.zeros(30), *np.ones(30)])
    side = np.array(["a", *["a"] * 30, *["b"] * 30])
    found = worse_slices(bad, {"side": side}, 0.05)
    assert found["value"].tolist() == ["b"]
    assert found["rest"].tolist() == [0.0]


def test_the_correction_is_that_of_benjamini_and_hochberg() -> None:
    chances = np.array([0.04, 0.001, 0.03, 0.5])
    assert np.allclose(benjamini_hochberg(chances), [0.04 * 4 / 3, 0.004, 0.04 * 4 / 3, 0.5])
    assert len(benjamini_hochberg(np.empty(0))) == 0


def test_clusters_are_the_heaps() -> None:
    heaps = torch.cat([torch.randn(50, 2, generator=torch.Generator().manual_seed(k)) + 20 * k for k in range(3)])
    found = clusters(heaps, 3).reshape(3, 50)
    assert (found == found[:, :1]).all()
    assert len(set(found[:, 0])) == 3
