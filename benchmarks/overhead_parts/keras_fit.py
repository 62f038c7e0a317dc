"""Keras on the problems of the overhead benchmark; a process has one Keras backend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import timing
from overhead_parts.problems import BATCHES, VOCABULARY, Problem
from overhead_parts.trainers import FOREVER, Tick, make_torchvision_importable, parked


def _linear(keras: Any) -> Any:
    return keras.Sequential([keras.Input((20,)), keras.layers.Dense(1)])


def _mlp(keras: Any) -> Any:
    dense = keras.layers.Dense
    return keras.Sequential([keras.Input((64,)), dense(128, "relu"), dense(128, "relu"), dense(10)])


def _cnn(keras: Any) -> Any:
    layers = keras.layers
    shape = (1, 28, 28) if keras.config.image_data_format() == "channels_first" else (28, 28, 1)
    convolutions = [
        layer
        for channels in (16, 32)
        for layer in (layers.Conv2D(channels, 3, padding="same", activation="relu"), layers.MaxPooling2D(2))
    ]
    return keras.Sequential([keras.Input(shape), *convolutions, layers.Flatten(), layers.Dense(10)])


def _transformer(keras: Any, width: int = 128, length: int = 64, heads: int = 4) -> Any:
    layers = keras.layers

    class Positions(layers.Layer):  # type: ignore[misc]
        def build(self, shape: Any) -> None:
            self.table = self.add_weight(shape=shape[1:], initializer="normal")

        def call(self, x: Any) -> Any:
            return x + self.table

    tokens = keras.Input((length,), dtype="int32")
    x = Positions()(layers.Embedding(VOCABULARY, width)(tokens))
    for _ in range(2):
        normal = layers.LayerNormalization(epsilon=1e-5)(x)
        x = x + layers.MultiHeadAttention(heads, width // heads)(normal, normal, use_causal_mask=True)
        hidden = layers.Dense(4 * width, "gelu")(layers.LayerNormalization(epsilon=1e-5)(x))
        x = x + layers.Dense(width)(hidden)
    return keras.Model(tokens, layers.Dense(VOCABULARY)(layers.LayerNormalization(epsilon=1e-5)(x)))


MODELS = {"linear": _linear, "mlp": _mlp, "cnn": _cnn, "transformer": _transformer}


def fit(problem: Problem) -> timing.Contender:
    """``Model.fit`` on sliced batches, compiled by XLA where the backend does that by default."""
    make_torchvision_importable()
    import keras

    jax = keras.backend.backend() == "jax"
    if jax:
        import jax as backend

        backend.config.update("jax_cpu_enable_async_dispatch", False)
    keras.config.set_image_data_format("channels_last" if jax else "channels_first")

    class Ticking(keras.callbacks.Callback):
        def __init__(self, tick: Tick) -> None:
            super().__init__()
            self.tick = tick

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.tick()

    def batches() -> Iterator[tuple[Any, Any]]:
        for inputs, targets in BATCHES["rows gathered by epoch"](problem):
            if jax and problem.name == "cnn":
                inputs = inputs.permute(0, 2, 3, 1)
            yield (inputs.numpy(), targets.numpy()) if jax else (inputs, targets)

    def train(tick: Tick) -> None:
        keras.utils.set_random_seed(0)
        model = MODELS[problem.name](keras)
        optimizer = {
            "sgd": lambda: keras.optimizers.SGD(problem.lr),
            "momentum": lambda: keras.optimizers.SGD(problem.lr, momentum=0.9),
            "adamw": lambda: keras.optimizers.AdamW(problem.lr, weight_decay=0.01, epsilon=1e-8),
        }[problem.optimizer]()
        loss = "mse" if problem.name == "linear" else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss)
        model.fit(batches(), steps_per_epoch=1000, epochs=FOREVER, verbose=0, callbacks=[Ticking(tick)])

    return parked(train)
