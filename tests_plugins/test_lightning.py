"""The callback and the learning rate finder in Lightning's own Trainer."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fogline.plugins.lightning import FoglineCallback, find_lr
from fogline.verdict import Verdict

ROWS, BATCH = 96, 16


def data(seed: int = 0) -> TensorDataset:
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, 6, generator=draws)
    return TensorDataset(x, x[:, :3].argmax(dim=1), torch.arange(ROWS))


def loader(shuffle: bool = True) -> DataLoader[Any]:
    return DataLoader(data(), batch_size=BATCH, shuffle=shuffle)


class Classifier(pl.LightningModule):
    """Two parts that are called one after the other: the module's own forward is never called."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.lr = lr
        self.encoder = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(16, 3)
        self.loss = nn.CrossEntropyLoss()

    def outputs(self, batch: Any) -> Tensor:
        found: Tensor = self.head(self.encoder(batch[0]))
        return found

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = self.loss(self.outputs(batch), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        outputs = self.outputs(batch)
        self.log_dict({
            "val_loss": self.loss(outputs, batch[1]),
            "val_accuracy": (outputs.argmax(1) == batch[1]).float().mean(),
        })  # fmt: skip

    def configure_optimizers(self) -> Any:
        groups = [{"params": self.encoder.parameters()}, {"params": self.head.parameters(), "lr": 3 * self.lr}]
        optimizer = torch.optim.SGD(groups, lr=self.lr, momentum=0.9)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2)}


