"""The problems of the overhead benchmark in JAX: one jitted step a call, and whole epochs in one ``lax.scan``.

Data, permutation and position live on the device and in the carried state, which is donated: nothing crosses the border
between Python and XLA but the call itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

import timing
from overhead_parts.problems import VOCABULARY, Problem

HEADS = 4


def _modules() -> tuple[Any, Any]:
    import jax
    import jax.numpy as jnp

    # Measured: handing a step of microseconds to another thread costs more than the step.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    return jax, jnp


def _dense(jax: Any, key: Any, inputs: int, outputs: int) -> dict[str, Any]:
    bound = inputs**-0.5
    first, second = jax.random.split(key)
    return {
        "w": jax.random.uniform(first, (inputs, outputs), minval=-bound, maxval=bound),
        "b": jax.random.uniform(second, (outputs,), minval=-bound, maxval=bound),
    }


def _cross_entropy(jax: Any, jnp: Any, logits: Any, labels: Any) -> Any:
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)
    return -chosen.mean()


def _linear(jax: Any, jnp: Any) -> tuple[Any, Callable[..., Any]]:
    def loss(p: Any, x: Any, y: Any) -> Any:
        return jnp.square(x @ p["w"] + p["b"] - y).mean()

    return _dense(jax, jax.random.key(0), 20, 1), loss


def _mlp(jax: Any, jnp: Any) -> tuple[Any, Callable[..., Any]]:
    sizes = (64, 128, 128, 10)
    keys = jax.random.split(jax.random.key(0), 3)
    parameters = [_dense(jax, key, a, b) for key, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)]

    def loss(p: Any, x: Any, y: Any) -> Any:
        for layer in p[:-1]:
            x = jax.nn.relu(x @ layer["w"] + layer["b"])
        return _cross_entropy(jax, jnp, x @ p[-1]["w"] + p[-1]["b"], y)

    return parameters, loss


def _cnn(jax: Any, jnp: Any) -> tuple[Any, Callable[..., Any]]:
    keys = jax.random.split(jax.random.key(0), 3)

    def kernel(key: Any, inputs: int, outputs: int) -> dict[str, Any]:
        dense = _dense(jax, key, 9 * inputs, outputs)
        return {"w": dense["w"].reshape(3, 3, inputs, outputs), "b": dense["b"]}

    def convolve(layer: Any, x: Any) -> Any:
        x = jax.lax.conv_general_dilated(x, layer["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jax.nn.relu(x + layer["b"])
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    def loss(p: Any, x: Any, y: Any) -> Any:
        hidden = convolve(p["second"], convolve(p["first"], x))
        return _cross_entropy(jax, jnp, hidden.reshape(len(x), -1) @ p["head"]["w"] + p["head"]["b"], y)

    parameters = {
        "first": kernel(keys[0], 1, 16),
        "second": kernel(keys[1], 16, 32),
        "head": _dense(jax, keys[2], 1568, 10),
    }
    return parameters, loss


def _transformer(jax: Any, jnp: Any, width: int = 128, length: int = 64) -> tuple[Any, Callable[..., Any]]:
    keys = iter(jax.random.split(jax.random.key(0), 16))

    def norm() -> dict[str, Any]:
        return {"w": jnp.ones(width), "b": jnp.zeros(width)}

    def block() -> dict[str, Any]:
        return {
            "norm_attention": norm(), "norm_mlp": norm(), "qkv": _dense(jax, next(keys), width, 3 * width),
            "out": _dense(jax, next(keys), width, width), "up": _dense(jax, next(keys), width, 4 * width),
            "down": _dense(jax, next(keys), 4 * width, width),
        }  # fmt: skip

    parameters = {
        "tokens": jax.random.normal(next(keys), (VOCABULARY, width)),
        "positions": jax.random.normal(next(keys), (length, width)),
        "blocks": [block(), block()],
        "norm": norm(),
        "head": _dense(jax, next(keys), width, VOCABULARY),
    }
    mask = jnp.tril(jnp.ones((length, length), dtype=bool))

    def normalise(layer: Any, x: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5) * layer["w"] + layer["b"]

    def dense(layer: Any, x: Any) -> Any:
        return x @ layer["w"] + layer["b"]

    def apply(p: Any, x: Any) -> Any:
        batch = x.shape[0]
        qkv = dense(p["qkv"], normalise(p["norm_attention"], x)).reshape(batch, length, 3, HEADS, width // HEADS)
        query, key, value = jnp.moveaxis(qkv, 2, 0)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * (width // HEADS) ** -0.5
        weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf))
        x = x + dense(p["out"], jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(batch, length, width))
        return x + dense(p["down"], jax.nn.gelu(dense(p["up"], normalise(p["norm_mlp"], x)), approximate=False))

    def loss(p: Any, x: Any, y: Any) -> Any:
        hidden = p["tokens"][x] + p["positions"]
        for layer in p["blocks"]:
            hidden = apply(layer, hidden)
        return _cross_entropy(jax, jnp, dense(p["head"], normalise(p["norm"], hidden)), y)

    return parameters, loss


MODELS = {"linear": _linear, "mlp": _mlp, "cnn": _cnn, "transformer": _transformer}


def _updates(jax: Any, jnp: Any, problem: Problem) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """(initial optimizer state, update) of PyTorch's SGD, SGD with momentum or AdamW."""
    lr, tree = problem.lr, jax.tree.map

    def adamw(p: Any, gradient: Any, state: Any) -> Any:
        count = state["count"] + 1
        first = tree(lambda m, g: 0.9 * m + 0.1 * g, state["first"], gradient)
        second = tree(lambda v, g: 0.999 * v + 0.001 * g * g, state["second"], gradient)
        scale, correction = lr / (1 - 0.9**count), jnp.sqrt(1 - 0.999**count)

        def update(w: Any, m: Any, v: Any) -> Any:
            return w * (1 - lr * 0.01) - scale * m / (jnp.sqrt(v) / correction + 1e-8)

        return tree(update, p, first, second), {"count": count, "first": first, "second": second}

    def momentum(p: Any, gradient: Any, state: Any) -> Any:
        velocity = tree(lambda v, g: 0.9 * v + g, state, gradient)
        return tree(lambda w, v: w - lr * v, p, velocity), velocity

    def sgd(p: Any, gradient: Any, state: Any) -> Any:
        return tree(lambda w, g: w - lr * g, p, gradient), state

    def zeros(p: Any) -> Any:
        return tree(jnp.zeros_like, p)

    return {
        "adamw": (lambda p: {"count": jnp.float32(0), "first": zeros(p), "second": zeros(p)}, adamw),
        "momentum": (zeros, momentum),
        "sgd": (lambda p: (), sgd),
    }[problem.optimizer]


