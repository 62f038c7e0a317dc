"""Small programs drawn at random: data, network, method and length, as people put them together; and faults in them.

Nobody chose these programs one by one. Whether one is sound, and whether a fault does any harm, is measured by
training it, not taken for granted.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]
Make = Callable[[], nn.Module]
ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.GELU, nn.LeakyReLU)


@dataclass(frozen=True)
class Drawn:
    """A program.

    Attributes:
        data, kind: of the rows; kind is "labels", "yes/no" or "numbers".
        model: makes the network.
        test: rows that neither training nor the examination sees.
        causes: what was planted, and what says the same; empty for a sound program.
    """

    data: str
    kind: str
    model: Make
    loss: Any
    train: Pair
    valid: Pair | None
    test: Pair
    recipe: dict[str, Any]
    words: str
    causes: tuple[str, ...] = ()
    also: frozenset[str] = field(default_factory=frozenset)


def _scaled(X: Any) -> Any:
    return (X - X.mean(0)) / (X.std(0) + 1e-8)


def _sine(seed: int) -> tuple[Any, Any]:
    draws = np.random.default_rng(seed)
    X = draws.uniform(-3, 3, (700, 1))
    return X, np.sin(2 * X[:, 0]) + 0.1 * draws.standard_normal(700)


def _noisy(seed: int) -> tuple[Any, Any]:
    """Labels at their noise limit: nobody gets more than three of four right."""
    draws = np.random.default_rng(seed)
    X = draws.standard_normal((1200, 5))
    return X, (draws.random(1200) < 1 / (1 + np.exp(-X[:, 0] - 0.5 * X[:, 1]))).astype(int)


_DATA: dict[str, tuple[str, Callable[[int], tuple[Any, Any]]]] = {
    "digits": ("labels", lambda _: (datasets.load_digits().data / 16, datasets.load_digits().target)),
    "wine": ("labels", lambda _: (_scaled(datasets.load_wine().data), datasets.load_wine().target)),
    "iris": ("labels", lambda _: (_scaled(datasets.load_iris().data), datasets.load_iris().target)),
    "cancer": ("yes/no", lambda _: (_scaled(datasets.load_breast_cancer().data), datasets.load_breast_cancer().target)),
    "moons": ("yes/no", lambda seed: datasets.make_moons(900, noise=0.15, random_state=seed)),
    "circles": ("labels", lambda seed: datasets.make_circles(900, noise=0.08, factor=0.5, random_state=seed)),
    "clusters": (
        "labels",
        lambda seed: datasets.make_classification(
            1500, 16, n_informative=6, n_classes=3, random_state=seed, class_sep=1.5
        ),
    ),
    "rare": (
        "yes/no",
        lambda seed: datasets.make_classification(
            1800, 12, n_informative=6, weights=[0.9], class_sep=1.5, flip_y=0, random_state=seed
        ),
    ),
    "noisy": ("yes/no", _noisy),
    "diabetes": ("numbers", lambda _: datasets.load_diabetes(return_X_y=True)),
    "friedman": ("numbers", lambda seed: datasets.make_friedman1(1000, noise=1.0, random_state=seed)),
    "linear": ("numbers", lambda seed: datasets.make_regression(600, 8, noise=10.0, random_state=seed)),
    "sine": ("numbers", _sine),
}
_LEARNABLE = tuple(name for name in _DATA if name not in ("noisy", "diabetes"))
METHODS = (
    ("adam", 1e-3), ("adam", 3e-3), ("adam", 1e-2), ("adamw", 1e-3), ("adamw", 3e-3), ("momentum", 0.01),
    ("momentum", 0.05), ("sgd", 0.1), ("rmsprop", 1e-3),
)  # fmt: skip


def draw(seed: int, names: Sequence[str] = tuple(_DATA)) -> Drawn:
    """A program that is meant to be sound."""
    dice = random.Random(seed)
    name = dice.choice(names)
    kind, rows = _DATA[name]
    X, y = rows(dice.randrange(1000))
    if name not in ("digits", "moons", "circles", "sine"):
        X = _scaled(X)
    if kind == "numbers":
        y = _scaled(y)
    inputs, targets = torch.tensor(np.asarray(X), dtype=torch.float32), torch.tensor(np.asarray(y))
    classes = int(targets.max()) + 1 if kind == "labels" else 1
    targets = targets.long() if kind == "labels" else targets.float()[:, None]
    image = name == "digits" and dice.random() < 0.5
    inputs = inputs.reshape(-1, 1, 8, 8) if image else inputs
    activation, width, depth = dice.choice(ACTIVATIONS), dice.choice([16, 32, 64, 128]), dice.choice([1, 1, 2, 3])
    norm, drop = dice.random() < 0.2, dice.choice([0.0, 0.0, 0.0, 0.2, 0.3])
    model = (
        _convolutions(activation, classes) if image else _dense(inputs, activation, width, depth, norm, drop, classes)
    )
    method, rate = dice.choice(METHODS)
    recipe = {
        "optimizer": method,
        "lr": rate,
        "batch_size": dice.choice([16, 32, 64, 128]),
        "duration": f"{dice.choice([20, 30, 50, 100])}ep",
        "schedule": dice.choice(["constant", "constant", "cosine", "linear"]),
    }
    losses = {"labels": nn.CrossEntropyLoss(), "yes/no": nn.BCEWithLogitsLoss(), "numbers": nn.MSELoss()}
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    held, other, rest = (
        order[: len(order) // 5],
        order[len(order) // 5 : 2 * len(order) // 5],
        order[2 * len(order) // 5 :],
    )
    split = dice.random() < 0.7
    learned = rest if split else torch.cat([other, rest])
    shape = (
        "convolutions" if image else f"{depth} x {width}{' normed' if norm else ''}{f' dropout {drop}' if drop else ''}"
    )
    words = f"{name}, {shape}, {activation.__name__}, {', '.join(map(str, recipe.values()))}"
    return Drawn(
        name,
        kind,
        model,
        losses[kind],
        (inputs[learned], targets[learned]),
        (inputs[other], targets[other]) if split else None,
        (inputs[held], targets[held]),
        recipe,
        words + (", own held-out rows" if split else ""),
    )


def _dense(
    inputs: Tensor, activation: type[nn.Module], width: int, depth: int, norm: bool, drop: float, outputs: int
) -> Make:
    def make() -> nn.Module:
        layers: list[nn.Module] = []
        size = inputs.shape[1]
        for _ in range(depth):
            layers += [nn.Linear(size, width), *([nn.BatchNorm1d(width)] if norm else []), activation()]
            layers += [nn.Dropout(drop)] if drop else []
            size = width
        return nn.Sequential(*layers, nn.Linear(size, outputs))

    return make


def _convolutions(activation: type[nn.Module], outputs: int) -> Make:
    return lambda: nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), activation(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), activation(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, outputs),
    )  # fmt: skip


# -- faults ------------------------------------------------------------------------------------------------------------

Plant = Callable[[Drawn, random.Random], Drawn]


def _recipe(**changes: Any) -> Plant:
    return lambda program, _: replace(program, recipe=program.recipe | changes)


def _rate(*factors: float) -> Plant:
    return lambda program, dice: replace(
        program, recipe=program.recipe | {"lr": program.recipe["lr"] * dice.choice(factors)}
    )


def _ending(*ends: Make) -> Plant:
    def plant(program: Drawn, dice: random.Random) -> Drawn:
        end, whole = dice.choice(ends), program.model
        return replace(program, model=lambda: nn.Sequential(whole(), end()))

    return plant


def _weights(change: Callable[[nn.Module], object]) -> Plant:
    def plant(program: Drawn, _: random.Random) -> Drawn:
        whole = program.model

        def make() -> nn.Module:
            model = whole()
            with torch.no_grad():
                for module in model.modules():
                    if isinstance(module, (nn.Linear, nn.Conv2d)):
                        change(module)
            return model

        return replace(program, model=make)

    return plant


def _layers(change: Callable[[list[nn.Module]], list[nn.Module]]) -> Plant:
    def plant(program: Drawn, _: random.Random) -> Drawn:
        whole = program.model
        return replace(program, model=lambda: nn.Sequential(*change(list(whole().children()))))

    return plant


def _rows(change: Callable[[Pair], Pair], *, held: bool = True, test: bool | None = None) -> Plant:
    """Other rows to learn from; where ``held``, also those held out, and the test rows unless said otherwise."""

    def plant(program: Drawn, _: random.Random) -> Drawn:
        valid = program.valid if program.valid is None or not held else change(program.valid)
        tested = change(program.test) if (held if test is None else test) else program.test
        return replace(program, train=change(program.train), valid=valid, test=tested)

    return plant


def _other_units(pair: Pair) -> Pair:
    draws = torch.Generator().manual_seed(1)
    shape = pair[0].shape[1:]
    scale = 10 ** (torch.rand(shape, generator=draws) * 3 + 0.5)
    return pair[0] * scale + 5 * scale * torch.rand(shape, generator=draws), pair[1]


def _wrong(pair: Pair) -> Pair:
    draws = torch.Generator().manual_seed(2)
    hit, y = torch.rand(len(pair[1]), generator=draws) < 0.35, pair[1].clone()
    if y.ndim == 1:
        classes = int(y.max()) + 1
        y[hit] = (y[hit] + torch.randint(1, classes, (int(hit.sum()),), generator=draws)) % classes
    else:
        y[hit] = 1 - y[hit]
    return pair[0], y


def _rare(pair: Pair) -> Pair:
    """One row of twenty-five is left of the first class."""
    first = pair[1].flatten() == 0
    kept = ~first
    kept[first.nonzero().flatten()[::25]] = True
    return pair[0][kept], pair[1][kept]


def _few(program: Drawn, dice: random.Random) -> Drawn:
    """A large network on few rows, for long."""
    X, y = program.train
    count = dice.choice([30, 50])
    recipe = program.recipe | {"optimizer": "adam", "lr": 1e-3, "batch_size": 16, "duration": "300ep"}
    classes = int(y.max()) + 1 if program.kind == "labels" else 1
    wide = _dense(X, nn.ReLU, 256, 2, False, 0.0, classes)
    return replace(program, model=wide, train=(X[:count], y[:count]), recipe=recipe)


def _deep(program: Drawn, _: random.Random) -> Drawn:
    """Sigmoids one after another, each of which lets a quarter of the gradient through at most."""
    X, y = program.train
    classes = int(y.max()) + 1 if program.kind == "labels" else 1
    return replace(program, model=_dense(X, nn.Sigmoid, 32, 8, False, 0.0, classes))


def _leaked(program: Drawn, _: random.Random) -> Drawn:
    """Half of the held-out rows are training rows, too."""
    assert program.valid is not None
    half = len(program.valid[0]) // 2
    pairs = zip(program.train, program.valid, strict=True)
    X, y = (torch.cat([learned[:half], held[half:]]) for learned, held in pairs)
    return replace(program, valid=(X, y))


def _mixed(pair: Pair) -> Pair:
    return pair[0], pair[1][torch.randperm(len(pair[1]), generator=torch.Generator().manual_seed(3))]


def _holes(pair: Pair) -> Pair:
    X = pair[0].clone()
    X[torch.rand(X.shape, generator=torch.Generator().manual_seed(4)) < 0.02] = torch.nan
    return X, pair[1]


def _sorted(program: Drawn, _: random.Random) -> Drawn:
    X, y = program.train
    order = y.flatten().argsort(stable=True)
    return replace(program, train=(X[order], y[order]), recipe=program.recipe | {"shuffle": False})


def _other_valid(program: Drawn, _: random.Random) -> Drawn:
    assert program.valid is not None
    return replace(program, valid=(program.valid[0] * 5 + 10, program.valid[1]))


def _flat_targets(program: Drawn, _: random.Random) -> Drawn:
    flat = [None if pair is None else (pair[0], pair[1][:, 0]) for pair in (program.train, program.valid, program.test)]
    return replace(program, train=flat[0], valid=flat[1], test=flat[2])


def _decay(program: Drawn, dice: random.Random) -> Drawn:
    decay = dice.choice([10.0, 100.0] if program.recipe["optimizer"] == "adamw" else [1.0, 10.0])
    return replace(program, recipe=program.recipe | {"weight_decay": decay})


def _single_softmax(program: Drawn, _: random.Random) -> Drawn:
    whole = program.model
    return replace(program, model=lambda: nn.Sequential(whole(), nn.Softmax(dim=1)), loss=nn.BCELoss())


def _summed(program: Drawn, _: random.Random) -> Drawn:
    return replace(program, loss=type(program.loss)(reduction="sum"))


def _far_targets(program: Drawn, dice: random.Random) -> Drawn:
    scale, shift = dice.choice([(500.0, 2000.0), (1e4, 0.0), (50.0, 300.0)])
    return _rows(lambda pair: (pair[0], pair[1] * scale + shift))(program, dice)


class Cut(nn.Module):
    """Passes on a copy that has forgotten where it came from."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


