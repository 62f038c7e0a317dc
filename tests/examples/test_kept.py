"""The ranking that was made with the data is the one that is seen without it, as long as it is of these epochs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fogline
from fogline._examples.dynamics import open_record
from fogline._examples.kept import FILE, keep_ranking, kept_ranking
from fogline._examples.ranking import rank_labels
from fogline.record.previews import read_previews
from fogline.run import Run
from run_folders import add_examples, make_run


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = add_examples(make_run(tmp_path / "run"))
    assert kept_ranking(folder) is None
    made = rank_labels(open_record(Run(folder)))
    keep_ranking(folder, made)
    found = kept_ranking(folder)
    assert found is not None
    for name in ("margin", "wrong", "probability", "likely", "score", "rare"):
        np.testing.assert_array_equal(getattr(found, name), getattr(made, name))
    assert (found.window, found.count, found.interval) == (made.window, made.count, made.interval)


def test_it_is_void_once_an_epoch_has_come_or_it_is_damaged(tmp_path: Path) -> None:
    folder = add_examples(make_run(tmp_path / "run"), epochs=4)
    made = rank_labels(open_record(Run(folder)))
    keep_ranking(folder, made)
    (folder / "examples" / "epoch-0003.safetensors").unlink()
    assert kept_ranking(folder) is None
    keep_ranking(folder, made)
    assert kept_ranking(folder) is not None
    (folder / "examples" / FILE).write_bytes(b"cut")
    assert kept_ranking(folder) is None


@pytest.fixture
def run(tmp_path: Path) -> Run:
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(300) % 3
    inputs = torch.randn(300, 6, generator=generator) * 0.5 + 2 * nn.functional.one_hot(truth, 6)
    labels = truth.clone()
    labels[::10] = (labels[::10] + 1) % 3
    task = fogline.Task(lambda: nn.Linear(6, 3), nn.CrossEntropyLoss(), (inputs, labels), valid=(inputs, truth))
    recipe = fogline.Recipe(optimizer="adamw", lr=0.03, batch_size=30, duration="6ep", step="eager")
    return fogline.fit(task, recipe, runs=tmp_path)


def test_those_who_come_without_the_data_see_what_was_found_with_it(run: Run) -> None:
    with_data = fogline.examples(run)
    assert with_data.task is not None
    probability = with_data.table["label_error"]
    alone = fogline.examples(Run.open(run.folder))
    assert alone.task is None
    np.testing.assert_array_equal(alone.table["label_error"], probability)
    (run.folder / "examples" / FILE).unlink()
    assert not np.array_equal(fogline.examples(Run.open(run.folder)).table["label_error"], probability)


def test_examples_are_edited_asked_and_retrained(run: Run) -> None:
    (run.folder / "examples" / "previews.safetensors").unlink()
    seen = fogline.examples(Run.open(run.folder), run.task)
    assert read_previews(run.folder) is not None
    errors = seen.label_errors()
    seen.edit(errors.ids[: errors.cut], "relabel", errors.likely[: errors.cut])
    seen.edit([1, 2], "drop")
    counts = seen.sql("select edit, count(*) as times from examples where edit <> '' group by 1 order by 1")
    assert list(counts["edit"]) == ["drop", "relabel"]
    assert counts["times"].tolist() == [2, errors.cut]
    found = seen.retrain(seeds=[3])
    assert found.edits == {"relabel": errors.cut, "drop": 2, "keep": 0}
    assert found.seeds == (3,)