class _Program:
    """The state and the step shared by the two contenders."""

    def __init__(self, problem: Problem) -> None:
        jax, jnp = self.jax, self.jnp = _modules()
        self.steps_per_epoch, size = problem.steps_per_epoch, problem.batch_size
        inputs = problem.inputs.numpy()
        if problem.name == "cnn":
            inputs = inputs.transpose(0, 2, 3, 1)
        self.data = (jnp.asarray(inputs), jnp.asarray(problem.targets.numpy().astype(_index_type(problem))))
        parameters, loss = MODELS[problem.name](jax, jnp)
        initial, update = _updates(jax, jnp, problem)
        # A copy, since donated buffers must not be shared (zeros may be).
        self.state = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), (parameters, initial(parameters)))

        def step(state: Any, x: Any, y: Any) -> Any:
            value, gradient = jax.value_and_grad(loss)(state[0], x, y)
            return update(state[0], gradient, state[1]), value

        self.step = step
        self._shape = (self.steps_per_epoch, size)
        self._generator = np.random.default_rng(0)

    def order(self) -> Any:
        """A permutation of the rows, (steps, batch); NumPy's is some 30 times faster than XLA's sort on a CPU."""
        rows = self._shape[0] * self._shape[1]
        return self._generator.permutation(np.arange(rows, dtype=np.int32)).reshape(self._shape)


def _index_type(problem: Problem) -> str:
    return "float32" if problem.targets.is_floating_point() else "int32"


def jit(problem: Problem) -> timing.Contender:
    """One call a step."""
    begin = time.perf_counter()
    program = _Program(problem)
    jax, jnp = program.jax, program.jnp

    def one(state: Any, position: Any, data: Any, order: Any) -> Any:
        index = order[position]
        state, _ = program.step(state, data[0][index], data[1][index])
        return state, position + 1

    call = jax.jit(one, donate_argnums=(0, 1))
    state, position, order = program.state, jnp.int32(0), jnp.asarray(program.order())
    done = 0

    def run(steps: int) -> int:
        nonlocal state, position, order, done
        for _ in range(steps):
            if done == program.steps_per_epoch:
                order, position, done = jnp.asarray(program.order()), jnp.int32(0), 0
            state, position = call(state, position, program.data, order)
            done += 1
        jax.block_until_ready(state)
        return steps

    run(1)
    return timing.Contender(run, setup_seconds=time.perf_counter() - begin)


def scan(problem: Problem) -> timing.Contender:
    """One call an epoch (two steps where a step takes milliseconds), its rows gathered in one go."""
    begin = time.perf_counter()
    program = _Program(problem)
    jax = program.jax

    chunk = program.steps_per_epoch if problem.name in ("linear", "mlp") else 2

    def many(state: Any, data: Any, order: Any) -> Any:
        gathered = jax.tree.map(lambda array: array[order], data)
        return jax.lax.scan(lambda carried, batch: program.step(carried, *batch), state, gathered)

    call = jax.jit(many, donate_argnums=0)
    state = program.state

    def run(steps: int) -> int:
        nonlocal state
        left = steps
        while left > 0:
            for order in program.order().reshape(-1, chunk, problem.batch_size)[: left // chunk]:
                state, _losses = call(state, program.data, order)
                left -= chunk
        jax.block_until_ready(state)
        return steps

    run(chunk)
    return timing.Contender(run, quantum=chunk, setup_seconds=time.perf_counter() - begin)
