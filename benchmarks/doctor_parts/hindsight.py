"""What could be done about a program whose rows are wrong or few: published methods, each a change of task and recipe.

A method that a program has no place for, such as weights of classes in a regression, gives None.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fogline import Recipe, Task, on_batch
from fogline.doctor.prior import adjusted, adjusts
from fogline.doctor.robust import robust
from fogline.doctor.yardstick import Yardstick

Program = tuple[Task, Recipe]
Method = Callable[[Task, Recipe], Program | None]

SMOOTHING = 0.2
NOISE = 0.3
"""Standard deviations of the inputs that are added to them."""
MIXED = 0.4
"""Both parameters of the Beta distribution that mixup takes its shares from."""
RARE = 4
"""Classes are balanced where the most common one has more than so many times the rows of another."""


def _nothing(task: Task, recipe: Recipe) -> Program:
    return task, recipe


def _measured(task: Task, recipe: Recipe) -> Program:
    return task, recipe.replace(lr="auto")


def _decay(amount: float, task: Task, recipe: Recipe) -> Program:
    """Decay of the weights apart from the loss (Loshchilov and Hutter 2019), the rate measured for it."""
    return task, recipe.replace(optimizer="adamw", weight_decay=amount, options={}, lr="auto")


def _dropout(share: float, task: Task, recipe: Recipe) -> Program | None:
    """Dropout before the last linear layer (Srivastava et al. 2014)."""
    if last_linear(_made(task)) is None:
        return None

    def make() -> nn.Module:
        model = _made(task)
        layer = last_linear(model)
        assert layer is not None
        layer.register_forward_pre_hook(lambda layer, inputs: F.dropout(inputs[0], share, layer.training))
        return model

    return _with(task, model=make), recipe


def last_linear(model: nn.Module) -> nn.Linear | None:
    """The layer of this kind that was added last, which makes the outputs."""
    return next((layer for layer in reversed(list(model.modules())) if isinstance(layer, nn.Linear)), None)


def _made(task: Task) -> nn.Module:
    assert callable(task.model)
    model: nn.Module = task.model()
    return model


def _noise(task: Task, recipe: Recipe) -> Program | None:
    """Noise on the inputs (Bishop 1995) while the network learns."""
    if not _plain(task):
        return None
    deviation, loss = NOISE * float(task.train[0].std()), task.loss

    def noisy(model: nn.Module, batch: Any) -> Tensor:
        inputs, targets = batch
        if model.training:
            inputs = inputs + deviation * torch.randn_like(inputs)
        return loss(model(inputs), targets)

    return _with(task, loss=on_batch(noisy)), recipe


def _mixup(task: Task, recipe: Recipe) -> Program | None:
    """Rows and what is asked of them mixed in pairs (Zhang et al. 2018) while the network learns."""
    if not _plain(task):
        return None
    shares, loss = torch.distributions.Beta(MIXED, MIXED), task.loss

    def mixed(model: nn.Module, batch: Any) -> Tensor:
        inputs, targets = batch
        if not model.training:
            return loss(model(inputs), targets)
        share, other = shares.sample(), torch.randperm(len(inputs))
        outputs = model(share * inputs + (1 - share) * inputs[other])
        return share * loss(outputs, targets) + (1 - share) * loss(outputs, targets[other])

    return _with(task, loss=on_batch(mixed)), recipe


def _plain(task: Task) -> bool:
    """Whether inputs are numbers, which can be added, and the loss is one of outputs and targets."""
    return isinstance(task.loss, nn.Module) and task.train[0].is_floating_point()


def _smoothed(task: Task, recipe: Recipe) -> Program | None:
    """Targets that are less than sure (Szegedy et al. 2016)."""
    if type(task.loss) is nn.CrossEntropyLoss:
        return _with(task, loss=nn.CrossEntropyLoss(task.loss.weight, label_smoothing=SMOOTHING)), recipe
    if type(task.loss) is nn.BCEWithLogitsLoss:
        given = task.loss
        return _with(task, loss=lambda out, y: given(out, (1 - SMOOTHING) * y + SMOOTHING / 2)), recipe
    return None


def _robust(task: Task, recipe: Recipe) -> Program | None:
    """Generalised cross-entropy (Zhang and Sabuncu 2018); of numbers the absolute error."""
    remedy = robust(task.loss)
    if remedy is None or remedy.on_loss is None:
        return None
    return _with(task, loss=remedy.on_loss(task.loss)), recipe


def counts(task: Task) -> Tensor | None:
    """Training rows of each class where some are rare, float64 (classes,); else None."""
    labels = Yardstick.of(task.train[1], task.loss).labels(task.train[1])
    if labels is None:
        return None
    found = torch.bincount(labels).double()
    return found if float(found.max()) > RARE * float(found[found > 0].min()) else None


def _weights(task: Task, recipe: Recipe) -> Program | None:
    """Each class with the same weight in the loss, however many rows it has."""
    rows = counts(task)
    if rows is None:
        return None
    if type(task.loss) is nn.CrossEntropyLoss:
        return _with(task, loss=nn.CrossEntropyLoss((rows.mean() / rows.clamp_min(1)).float())), recipe
    if type(task.loss) is nn.BCEWithLogitsLoss and len(rows) == 2:
        return _with(task, loss=nn.BCEWithLogitsLoss(pos_weight=(rows[0] / rows[1]).float())), recipe
    return None


def _repeated(power: float, task: Task, recipe: Recipe) -> Program | None:
    """Rows taken as often as their class is rare, to a power."""
    rows = counts(task)
    if rows is None:
        return None
    inputs, targets = task.train
    labels = Yardstick.of(targets, task.loss).labels(targets)
    assert labels is not None
    index = torch.arange(len(labels)).repeat_interleave(_times(rows, power)[labels])
    return _with(task, train=(inputs[index], targets[index])), recipe


def _times(rows: Tensor, power: float) -> Tensor:
    return (rows.max() / rows.clamp_min(1)).pow(power).round().long()


def _adjusted(task: Task, recipe: Recipe) -> Program | None:
    """A loss that knows how common each class is (Menon et al. 2021)."""
    rows = counts(task)
    if rows is None or not adjusts(task.loss, len(rows)):
        return None
    return _with(task, loss=adjusted(task.loss, rows)), recipe


def _half_and_half(task: Task, recipe: Recipe) -> Program | None:
    """Rows taken somewhat more often, and what is left of their rarity told to the loss."""
    rows, repeated = counts(task), _repeated(0.5, task, recipe)
    if rows is None or repeated is None or not adjusts(task.loss, len(rows)):
        return None
    return _with(repeated[0], loss=adjusted(task.loss, rows * _times(rows, 0.5))), recipe


def _with(task: Task, **changes: Any) -> Task:
    return dataclasses.replace(task, **changes)


METHODS: dict[str, Method] = {
    "nothing else": _nothing,
    "a measured rate": _measured,
    "label smoothing": _smoothed,
    "a robust loss": _robust,
    "class weights": _weights,
    "oversampling": partial(_repeated, 1.0),
    "logit adjustment": _adjusted,
    "half of each": _half_and_half,
    "mixup": _mixup,
    "noise on the inputs": _noise,
    "dropout 0.3": partial(_dropout, 0.3),
    "dropout 0.5": partial(_dropout, 0.5),
    "weight decay 0.1": partial(_decay, 0.1),
    "weight decay 1": partial(_decay, 1.0),
    "weight decay 2": partial(_decay, 2.0),
}
"""By name. Early stopping is not among them: ``fit`` always goes back to the weights of the best held-out loss."""
