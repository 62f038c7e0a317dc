"""The Lightning callback, driven by a trainer that calls what Lightning's calls, in its order."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fogline.verdict import Verdict

ROWS, BATCH = 32, 8

pytestmark = pytest.mark.parametrize("plugin", ["lightning"], indirect=True)


def loader() -> DataLoader[Any]:
    x = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, x[:, :2].argmax(dim=1)), batch_size=BATCH, shuffle=True)


def made(plugin: ModuleType) -> Any:
    """A module of two parts, whose own forward is never called."""
    torch.manual_seed(0)
    found = plugin.pytorch.LightningModule()
    found.encoder, found.head, found.loss = nn.Linear(4, 8), nn.Linear(8, 2), nn.CrossEntropyLoss()
    return found


def stepped(module: Any, batch: Any) -> Tensor:
    loss: Tensor = module.loss(module.head(module.encoder(batch[0]).relu()), batch[1])
    return loss


def train(callback: Any, module: Any, data: Any, *, accumulated: int = 1, epochs: int = 2, fail_at: int = -1) -> Any:
    """The order of Lightning's loop, the step within a closure as there."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    trainer = SimpleNamespace(
        is_global_zero=True, optimizers=[optimizer], lr_scheduler_configs=[], global_step=0, should_stop=False,
        accumulate_grad_batches=accumulated, callback_metrics={}, sanity_checking=False, seen=[],
    )  # fmt: skip
    callback.on_train_start(trainer, module)
    taken = 0
    for _ in range(epochs):
        for index, batch in enumerate(data):
            callback.on_train_batch_start(trainer, module, batch, index)

            def closure(batch: Any = batch, taken: int = taken) -> Tensor:
                loss = stepped(module, batch) / accumulated
                if taken % accumulated == 0:
                    optimizer.zero_grad()
                loss.backward()
                trainer.output = loss.detach()
                return loss

            if taken == fail_at:
                error = RuntimeError("the disk is full")
                callback.on_exception(trainer, module, error)
                return trainer
            if (taken + 1) % accumulated:
                closure()
            else:
                optimizer.step(closure)
            taken += 1
            trainer.seen.append(float(trainer.output) * accumulated)
            callback.on_train_batch_end(trainer, module, {"loss": trainer.output}, batch, index)
        trainer.callback_metrics |= {"train_loss": trainer.output}
        callback.on_validation_start(trainer, module)
        trainer.callback_metrics |= {"val_loss": torch.tensor(1.0 / taken), "val_accuracy": torch.tensor(0.5)}
        callback.on_validation_end(trainer, module)
    callback.on_train_end(trainer, module)
    callback.teardown(trainer, module, "fit")
    return trainer


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_step_has_the_mean_loss_of_its_batches(plugin: ModuleType, accumulated: int) -> None:
    callback = plugin.FoglineCallback()
    trainer = train(callback, made(plugin), loader(), accumulated=accumulated)
    parts = [trainer.seen[k : k + accumulated] for k in range(0, len(trainer.seen), accumulated)]
    assert callback.run.steps["loss"].tolist() == pytest.approx([sum(part) / len(part) for part in parts])
    assert callback.run.steps["examples"].tolist() == [k * BATCH * accumulated for k in range(len(parts))]
    assert len(callback.run.findings) == 0


def test_only_what_validation_logs_is_a_score(plugin: ModuleType) -> None:
    callback = plugin.FoglineCallback()
    train(callback, made(plugin), loader())
    assert [(row["step"], row["name"], row["value"]) for row in callback.run.scores] == [
        (3, "accuracy", 0.5), (3, "loss", 0.25), (7, "accuracy", 0.5), (7, "loss", 0.125),
    ]  # fmt: skip


def test_numbered_examples_are_recorded(plugin: ModuleType) -> None:
    callback, data = plugin.FoglineCallback(), loader()
    assert callback.numbered(data) is data
    train(callback, made(plugin), data)
    table = callback.run.examples
    assert table["epochs"].tolist() == [2] * ROWS
    assert table["target"].tolist() == data.dataset.tensors[1].tolist()  # type: ignore[attr-defined]


def test_an_exception_ends_the_run(plugin: ModuleType) -> None:
    callback = plugin.FoglineCallback()
    train(callback, made(plugin), loader(), fail_at=3)
    assert callback.run.verdict is Verdict.INTERRUPTED
    assert any("the disk is full" in event["message"] for event in callback.run.events)


def test_a_second_fit_has_a_run_of_its_own(plugin: ModuleType) -> None:
    callback = plugin.FoglineCallback(name="fit")
    with pytest.raises(ValueError, match="train first"):
        _ = callback.run
    for _ in range(2):
        train(callback, made(plugin), loader())
    assert [run.name for run in callback.runs] == ["fit", "fit-2"]


def test_what_watching_left_open_is_closed_by_the_next_training(plugin: ModuleType) -> None:
    callback, module = plugin.FoglineCallback(), made(plugin)
    trainer = SimpleNamespace(
        is_global_zero=True, optimizers=[torch.optim.SGD(module.parameters())], lr_scheduler_configs=[], global_step=7
    )
    callback.on_train_start(trainer, module)
    callback.on_train_start(trainer, module)
    first, second = callback.runs
    assert first.verdict is Verdict.INTERRUPTED
    with pytest.warns(UserWarning, match="no step was seen"):
        callback.teardown(trainer, module, "fit")
    assert any("its step 7" in event["message"] for event in second.events)


def test_only_the_main_process_records(plugin: ModuleType) -> None:
    callback, module = plugin.FoglineCallback(), made(plugin)
    trainer = SimpleNamespace(is_global_zero=False, should_stop=False)
    callback.on_train_start(trainer, module)
    callback.on_train_batch_start(trainer, module, None, 0)
    callback.on_train_batch_end(trainer, module, {"loss": torch.tensor(1.0)}, None, 0)
    callback.on_train_end(trainer, module)
    assert callback.runs == []
    assert trainer.should_stop is False


@pytest.mark.parametrize("form", ["optimizer", "dict", "lists", "tuple"])
def test_the_rate_reads_every_form_of_configured_optimizers(plugin: ModuleType, form: str) -> None:
    module, data = made(plugin), loader()
    optimizer = torch.optim.AdamW(
        [{"params": module.encoder.parameters()}, {"params": module.head.parameters(), "lr": 0.3}], lr=0.1
    )
    forms = {
        "optimizer": optimizer,
        "dict": {"optimizer": optimizer},
        "lists": ([optimizer], []),
        "tuple": (optimizer,),
    }
    module.configure_optimizers = lambda: forms[form]
    module.training_step = lambda batch: stepped(module, batch)
    trainer = SimpleNamespace(
        accumulate_grad_batches=1, max_steps=-1, max_epochs=5, gradient_clip_val=None, precision="32-true"
    )
    recipe = plugin._recipe(trainer, module, {})
    assert (recipe.optimizer, recipe.duration, recipe.precision) == ("adamw", "5ep", "float32")
    assert recipe.lr_scale == pytest.approx({"head.weight": 3.0, "head.bias": 3.0})
    assert recipe.schedule == "constant"
    assert plugin._loaders(module, data, None, None) == (data, None)


def test_several_optimizers_are_no_optimizer_to_measure(plugin: ModuleType) -> None:
    module = made(plugin)
    module.configure_optimizers = lambda: [torch.optim.SGD(module.parameters(), lr=0.1) for _ in range(2)]
    with pytest.raises(TypeError, match="optimizer='adamw'"):
        plugin._optimizer(module)
