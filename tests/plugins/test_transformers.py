"""The callback for transformers' Trainer, driven by one that calls what that calls, in its order."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fogline.verdict import Verdict

ROWS, BATCH = 32, 8

pytestmark = pytest.mark.parametrize("plugin", ["transformers"], indirect=True)


class Model(nn.Module):
    """Gives a loss and logits by name, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.layer(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class FakeTrainer:
    """The order of the Trainer's loop."""

    def __init__(self, accumulated: int = 1, divides: bool = True, epochs: int = 2) -> None:
        x = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(0))
        self.rows = [{"x": row, "labels": label} for row, label in zip(x, x[:, :2].argmax(dim=1), strict=True)]
        self.model, self.epochs, self.divides = Model(), epochs, divides
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.args = SimpleNamespace(gradient_accumulation_steps=accumulated)
        self.state = SimpleNamespace(is_world_process_zero=True, global_step=0)
        self.control = SimpleNamespace(should_training_stop=False)
        self.loader = DataLoader(self.rows, batch_size=BATCH, shuffle=True)  # type: ignore[arg-type]
        self.callback: Any = None
        self.seen: list[float] = []
        self.fails_at = -1

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        loss = model(**inputs)["loss"]
        loss = loss / self.current_gradient_accumulation_steps if self.divides else loss
        loss.backward()
        return loss.detach()

    def call(self, event: str, **given: Any) -> None:
        getattr(self.callback, event)(self.args, self.state, self.control, **given)

    def train(self) -> None:
        loaded = {"model": self.model, "optimizer": self.optimizer, "train_dataloader": self.loader}
        self.call("on_train_begin", lr_scheduler=None, **loaded)
        self.current_gradient_accumulation_steps = self.args.gradient_accumulation_steps
        for _ in range(self.epochs):
            batches = list(self.loader)  # the Trainer, too, fetches batches before they are needed
            for k in range(0, len(batches), self.current_gradient_accumulation_steps):
                if self.state.global_step == self.fails_at:
                    raise OSError("the disk is gone")
                part = batches[k : k + self.current_gradient_accumulation_steps]
                self.seen.append(sum(float(self.training_step(self.model, batch)) for batch in part))
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.state.global_step += 1
                self.call("on_step_end")
            self.call("on_evaluate", metrics={"eval_loss": 1.0, "eval_runtime": 2.0, "epoch": 1.0})
        self.call("on_train_end")


def trained(plugin: ModuleType, **given: Any) -> FakeTrainer:
    trainer = FakeTrainer(**given)
    trainer.callback = plugin.FoglineCallback(trainer)
    trainer.train()
    return trainer


@pytest.mark.parametrize("divides", [True, False])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_loss_of_a_step_is_the_one_its_gradient_is_of(plugin: ModuleType, accumulated: int, divides: bool) -> None:
    trainer = trained(plugin, accumulated=accumulated, divides=divides)
    steps = trainer.callback.run.steps
    assert steps["loss"].tolist() == pytest.approx(trainer.seen)
    assert steps["examples"].tolist() == [k * BATCH * accumulated for k in range(len(trainer.seen))]


def test_losses_that_are_added_whole_are_found(plugin: ModuleType) -> None:
    whole, divided = (trained(plugin, accumulated=4, epochs=6, divides=d).callback.run for d in (False, True))
    assert list(whole.findings["cause"]) == ["accumulation_scale"]
    assert len(divided.findings) == 0
    assert any("not divided by 4" in event["message"] for event in whole.events)


def test_examples_are_recorded_by_their_place_in_the_data(plugin: ModuleType) -> None:
    trainer = trained(plugin)
    table = trainer.callback.run.examples
    assert table["epochs"].tolist() == [2] * ROWS
    assert table["target"].tolist() == [int(row["labels"]) for row in trainer.rows]


def test_an_evaluation_is_scores_without_its_times(plugin: ModuleType) -> None:
    scores = list(trained(plugin).callback.run.scores)
    assert [(row["step"], row["name"]) for row in scores] == [(3, "loss"), (7, "loss")]


def test_an_exception_outside_of_every_callback_ends_the_run(plugin: ModuleType) -> None:
    trainer = FakeTrainer()
    trainer.callback, trainer.fails_at = plugin.FoglineCallback(trainer), 3
    with pytest.raises(OSError, match="the disk is gone"):
        trainer.train()
    assert trainer.callback.run.verdict is Verdict.INTERRUPTED
    assert len(trainer.callback.run.steps) == 3


def test_a_resumed_training_records_no_examples_that_may_be_others(plugin: ModuleType) -> None:
    trainer = FakeTrainer()
    trainer.callback, trainer.state.global_step = plugin.FoglineCallback(trainer), 5
    trainer.train()
    assert len(trainer.callback.run.examples) == 0
    assert any("its step 5" in event["message"] for event in trainer.callback.run.events)


def test_a_stop_that_was_asked_for_reaches_the_trainer(plugin: ModuleType) -> None:
    trainer = FakeTrainer()
    trainer.callback = plugin.FoglineCallback(trainer, name="stopped")
    trainer.call("on_train_begin", model=trainer.model, optimizer=trainer.optimizer)
    (trainer.callback.run.folder / "stop").touch()
    trainer.call("on_step_end")
    with pytest.warns(UserWarning, match="no step was seen"):
        trainer.call("on_train_end")
    assert trainer.control.should_training_stop is True
