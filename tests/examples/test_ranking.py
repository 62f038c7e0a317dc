"""Planted wrong labels: how many, which, what instead; and silence where none is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from example_records import planted
from fogline import Run
from fogline._examples.counting import CENTRES, Sureness, count_errors, density, overlap, settled
from fogline._examples.dynamics import open_record
from fogline._examples.ranking import calibrated, rank_labels, shrunk


def average_precision(wrong: np.ndarray, score: np.ndarray) -> float:
    hits = wrong[np.argsort(-score)]
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())


@pytest.mark.parametrize("flat", [0, 200, 1000])
@pytest.mark.parametrize("steepness", [3.0, 8.0])
def test_the_number_is_that_of_the_contradictions_that_do_not_fall_off(flat: int, steepness: float) -> None:
    random = np.random.default_rng(0)
    steep = 1 + np.log(random.uniform(np.exp(-steepness), 1, 600)) / steepness  # density exp(b (r - 1))
    ranks = np.concatenate([random.uniform(0, 1, flat), steep, random.uniform(0, 1, 5000)])
    wrong = np.arange(len(ranks)) < flat + 600
    doubt = np.exp(steepness / 1.5 * (CENTRES - 1))
    number, deviation = density(Sureness(ranks, np.zeros(len(ranks), dtype=np.int64), wrong, doubt, 0.0))
    assert abs(number - flat) < 2.5 * deviation + 1
    assert deviation < 130


def test_a_pull_on_wrong_labels_is_allowed_for() -> None:
    random = np.random.default_rng(0)
    slope, total = 0.5, 3000
    drawn = (-(1 - slope) + np.sqrt((1 - slope) ** 2 + 4 * slope * random.uniform(0, 1, total))) / (2 * slope)
    ranks = np.concatenate([drawn, random.uniform(0, 1, 9000)])
    wrong = np.arange(len(ranks)) < total
    doubt = CENTRES**2
    for pull, low, high in ((0.0, 0.5, 0.9), (slope / 6, 0.93, 1.05)):
        number, _ = density(Sureness(ranks, np.zeros(len(ranks), dtype=np.int64), wrong, doubt, pull))
        assert low < number / total < high


@pytest.mark.parametrize("between", [0.0, 0.5, 1.0])
def test_overlap_is_what_lies_among_its_like(between: float) -> None:
    random = np.random.default_rng(0)
    count, sure, k = 4000, 400, 10
    targets = np.zeros(count, dtype=np.int64)
    targets[:sure] = 1
    near = random.integers(0, count, (count, k))  # of a label that is wrong anywhere
    crowded = random.uniform(0, 1, (sure, k)) < 0.2
    crowded[int(between * sure) :] = False  # and two of ten more of those that lie between classes
    near[:sure] = np.where(crowded, random.integers(0, sure, (sure, k)), near[:sure])
    wrong = targets == 1
    seen = Sureness(np.full(count, 0.25), np.zeros(count, dtype=np.int64), wrong, CENTRES, 0.0)
    share, deviation = overlap(seen, targets, near)
    assert abs(share - between * 0.9) < 3 * deviation  # a tenth of them would be alike anyway
    assert deviation < 0.05


def test_without_contradictions_there_is_no_overlap() -> None:
    none = np.zeros(100, dtype=np.int64)
    seen = Sureness(np.full(100, 0.25), none, none > 0, CENTRES, 0.0)
    assert overlap(seen, none, np.zeros((100, 10), dtype=np.int64)) == (0.0, 0.0)


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_planted_errors_are_counted_ranked_and_put_right(tmp_path: Path, rate: float, pair: bool) -> None:
    made = planted(tmp_path, rate, pair=pair)
    found = rank_labels(open_record(Run(made.folder)))
    total = int(made.wrong.sum())
    assert abs(found.count - total) < 0.15 * total
    assert found.interval[0] <= found.count <= found.interval[1]
    assert average_precision(made.wrong, found.score) > 0.9
    assert found.probability.sum() == pytest.approx(found.count, rel=1e-3)
    flagged = found.probability > 0.5
    assert made.wrong[flagged].mean() > 0.85
    assert (found.likely[flagged & made.wrong] == made.truth[flagged & made.wrong]).mean() > 0.9


def test_of_a_clean_data_set_nothing_is_said(tmp_path: Path) -> None:
    made = planted(tmp_path, 0.0)
    found = rank_labels(open_record(Run(made.folder)))
    assert found.count < 0.01 * len(made.targets)
    assert (found.probability > 0.5).sum() < 0.01 * len(made.targets)


@pytest.mark.parametrize("memorised", [5, 8])
def test_the_window_ends_where_labels_are_learned_by_heart(tmp_path: Path, memorised: int) -> None:
    made = planted(tmp_path, 0.2, memorised=memorised)
    assert rank_labels(open_record(Run(made.folder))).window == memorised


def test_the_scale_of_the_logits_does_not_matter(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    made = planted(tmp_path, 0.2, count=1000)
    before = rank_labels(open_record(Run(made.folder)))
    for path in (tmp_path / "examples").glob("epoch-*"):
        columns = load_file(path)
        columns["margin"] = columns["margin"] * np.float16(4)
        # what the largest probability is taken from has to fit the margins
        columns["confidence"] = np.where(columns["correct"] > 0.5, columns["confidence"], 6e-8).astype(np.float16)
        columns["loss"] = np.zeros_like(columns["loss"])
        save_file(columns, path)
    after = rank_labels(open_record(Run(made.folder)))
    assert after.window == before.window
    assert np.corrcoef(after.margin, before.margin)[0, 1] > 0.9999


def test_neighbours_tell_the_rare_from_the_wrong(tmp_path: Path) -> None:
    made = planted(tmp_path, 0.2)
    record = open_record(Run(made.folder))
    wrong = np.flatnonzero(made.wrong)
    few, others = wrong[:40], wrong[40:]
    # the few are near each other and bear one label: they are of a rare kind, not wrong
    targets = made.targets.copy()
    kind = int(targets[few[0]])
    keep = few[targets[few] == kind]
    random = np.random.default_rng(1)
    by_truth = [np.flatnonzero((made.truth == k) & ~made.wrong) for k in range(made.truth.max() + 1)]
    near = np.stack([random.choice(by_truth[k], 10) for k in made.truth])
    near[keep] = random.choice(keep, (len(keep), 10))
    alone, together = rank_labels(record), rank_labels(record, [near])
    assert together.probability[keep].mean() < 0.7 * alone.probability[keep].mean()
    assert together.probability[others].mean() > 0.9 * alone.probability[others].mean()
    assert together.rare[keep].mean() > 3 * together.rare[others].mean()


def test_probabilities_sum_to_the_number() -> None:
    score = np.random.default_rng(0).normal(0, 5, 1000)
    for count in (0.5, 10.0, 400.0):
        assert calibrated(score, count).sum() == pytest.approx(count, rel=1e-4)
    assert not calibrated(score, 0.0).any()


def test_counts_that_scatter_by_chance_become_equal_and_others_stay() -> None:
    every = np.ones(100, dtype=bool)
    chance = np.random.default_rng(0).poisson(9.0, 100).astype(float)
    assert np.ptp(np.log(shrunk(chance, every))) < 0.3 * np.ptp(np.log(chance))
    pairs = np.where(np.arange(100) < 10, 90.0, 0.0)
    assert shrunk(pairs, every)[0] > 8
    assert shrunk(pairs, every)[-1] < 0.2


def test_a_single_epoch_is_enough_to_count(tmp_path: Path) -> None:
    made = planted(tmp_path, 0.2, epochs=1)
    record = open_record(Run(made.folder))
    assert settled(record) == 0
    assert 0 < count_errors(record, made.targets).value < 2 * made.wrong.sum()


def test_of_very_many_epochs_some_vote_and_all_are_counted(tmp_path: Path) -> None:
    made = planted(tmp_path, 0.2, count=400, epochs=60, memorised=50)
    record = open_record(Run(made.folder))
    found = rank_labels(record)
    assert found.window == 50
    predicted = np.stack(list(record.over("predicted", 50)))
    assert (found.wrong == (predicted != made.targets).sum(0)).all()
    assert average_precision(made.wrong, found.score) > 0.9
