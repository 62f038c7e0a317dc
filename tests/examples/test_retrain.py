"""The difference that edits make is that of two programs which differ in their training data alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import fogline
from fogline._examples.edits import Edits
from fogline._examples.retrain import _STUDENT, FILE, compare, read_retrained, retrain
from fogline.record.store import write_json
from fogline.run import Run
from run_folders import make_run

WRONG = list(range(60, 100))


def blobs(seed: int, count: int = 120) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    return torch.randn(count, 8, generator=random) * 0.8 + labels[:, None] - 0.5, labels


def noisy_task(metrics: dict[str, object] | None = None) -> fogline.Task:
    inputs, labels = blobs(0)
    labels = labels.clone()
    labels[WRONG] = 0  # half of these are wrong
    return fogline.Task(
        lambda: nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2)),
        nn.CrossEntropyLoss(),
        (inputs, labels),
        valid=blobs(1, 2000),
        metrics=metrics or {},  # type: ignore[arg-type]
    )


RECIPE = fogline.Recipe(optimizer="adamw", lr=0.01, duration="15ep", batch_size=20, step="eager", watch=0)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return fogline.fit(noisy_task(), RECIPE, runs=tmp_path)


def test_right_labels_are_worth_something_and_the_run_stays_as_it_was(run: Run) -> None:
    before = {path: path.read_bytes() for path in run.folder.rglob("*.safetensors")}
    truth = blobs(0)[1]
    Edits(run.folder).relabel(WRONG, truth[WRONG].tolist())
    said: list[str] = []
    found = retrain(run, say=said.append)
    assert (found.seeds, found.edits["relabel"]) == ((0, 1, 2), 40)
    assert [each.metric for each in found.differences] == ["accuracy", "loss"]
    assert found.difference.better is True
    assert found.difference.mean > 0.02
    assert found.differences[1].better is True
    assert found.differences[1].mean < 0
    assert len(said) == 6
    assert {path: path.read_bytes() for path in run.folder.rglob("*.safetensors")} == before
    # The control of the run's own seed is the run itself.
    assert found.difference.without[0] == run.final_scores()["accuracy"]
    assert "lr" in found.recipe
    assert "seed" not in found.recipe
    kept = read_retrained(run.folder)
    assert kept is not None
    assert kept["words"] == str(found)
    assert json.loads(found.to_json()) == kept


def test_the_right_labels_give_the_run_that_had_them(run: Run, tmp_path: Path) -> None:
    Edits(run.folder).relabel(WRONG, blobs(0)[1][WRONG].tolist())
    found = retrain(run, seeds=[5])
    assert run.task is not None
    clean = fogline.Task(run.task.model, run.task.loss, blobs(0), valid=run.task.valid)
    twin = fogline.fit(clean, run.recipe.replace(seed=5), runs=tmp_path, name="twin")
    assert found.difference.with_edits == (twin.final_scores()["accuracy"],)
    assert found.difference.interval == (-math.inf, math.inf)
    assert "one seed says nothing" in str(found)
    assert json.loads(found.to_json())["differences"][0]["interval"] == [None, None]


def test_what_is_missing_is_said(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="edit some first"):
        retrain(run)
    Edits(run.folder).keep([1])
    with pytest.raises(ValueError, match="edit some first"):
        retrain(run)
    Edits(run.folder).drop([1])
    with pytest.raises(ValueError, match="pass retrain"):
        retrain(Run.open(run.folder))
    with pytest.raises(ValueError, match="at least one seed"):
        retrain(run, seeds=0)
    write_json(run.folder / "run.json", run.info | {"source": {"kind": "watch"}})
    with pytest.raises(ValueError, match="the loop of this run was its own"):
        retrain(run)
    assert run.task is not None
    alone = fogline.Task(run.task.model, run.task.loss, run.task.train)
    with pytest.raises(ValueError, match="held-out data"):
        retrain(run, alone, RECIPE)


def test_nothing_to_read(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    assert read_retrained(folder) is None
    (folder / "examples").mkdir()
    (folder / "examples" / FILE).write_text("{cut")
    assert read_retrained(folder) is None


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_the_interval_is_that_of_a_paired_t_test(count: int) -> None:
    random = np.random.default_rng(count)
    before = random.normal(0.8, 0.02, count)
    after = before + random.normal(0.01, 0.01, count)
    found = compare("accuracy", before.tolist(), after.tolist())
    wanted = stats.ttest_rel(after, before).confidence_interval(0.95)
    np.testing.assert_allclose(found.interval, wanted, rtol=1e-3, atol=1e-5)
    assert found.mean == pytest.approx(fmean(after - before))


def test_quantiles_of_student() -> None:
    np.testing.assert_allclose(_STUDENT, stats.t.ppf(0.975, range(1, len(_STUDENT) + 1)), rtol=3e-4)


@pytest.mark.parametrize(
    ("metric", "step", "better", "words"),
    [
        ("accuracy", 0.01, True, "better, +0.0"),
        ("accuracy", -0.01, False, "worse, -0.0"),
        ("loss", 0.01, False, "worse, +0.0"),
        ("mean_absolute_error", -0.01, True, "better, -0.0"),
        ("my score", 0.01, None, "different, +0.0"),
        ("accuracy", 0.0, None, "no difference shown"),
    ],
)
def test_words_go_by_what_the_metric_means(metric: str, step: float, better: bool | None, words: str) -> None:
    before = [0.5, 0.6, 0.55]
    after = [value + step + jitter for value, jitter in zip(before, [0.001, -0.001, 0.0005], strict=True)]
    found = compare(metric, before, after)
    assert found.better is better
    assert words in str(found)
    assert stdev(found.with_edits) > 0