def trainer(callback: FoglineCallback | None = None, **given: Any) -> pl.Trainer:
    options = {"max_epochs": 3, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return pl.Trainer(callbacks=[] if callback is None else [callback], **options | quiet | given)


def fitted(module: pl.LightningModule, callback: FoglineCallback | None = None, **given: Any) -> pl.LightningModule:
    torch.manual_seed(1)
    found = loader()
    trainer(callback, **given).fit(module, found if callback is None else callback.numbered(found), loader(False))
    return module


def made(kind: type[pl.LightningModule] = Classifier) -> pl.LightningModule:
    torch.manual_seed(0)
    return kind()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_weights_are_bitwise_what_they_are_without_it(accumulated: int, precision: Any) -> None:
    given = {"accumulate_grad_batches": accumulated, "precision": precision}
    plain, watched = fitted(made(), **given), fitted(made(), FoglineCallback(), **given)
    for a, b in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("accumulated", [1, 2, 4])
def test_steps_and_losses_are_the_trainers_own(accumulated: int) -> None:
    seen: list[float] = []

    class Telling(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            seen.append(loss.item())
            return loss

    callback = FoglineCallback()
    fitted(made(Telling), callback, accumulate_grad_batches=accumulated)
    per_epoch = [seen[k : k + ROWS // BATCH] for k in range(0, len(seen), ROWS // BATCH)]
    # Lightning steps at the end of an epoch, too, on the batches that are left.
    steps = [part[k : k + accumulated] for part in per_epoch for k in range(0, len(part), accumulated)]
    assert callback.run.steps["loss"].tolist() == pytest.approx([sum(part) / len(part) for part in steps])
    assert callback.run.steps["examples"][-1] == 3 * ROWS - BATCH * len(steps[-1])
    assert len(callback.run.findings) == 0
    assert callback.run.steps["lr"][0] == pytest.approx(0.1)
    assert callback.run.steps["lr"][-1] == pytest.approx(0.01)


def test_validation_scores_lie_at_the_last_step_of_their_epoch() -> None:
    callback = FoglineCallback()
    fitted(made(), callback)
    scores = list(callback.run.scores)
    assert {row["name"] for row in scores} == {"loss", "accuracy"}
    assert sorted({row["step"] for row in scores}) == [5, 11, 17]


def test_the_sanity_check_is_no_score() -> None:
    callback = FoglineCallback()
    fitted(made(), callback, num_sanity_val_steps=2)
    assert sorted({row["step"] for row in callback.run.scores}) == [5, 11, 17]


@pytest.mark.parametrize("how", ["numbered", "place", "function"])
def test_every_example_has_its_own_number(how: str) -> None:
    examples: Any = {"numbered": None, "place": 2, "function": lambda batch: batch[2]}[how]
    callback = FoglineCallback(examples=examples)
    torch.manual_seed(1)
    given = loader()
    trainer(callback).fit(made(), callback.numbered(given) if how == "numbered" else given)
    table = callback.run.examples
    assert table["epochs"].tolist() == [3] * ROWS
    assert table["target"].tolist() == data().tensors[1].tolist()
    assert {"margin", "confidence", "gradient_norm"} <= set(table.columns)


def test_the_losses_of_a_function_are_recorded() -> None:
    class ByFunction(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            losses = nn.functional.cross_entropy(self.outputs(batch), batch[1], reduction="none")
            return {"loss": losses.mean(), "losses": losses}

    callback = FoglineCallback(examples=2, losses="losses")
    trainer(callback).fit(made(ByFunction), loader())
    assert callback.run.examples["epochs"].tolist() == [3] * ROWS
    assert callback.run.steps["loss"][-1] < callback.run.steps["loss"][0]


def test_an_exception_ends_the_run_as_interrupted() -> None:
    class Failing(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if self.global_step == 4:
                raise RuntimeError("the disk is full")
            return super().training_step(batch, batch_idx)

    callback = FoglineCallback()
    with pytest.raises(RuntimeError, match="the disk is full"):
        fitted(made(Failing), callback)
    assert callback.run.verdict is Verdict.INTERRUPTED
    assert len(callback.run.steps) == 4
    assert any("the disk is full" in event["message"] for event in callback.run.events)


def test_a_stop_that_was_asked_for_ends_the_training() -> None:
    class Stopped(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if self.global_step == 2:
                (callback.run.folder / "stop").touch()
            return super().training_step(batch, batch_idx)

    callback = FoglineCallback()
    fitted(made(Stopped), callback, max_epochs=5000)
    assert len(callback.run.steps) < 5000  # it is looked for a few times a second


def test_a_resumed_training_says_from_which_step(tmp_path: Any) -> None:
    first = trainer(FoglineCallback(), enable_checkpointing=True, default_root_dir=tmp_path, max_epochs=2)
    first.fit(made(), loader())
    first.save_checkpoint(tmp_path / "kept.ckpt")
    callback = FoglineCallback()
    trainer(callback, max_epochs=3).fit(made(), loader(), ckpt_path=tmp_path / "kept.ckpt", weights_only=False)
    assert len(callback.run.steps) == ROWS // BATCH
    assert any("its step 12" in event["message"] for event in callback.run.events)


class Adversaries(pl.LightningModule):
    """Two optimizers that take turns on each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.maker, self.judge = nn.Linear(6, 6), nn.Linear(6, 1)
        self.seen: list[tuple[float, float]] = []

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, second = self.optimizers()
        made = self.maker(batch[0])
        loss = self.judge(made).square().mean()
        first.zero_grad()
        self.manual_backward(loss)
        first.step()
        other = (self.judge(made.detach()) - 1).square().mean()
        second.zero_grad()
        self.manual_backward(other)
        second.step()
        self.seen.append((loss.item(), other.item()))

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=0.05) for part in (self.maker, self.judge)]


def test_each_of_several_optimizers_has_its_run() -> None:
    callback = FoglineCallback(name="pair")
    module = fitted(made(Adversaries), callback)
    assert [run.name for run in callback.runs] == ["pair", "pair-2"]
    for place, run in enumerate(callback.runs):
        assert run.steps["loss"].tolist() == pytest.approx([losses[place] for losses in module.seen])
        assert run.steps["examples"][-1] == 3 * ROWS - BATCH


def test_manual_accumulation_has_the_mean_of_its_losses() -> None:
    class Accumulating(Adversaries):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            loss = (self.judge(batch[0]) - 1).square().mean()
            self.manual_backward(loss)
            self.seen.append((loss.item(), 0.0))
            if batch_idx % 2:
                optimizer.step()
                optimizer.zero_grad()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.judge.parameters(), lr=0.05)

    callback = FoglineCallback()
    module = fitted(made(Accumulating), callback)
    losses = [loss for loss, _ in module.seen]
    means = [(a + b) / 2 for a, b in zip(losses[::2], losses[1::2], strict=True)]
    assert callback.run.steps["loss"].tolist() == pytest.approx(means)


def test_a_healthy_module_has_no_finding() -> None:
    callback = FoglineCallback()
    fitted(made(), callback)
    assert len(callback.run.findings) == 0


def test_training_in_evaluation_mode_is_found_at_the_line_of_the_fit() -> None:
    class Evaluating(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.eval()
            return super().training_step(batch, batch_idx)

    callback = FoglineCallback()
    fitted(made(Evaluating), callback)
    (found,) = callback.run.findings
    assert found["cause"] == "eval_mode_training"
    assert "test_lightning.py" in found["data"]


def test_a_nan_in_the_batch_is_named() -> None:
    rows = data()
    rows.tensors[0][5, 2] = torch.nan
    callback = FoglineCallback()
    trainer(callback).fit(made(), DataLoader(rows, batch_size=BATCH))
    (found,) = [row for row in callback.run.findings if row["cause"] == "nan_in_data"]
    assert '"5"' in found["data"]
    assert callback.run.verdict is Verdict.NONFINITE


def test_the_rate_keeps_the_ratio_of_the_groups_and_disturbs_nothing() -> None:
    module = made()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    rate = find_lr(trainer(max_epochs=10), module, loader(), loader(False))
    assert 0 < rate.value < 10
    assert rate.cost_steps <= 60
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    module.lr = rate.value
    fitted(module, callback := FoglineCallback())
    assert callback.run.steps["loss"][-3:].mean() < callback.run.steps["loss"][0]


def test_the_rate_takes_a_datamodule_and_batch_normalisation() -> None:
    class Convolving(Classifier):
        def __init__(self, lr: float = 0.1) -> None:
            super().__init__(lr)
            self.encoder = nn.Sequential(
                nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten()
            )

    class Module(pl.LightningDataModule):
        ready = False

        def setup(self, stage: str) -> None:
            self.ready = stage == "fit"

        def train_dataloader(self) -> DataLoader[Any]:
            assert self.ready
            return loader()

        def val_dataloader(self) -> DataLoader[Any]:
            return loader(False)

    module = made(Convolving)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    rates = [
        find_lr(trainer(), module, Module()),
        find_lr(trainer(), module, datamodule=Module()),
        find_lr(trainer(), module, loader(), loader(False)),
    ]
    assert len({rate.value for rate in rates}) == 1
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_the_rate_asks_for_one_optimizer() -> None:
    with pytest.raises(ValueError, match="automatic optimization"):
        find_lr(trainer(), made(Adversaries), loader())
