"""``watch`` records what each example does where the loop says which examples its batches are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fogline
from fogline.record.example_files import files, read
from programs.problems import EXAMPLES, plain_mlp, points

EPOCHS = 3
X, Y = points()


def loop(run_log: Any, loss_fn: Any, model: nn.Module, *, lr: float = 1e-12, rows_known: bool = True) -> None:
    """Three passes over the data in random order, the last batch of each short."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(0)
    with run_log(model, optimizer) as log:
        for _ in range(EPOCHS):
            for rows in torch.randperm(EXAMPLES, generator=generator).split(8):
                optimizer.zero_grad()
                losses = loss_fn(model(X[rows]), Y[rows])
                losses.mean().backward()
                optimizer.step()
                log(losses, rows if rows_known else None)
            model.eval()
            with torch.no_grad():
                loss_fn(model(X), Y)  # held-out passes are not taken for training
            model.train()


def watched(tmp_path: Path, loss_fn: Any, model: nn.Module, name: str = "run", **options: Any) -> fogline.Run:
    found: list[fogline.Run] = []

    class Watching:
        def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
            self.run = fogline.watch(model, optimizer, loss_fn=loss_fn, runs=tmp_path, name=name)
            found.append(self.run)

        def __enter__(self) -> Any:
            self.run.__enter__()
            return lambda loss, rows: self.run.log(loss, examples=rows)

        def __exit__(self, *error: Any) -> None:
            self.run.__exit__(*error)

    loop(Watching, loss_fn, model, **options)
    return found[0]


def each(model: nn.Module) -> Any:
    with torch.no_grad():
        return F.cross_entropy(model(X), Y, reduction="none").numpy()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_what_the_loss_module_shows(reduction: str, tmp_path: Path) -> None:
    model = plain_mlp()
    run = watched(tmp_path, nn.CrossEntropyLoss(reduction=reduction), model)
    assert [path.name for path in files(run.folder)] == [f"epoch-000{k}.safetensors" for k in range(EPOCHS)]
    for path in files(run.folder):
        columns = read(path)
        assert columns is not None
        assert set(columns) == {"loss", "margin", "confidence", "correct", "predicted", "gradient_norm"}
        np.testing.assert_allclose(columns["loss"], each(model), rtol=2e-3)
        np.testing.assert_array_equal(columns["predicted"], model(X).argmax(1).numpy())
    assert run.info["examples"] == {"kind": "classification", "count": EXAMPLES, "classes": None}
    np.testing.assert_array_equal(run.examples["target"], Y.numpy())
    np.testing.assert_allclose(run.steps["loss"].mean(), each(model).mean(), rtol=0.1)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_losses_without_a_module(tmp_path: Path) -> None:
    model = plain_mlp()
    run = watched(tmp_path, lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none"), model)
    columns = read(files(run.folder)[-1])
    assert columns is not None
    assert set(columns) == {"loss"}
    np.testing.assert_allclose(columns["loss"], each(model), rtol=2e-3)
    assert run.info["examples"]["kind"] == "loss"


def test_the_weights_are_those_of_the_loop_alone(tmp_path: Path) -> None:
    loss_fn = nn.CrossEntropyLoss()

    class Alone:
        def __init__(self, *_: Any) -> None:
            pass

        def __enter__(self) -> Any:
            return lambda loss, rows: None

        def __exit__(self, *_: object) -> None:
            pass

    torch.manual_seed(0)
    seen, alone = (plain_mlp() for _ in range(2))
    alone.load_state_dict(seen.state_dict())
    watched(tmp_path, loss_fn, seen, lr=0.1)
    loop(Alone, loss_fn, alone, lr=0.1)
    for name, value in alone.state_dict().items():
        assert torch.equal(value, seen.state_dict()[name]), name


def test_a_loop_that_does_not_say_whose_loss_it_is(tmp_path: Path) -> None:
    run = watched(tmp_path, nn.CrossEntropyLoss(), plain_mlp(), rows_known=False)
    assert len(run.examples) == 0
    assert not (run.folder / "examples").exists()


def simple(tmp_path: Path) -> tuple[nn.Module, Any]:
    model = nn.Linear(6, 1)
    run = fogline.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), runs=tmp_path)
    return model, run


def losses_of(count: int) -> Tensor:
    return torch.arange(float(count))


def test_epochs_are_told_apart_and_files_have_one_length(tmp_path: Path) -> None:
    _, run = simple(tmp_path)
    for rows in ([0, 1], [2, 3], [4, 1], [9, 0]):
        run.log(losses_of(2), examples=rows)
    run.log(losses_of(2), examples=np.array([0, 1]), epoch=5)
    run.log(losses_of(2), examples=torch.tensor([0, 1]), epoch=5)  # with replacement: no other epoch
    with pytest.warns(UserWarning, match="no step was seen"):
        run.close()
    assert [path.name for path in files(run.folder)] == [f"epoch-000{k}.safetensors" for k in (0, 1, 5)]
    seen = [np.flatnonzero(np.isfinite(read(path)["loss"])).tolist() for path in files(run.folder)]  # type: ignore[index]
    assert seen == [[0, 1, 2, 3], [0, 1, 4, 9], [0, 1]]
    assert {len(read(path)["loss"]) for path in files(run.folder)} == {10}  # type: ignore[index]
    assert len(run.examples) == run.info["examples"]["count"] == 10


@pytest.mark.parametrize(
    ("loss", "examples", "error", "words"),
    [
        (torch.tensor(1.0), [0, 1], ValueError, "the loss of each example"),
        (torch.ones(3), [0, 1], ValueError, "received 2 for 3 rows"),
        (torch.ones(2), [0.0, 1.0], TypeError, "whole number"),
        (torch.ones(2), [0, -1], ValueError, "from 0 on"),
    ],
)
def test_mistakes_are_named(loss: Tensor, examples: Any, error: type[Exception], words: str, tmp_path: Path) -> None:
    _, run = simple(tmp_path)
    with pytest.raises(error, match=words):
        run.log(loss, examples=examples)
    with pytest.warns(UserWarning, match="no step was seen"):
        run.close()


def test_a_folder_that_cannot_be_written_ends_the_recording_and_not_the_loop(tmp_path: Path) -> None:
    _, run = simple(tmp_path)
    (run.folder / "examples").write_text("no folder")
    run.log(losses_of(2), examples=[0, 1])
    run.log(losses_of(2), examples=[0, 1])
    with pytest.warns(UserWarning, match="no step was seen"), pytest.warns(RuntimeWarning, match="no longer recorded"):
        run.close()


def test_losses_from_beside_the_training_are_of_no_step(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with fogline.watch(model, optimizer, runs=tmp_path) as run:
        for epoch in range(2):
            loss = model(torch.ones(3, 2)).square().mean()
            loss.backward()
            optimizer.step()
            run.log(loss)
            run.log_examples(torch.tensor([1.0, 2.0]), [1, 0], epoch)
            run.log_examples(torch.tensor([3.0 + epoch]), [2], epoch)
    assert run.examples["loss"].tolist() == pytest.approx([2.0, 1.0, 3.5])
    assert run.steps["loss"].max() < 10
    assert len(run.steps) == 2