def _frozen(layers: list[nn.Module]) -> list[nn.Module]:
    return [layer.requires_grad_(False) for layer in layers[:-1]] + layers[-1:]


def _narrow(layers: list[nn.Module]) -> list[nn.Module]:
    last = layers[-1]
    assert isinstance(last, nn.Linear)
    return [*layers[:-1], nn.Linear(last.in_features, 1), nn.ReLU(), nn.Linear(1, last.out_features)]


def _is_dense(program: Drawn) -> bool:
    return program.train[0].ndim == 2


@dataclass(frozen=True)
class Fault:
    """What can be planted.

    Attributes:
        also: causes that say the same.
        kinds: of programs that it fits.
        fits: what else it asks of a program.
    """

    cause: str
    plant: Plant
    also: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ("labels", "yes/no", "numbers")
    fits: Callable[[Drawn], bool] = lambda _: True


_ANY_STEP = ("lr_too_low", "too_few_steps", "optimizer_mismatch", "batch_too_large")
FAULTS = (
    Fault("lr_too_high", _rate(300, 1000), ("optimizer_mismatch", "exploding_gradient")),
    Fault("lr_too_low", _rate(1 / 300, 1 / 3000), _ANY_STEP),
    Fault("too_few_steps", _recipe(duration="1ep", batch_size=128), _ANY_STEP),
    Fault("double_softmax", _ending(lambda: nn.Softmax(dim=1)), ("output_activation",), ("labels",)),
    Fault("output_activation", _ending(nn.Sigmoid), ("double_softmax",), ("yes/no",)),
    Fault("output_activation", _ending(nn.Sigmoid, nn.Tanh, nn.ReLU), ("dead_units",), ("numbers",)),
    Fault("output_activation", _ending(nn.ReLU), ("dead_units", "loss_mismatch"), ("labels", "yes/no")),
    Fault("softmax_single_unit", _single_softmax, ("output_activation",), ("yes/no",)),
    Fault("loss_mismatch", lambda p, _: replace(p, loss=nn.NLLLoss()), ("output_activation",), ("labels",)),
    Fault("shape_broadcast", _flat_targets, (), ("numbers",)),
    Fault("unscaled_input", _rows(_other_units), ("lr_too_high", "dead_units", "saturated_units")),
    Fault("unscaled_target", _far_targets, ("lr_too_high", "lr_too_low", "exploding_gradient"), ("numbers",)),
    Fault("symmetric_init", _weights(lambda m: (m.weight.fill_(0.1), m.bias.fill_(0.0))), ("bad_init",)),
    Fault(
        "bad_init",
        _weights(lambda m: m.weight.mul_(50)),
        ("exploding_gradient", "saturated_units", "vanishing_gradient", "lr_too_high", "dead_units"),
    ),
    Fault(
        "dead_units",
        _weights(lambda m: m.bias.fill_(-20.0)),
        ("bad_init",),
        fits=lambda p: any(isinstance(m, nn.ReLU) for m in p.model().modules()),
    ),
    Fault("frozen_parameters", _layers(_frozen), ("parameters_not_optimized",)),
    Fault(
        "detached_graph",
        _layers(lambda layers: [*layers[:-1], Cut(), layers[-1]]),
        ("frozen_parameters", "parameters_not_optimized"),
    ),
    Fault(
        "label_noise",
        _rows(_wrong, held=False),
        ("shuffled_labels",),
        ("labels", "yes/no"),
        lambda p: p.valid is not None,
    ),
    Fault(
        "label_noise",
        _rows(_wrong, test=False),
        ("shuffled_labels",),
        ("labels", "yes/no"),
        lambda p: p.valid is not None,
    ),
    Fault("class_imbalance", _rows(_rare, held=False), (), ("labels", "yes/no"), lambda p: p.data != "rare"),
    Fault("overfitting", _few, fits=lambda p: _is_dense(p) and p.data not in ("iris", "moons", "circles", "linear")),
    Fault("vanishing_gradient", _deep, ("saturated_units", "bad_init"), fits=_is_dense),
    Fault("duplicate_leak", _leaked, (), fits=lambda p: p.valid is not None),
    Fault("shuffled_labels", _rows(_mixed, held=False), ("label_noise", "train_valid_mismatch")),
    Fault("constant_target", _rows(lambda pair: (pair[0], torch.ones_like(pair[1])), held=False)),
    Fault("nan_in_data", _rows(_holes, held=False), ("nan_source",)),
    Fault("unshuffled_data", _sorted, (), ("labels", "yes/no")),
    Fault("train_valid_mismatch", _other_valid, ("unscaled_input",), fits=lambda p: p.valid is not None),
    Fault("regularization_too_strong", _decay),
    Fault(
        "missing_activation",
        _layers(lambda layers: [m for m in layers if not isinstance(m, ACTIVATIONS)]),
        ("underfitting", "bottleneck"),
        fits=lambda p: p.data in ("moons", "circles", "sine"),
    ),
    Fault("sum_reduction", _summed, ("lr_too_high", "exploding_gradient")),
    Fault(
        "bottleneck", _layers(_narrow), ("underfitting",), ("labels",), lambda p: p.data == "digits" and _is_dense(p)
    ),
)


def draw_faulty(seed: int) -> tuple[Drawn, Drawn]:
    """A program with a fault, and the same without it; the faults take turns."""
    fault, dice = FAULTS[seed % len(FAULTS)], random.Random(seed)
    while True:
        sound = draw(dice.randrange(10**6), _LEARNABLE)
        if sound.kind in fault.kinds and fault.fits(sound):
            faulty = fault.plant(sound, dice)
            return replace(faulty, causes=(fault.cause,), also=frozenset(fault.also)), sound
