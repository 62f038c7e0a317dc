"""The Keras callback, driven by a model and an optimizer that call what those of Keras call."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fogline.verdict import Verdict

ROWS, BATCH, EPOCHS = 32, 8, 2

pytestmark = pytest.mark.parametrize("plugin", ["keras"], indirect=True)


class Momentum:
    """An optimizer that is none of PyTorch's."""

    def __init__(self, accumulated: int | None = None) -> None:
        self.learning_rate, self.iterations, self.gradient_accumulation_steps = 0.05, 0, accumulated
        self.applied = 0

    def apply(self, gradients: list[Tensor], variables: Any = None) -> None:
        self.applied += 1
        with torch.no_grad():
            for gradient, variable in zip(gradients, variables, strict=True):
                variable.value -= self.learning_rate * gradient


class Model:
    """One layer with the variables, losses and steps of a Keras model."""

    jit_compile = False

    def __init__(self, accumulated: int | None = None) -> None:
        torch.manual_seed(0)
        names = {"model/dense/kernel": torch.randn(4, 1), "model/dense/bias": torch.zeros(1)}
        self.trainable_weights = [SimpleNamespace(path=k, value=nn.Parameter(v)) for k, v in names.items()]
        self.optimizer, self.stop_training = Momentum(accumulated), False
        self.seen: list[float] = []

    def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, training: bool = True) -> Tensor:
        loss: Tensor = (y_pred - y).square().mean()
        return loss

    def fit(self, callback: Any, fail_at: int = -1) -> None:
        callback.model = self
        x = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(0))
        callback.on_train_begin()
        for epoch in range(EPOCHS):
            for index, rows in enumerate(torch.arange(ROWS).split(BATCH)):
                if len(self.seen) == fail_at:
                    raise RuntimeError("the disk is full")
                kernel, bias = (variable.value for variable in self.trainable_weights)
                y_pred = x[rows] @ kernel + bias
                kernel.grad = bias.grad = None
                loss = self.compute_loss(x=x[rows], y=x[rows].sum(dim=1, keepdim=True), y_pred=y_pred, training=True)
                loss.backward()
                with torch.no_grad():
                    self.optimizer.apply([kernel.grad, bias.grad], self.trainable_weights)
                self.seen.append(loss.item())
                callback.on_train_batch_end(index, {"loss": loss.item()})
            callback.on_epoch_end(epoch, {"loss": 0.0, "val_loss": 1.0 / (epoch + 1)})
        callback.on_train_end({})


def test_steps_and_scores_are_recorded(plugin: ModuleType) -> None:
    model, callback = Model(), plugin.FoglineCallback()
    model.fit(callback)
    run = callback.run
    assert run.steps["loss"].tolist() == pytest.approx(model.seen)
    assert run.steps["examples"].tolist() == [k * BATCH for k in range(len(model.seen))]
    assert run.steps["lr"].tolist() == pytest.approx([0.05] * len(model.seen))
    assert [(row["step"], row["name"], row["value"]) for row in run.scores] == [(3, "loss", 1.0), (7, "loss", 0.5)]
    assert run.info["task"]["model"] == "Model"
    assert run.info["mechanics"]["optimizer"] == "Momentum"
    assert len(run.findings) == 0
    assert "apply" not in vars(model.optimizer)
    assert "compute_loss" not in vars(model)


def test_accumulated_batches_make_one_step(plugin: ModuleType) -> None:
    model, callback = Model(accumulated=2), plugin.FoglineCallback()
    model.fit(callback)
    assert len(callback.run.steps) == len(model.seen) // 2
    assert model.optimizer.applied == len(model.seen)


def test_an_exception_ends_the_run(plugin: ModuleType) -> None:
    model = Model()
    with pytest.raises(RuntimeError, match="the disk is full"), plugin.FoglineCallback() as callback:
        model.fit(callback, fail_at=3)
    assert callback.run.verdict is Verdict.INTERRUPTED
    assert len(callback.run.steps) == 3
    assert "apply" not in vars(model.optimizer)


def test_a_compiled_step_and_another_backend_are_refused(plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    model.jit_compile = True
    with pytest.raises(ValueError, match="jit_compile=False"):
        model.fit(plugin.FoglineCallback())
    monkeypatch.setattr(plugin.keras.backend, "backend", lambda: "jax")
    with pytest.raises(ValueError, match="KERAS_BACKEND=torch"):
        model.fit(plugin.FoglineCallback())
