"""``fogline.examples`` of real runs: what was planted in their data is found, and nothing of theirs is disturbed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fogline
from example_records import write
from fogline._examples.export import write_table

WRONG, COPIES = 60, 20


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[fogline.Task, fogline.Run]:
    """Three heaps; the first 60 labels are wrong, example 100 lies far out, 20 held-out rows are training rows."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 3, (700,), generator=generator)
    centres = 4 * torch.randn(3, 6, generator=generator)
    inputs = centres[truth] + torch.randn(700, 6, generator=generator)
    inputs[100] = 40.0
    labels = truth.clone()
    labels[:WRONG] = (truth[:WRONG] + 1 + torch.randint(0, 2, (WRONG,), generator=generator)) % 3
    held = inputs[600:].clone()
    held[:COPIES] = inputs[200 : 200 + COPIES]
    held_labels = torch.cat([labels[200 : 200 + COPIES], labels[600 + COPIES :]])
    task = fogline.Task(model, nn.CrossEntropyLoss(), (inputs[:600], labels[:600]), (held, held_labels))
    recipe = fogline.Recipe(lr=0.01, batch_size=32, duration="8ep", seed=0, device="cpu")
    run = fogline.fit(task, recipe, runs=tmp_path_factory.mktemp("runs"), name="planted", progress=False)
    return task, run


def test_label_errors_are_found_with_and_without_the_data(planted: tuple[fogline.Task, fogline.Run]) -> None:
    _, run = planted
    for examples in (fogline.examples(run), fogline.examples(run.folder)):
        errors = examples.label_errors()
        assert abs(errors.count - WRONG) < 0.25 * WRONG
        flagged = errors.ids[: errors.cut]
        assert (flagged < WRONG).mean() > 0.85
        assert (flagged < WRONG).sum() > 0.8 * WRONG
        assert errors.precision[0] == pytest.approx(errors.probability[0])
        assert (np.diff(errors.precision) <= 1e-6).all()
        assert errors.recall[-1] == pytest.approx(1.0)


def test_the_table_has_a_row_an_example(planted: tuple[fogline.Task, fogline.Run]) -> None:
    _, run = planted
    examples = fogline.examples(run, columns={"half": np.arange(600) // 300})
    assert len(examples) == len(examples.table) == 600
    worst = examples.sql("select example from examples order by label_error desc limit 20")["example"]
    assert (worst < WRONG).all()
    assert examples.sql("select count(*) as n from examples where half = 1")["n"].tolist() == [300]
    with pytest.raises(ValueError, match="'half' with 600 values"):
        fogline.examples(run, columns={"half": np.arange(3)})


def test_leaks_outliers_and_neighbours(planted: tuple[fogline.Task, fogline.Run]) -> None:
    _, run = planted
    examples = fogline.examples(run)
    leaks = examples.leaks()
    assert set(zip(leaks["train"][:COPIES], leaks["valid"][:COPIES], strict=True)) == {(200 + k, k) for k in range(20)}
    of_train, of_valid = examples.groups(within=1e-3)
    assert (of_train[200 : 200 + COPIES] == of_valid[:COPIES]).all()
    assert 100 in examples.outliers()["example"][:20]
    near = examples.neighbours(300, k=4)
    assert len(near) == 4
    assert 300 not in near["example"]
    assert (np.diff(near["distance"]) >= 0).all()
    with pytest.raises(IndexError, match="from 0 to 599"):
        examples.neighbours(600)


def test_the_planted_slice_does_worse(planted: tuple[fogline.Task, fogline.Run]) -> None:
    _, run = planted
    source = np.where(np.arange(600) < WRONG, "scanner", "hand")
    found = fogline.examples(run, columns={"source": source}).slices()
    assert ("source", "scanner") in zip(found["column"], found["value"], strict=True)
    assert (found["p"] < 0.05).all()


def test_wrong_labels_pull_hardest(planted: tuple[fogline.Task, fogline.Run]) -> None:
    _, run = planted
    turning = fogline.examples(run).turning()
    assert turning["share"].sum() == pytest.approx(1.0)
    assert (turning["example"][:30] < WRONG).mean() > 0.7


def test_nothing_is_disturbed(planted: tuple[fogline.Task, fogline.Run]) -> None:
    _, run = planted
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.model.train()
    state = torch.random.get_rng_state()
    (run.folder / "examples" / "embedding.safetensors").unlink(missing_ok=True)
    fogline.examples(run).outliers()
    assert (run.folder / "examples" / "embedding.safetensors").exists()
    assert all(module.training for module in run.model.modules())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in run.model.state_dict().items())
    run.model.eval()


def test_without_the_data_it_says_what_is_missing(planted: tuple[fogline.Task, fogline.Run]) -> None:
    task, run = planted
    examples = fogline.examples(run.folder)
    for question in (examples.outliers, examples.duplicates, examples.leaks, examples.groups):
        with pytest.raises(ValueError, match=r"fogline\.examples\(run, task=task\)"):
            question()
    other = fogline.Task(model, nn.CrossEntropyLoss(), (task.train[0][:50], task.train[1][:50]))
    with pytest.raises(ValueError, match="of 600 training examples, received one of 50"):
        fogline.examples(run.folder, other).outliers()
    with pytest.raises(TypeError, match="received int"):
        fogline.examples(3)  # type: ignore[arg-type]


def test_pictures_go_to_fiftyone_and_others_do_not(planted: tuple[fogline.Task, fogline.Run], tmp_path: Path) -> None:
    _, run = planted
    with pytest.raises(ValueError, match="task of pictures"):
        fogline.examples(run).to_fiftyone(tmp_path / "out")
    assert fogline.examples(run).to_polars().shape[0] == len(fogline.examples(run).to_pandas()) == 600
    assert fogline.examples(run).export(tmp_path / "table.csv").exists()


def test_a_regression_has_a_table_and_no_label_errors(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    epochs = [
        {"loss": random.random(40).astype(np.float16), "residual": random.normal(size=40).astype(np.float32)}
        for _ in range(3)
    ]
    write(tmp_path, epochs, random.normal(size=40).astype(np.float32), kind="regression")
    examples = fogline.examples(tmp_path)
    assert (examples.table["residual"] == epochs[-1]["residual"]).all()
    assert len(examples.slices()) == 0
    assert write_table(examples.table, tmp_path / "a.parquet").exists()
    with pytest.raises(ValueError, match="of a classification, received one of regression"):
        examples.label_errors()
