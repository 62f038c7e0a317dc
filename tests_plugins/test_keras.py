"""The callback in Keras 3 on the torch backend."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from fogline.plugins.keras import FoglineCallback
from fogline.verdict import Verdict

ROWS, BATCH, EPOCHS = 96, 16, 3
X = np.random.default_rng(0).normal(size=(ROWS, 6)).astype("float32")
Y = X[:, :3].argmax(axis=1)


def made(**given: Any) -> Any:
    """A small classifier, the same at every call."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(16, activation="relu"), keras.layers.Dropout(0.1), keras.layers.Dense(3)]
    model = keras.Sequential([keras.layers.Input((6,)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(**{"optimizer": keras.optimizers.SGD(0.1), "loss": loss, "metrics": ["accuracy"]} | given)
    return model


def fitted(model: Any, *callbacks: Any, **given: Any) -> Any:
    quiet = {"batch_size": BATCH, "epochs": EPOCHS, "verbose": 0, "validation_data": (X[:32], Y[:32])}
    return model.fit(X, Y, callbacks=list(callbacks), **quiet | given)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "RMSprop", "Lion"])
def test_weights_are_bitwise_what_they_are_without_it(optimizer: str) -> None:
    plain, watched = (made(optimizer=getattr(keras.optimizers, optimizer)(0.01)) for _ in range(2))
    for model, callbacks in ((plain, []), (watched, [FoglineCallback()])):
        keras.utils.set_random_seed(1)
        fitted(model, *callbacks)
    assert all(np.array_equal(a, b) for a, b in zip(plain.get_weights(), watched.get_weights(), strict=True))


def test_the_losses_of_an_epoch_have_the_mean_that_keras_reports() -> None:
    callback = FoglineCallback()
    told = fitted(made(), callback).history
    by_epoch = callback.run.steps["loss"].reshape(EPOCHS, -1).mean(axis=1)
    assert by_epoch.tolist() == pytest.approx(told["loss"], rel=1e-5)
    assert callback.run.steps["examples"][-1] == EPOCHS * ROWS - BATCH
    assert callback.run.steps["lr"].tolist() == pytest.approx([0.1] * (EPOCHS * ROWS // BATCH))
    scores = {row["name"]: row["value"] for row in callback.run.scores}
    assert scores == pytest.approx({"loss": told["val_loss"][-1], "accuracy": told["val_accuracy"][-1]})


def test_a_schedule_of_keras_is_read_at_every_step() -> None:
    rate = keras.optimizers.schedules.ExponentialDecay(0.1, decay_steps=1, decay_rate=0.9)
    callback = FoglineCallback()
    fitted(made(optimizer=keras.optimizers.SGD(rate)), callback)
    assert callback.run.steps["lr"].tolist() == pytest.approx([0.1 * 0.9**k for k in range(18)], rel=1e-4)


def test_accumulated_batches_make_one_step() -> None:
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    callback = FoglineCallback()
    fitted(made(optimizer=optimizer), callback)
    assert len(callback.run.steps) == EPOCHS * ROWS // BATCH // 2
    assert np.isfinite(callback.run.steps["loss"]).all()


def test_the_layers_have_the_names_that_keras_gives_them() -> None:
    callback = FoglineCallback()
    model = made()
    fitted(model, callback, epochs=20)
    assert set(callback.run.layers["layer"]) == {w.path.rpartition("/")[0] for w in model.trainable_weights}
    assert callback.run.model is model
    assert callback.run.info["task"]["model"] == "Sequential"
    assert callback.run.recipe.optimizer.__name__ == "SGD"


def test_an_exception_ends_the_run_as_interrupted_and_leaves_the_model_as_it_was() -> None:
    class Failing(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == 3:
                raise RuntimeError("the disk is full")

    model = made()
    with pytest.raises(RuntimeError, match="the disk is full"), FoglineCallback() as callback:
        fitted(model, callback, Failing())
    assert callback.run.verdict is Verdict.INTERRUPTED
    assert len(callback.run.steps) == 4
    assert "compute_loss" not in vars(model)
    assert "apply" not in vars(model.optimizer)


def test_a_stop_that_was_asked_for_ends_the_training() -> None:
    class Asking(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            (callback.run.folder / "stop").touch()

    callback = FoglineCallback()
    told = fitted(made(), callback, Asking(), epochs=5000)
    assert len(told.epoch) < 5000  # it is looked for a few times a second


def test_a_compiled_step_is_refused() -> None:
    with pytest.raises(ValueError, match="jit_compile=False"):
        fitted(made(jit_compile=True), FoglineCallback())
