"""Model, loss and metrics are tried on one batch before any training time is spent, and nothing is left changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy

from fogline.data import losses
from fogline.data.explain import explained
from fogline.data.facts import Facts
from fogline.data.privacy import PrivateRandom
from fogline.data.source import Batch, cast, described, leaves, map_tree
from fogline.errors import misfit, some
from fogline.task import OnBatch


def check_first_batch(
    model: nn.Module,
    loss: Callable[[Any, Any], Tensor] | OnBatch,
    batch: Batch,
    metrics: Mapping[str, Callable[[Any, Any], Any]],
    facts: Facts,
) -> tuple[str, ...]:
    """Run model, loss, gradient and metrics once on a batch.

    It works on copies of the parameters and buffers: weights, buffers, ``.grad``, the train/eval flags and the random
    states are bitwise as before.

    Returns:
        Sentences on what is odd but no error, such as parameters without gradient.

    Raises:
        ValueError, TypeError: with what was expected, what came and what to do.

    >>> facts = Facts("regression", (2,))
    >>> batch = (torch.ones(4, 2), torch.ones(4))
    >>> check_first_batch(nn.Linear(2, 1), nn.MSELoss(), batch, {}, facts)
    Traceback (most recent call last):
    ...
    ValueError: outputs are (4, 1) and targets are (4,): would broadcast to (4, 4); reshape targets with y[:, None]
    """
    model = getattr(model, "_orig_mod", model)  # compiled: the module inside is tried, compiling is for later
    _check_parameters(model)
    floats = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    batch = cast(batch, next(floats, torch.get_default_dtype()))
    copies = {
        name: tensor.detach().clone().requires_grad_(tensor.requires_grad)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    with _undisturbed(model):
        if isinstance(loss, OnBatch):
            value = _try_on_batch(model, loss, copies, batch)
        else:
            value = _try_supervised(model, loss, copies, batch, metrics, facts)
        notes = _check_gradient(value, {name: copy for name, copy in copies.items() if copy.requires_grad})
    return notes + _finite(value, batch)


def _check_parameters(model: nn.Module) -> None:
    parameters, name = list(model.parameters()), type(model).__name__
    if any(is_lazy(parameter) for parameter in parameters):
        raise misfit("a model whose parameters have shapes", "lazy ones", "call model(inputs) once on a batch")
    if not parameters:
        raise misfit("a model with parameters to train", f"{name} without any", "add layers that have weights")
    if not any(parameter.requires_grad for parameter in parameters):
        remedy = "unfreeze some with parameter.requires_grad_(True)"
        raise misfit("parameters that require a gradient", f"{len(parameters)} frozen ones", remedy)


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Train/eval flags, the random states and the gradient mode are put back."""
    flags = [(module, module.training) for module in model.modules()]
    devices = {leaf.device for leaf in (*model.parameters(), *model.buffers()) if leaf.device.type == "cuda"}
    try:
        with PrivateRandom(), torch.random.fork_rng(devices), torch.enable_grad():
            yield
    finally:
        for module, training in flags:
            module.training = training


class _OnBatch(nn.Module):
    """The model inside a module whose forward is the user's function, so that it sees the copies."""

    def __init__(self, model: nn.Module, function: Callable[[nn.Module, Any], Tensor]) -> None:
        super().__init__()
        self.model, self.function = model, function
        self.training = model.training

    def forward(self, batch: Batch) -> Tensor:
        return self.function(self.model, batch)


def _try_on_batch(model: nn.Module, loss: OnBatch, copies: dict[str, Tensor], batch: Batch) -> Tensor:
    renamed = {f"model.{name}": copy for name, copy in copies.items()}
    with explained("the on_batch function", described(batch), model):
        value = functional_call(_OnBatch(model, loss.function), renamed, (batch,))
    return _scalar(value, "the on_batch function")


def _try_supervised(
    model: nn.Module,
    loss: Callable[[Any, Any], Tensor],
    copies: dict[str, Tensor],
    batch: Batch,
    metrics: Mapping[str, Callable[[Any, Any], Any]],
    facts: Facts,
) -> Tensor:
    inputs, targets = losses.pair(batch)
    with explained(f"the model {type(model).__name__}", described(inputs), model, facts.columns):
        outputs = functional_call(model, copies, (inputs,))
    losses.check_pairing(loss, outputs, targets, facts)
    both, name = f"outputs {described(outputs)} and targets {described(targets)}", losses.name(loss)
    with explained(f"expected a loss that takes (outputs, targets), but {name}", both):
        value = loss(outputs, targets)
    value = _scalar(value, f"the loss {name}")
    for metric_name, metric in metrics.items():
        called = f"metric {metric_name!r}"
        with torch.no_grad(), explained(f"expected {called} to take (outputs, targets), but it", both):
            score = metric(map_tree(Tensor.detach, outputs), targets)
        _check_score(score, called)
    return value


def _check_score(value: Any, called: str) -> None:
    try:
        float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        received = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise misfit(f"{called} to return one number", received, "average it", error=TypeError) from error


def _scalar(value: Any, what: str) -> Tensor:
    if not isinstance(value, Tensor):
        remedy = "return the tensor itself (without .item() or float())"
        raise misfit(f"{what} to return a scalar tensor", type(value).__name__, remedy, error=TypeError)
    if value.ndim:
        received = f"a tensor of shape {tuple(value.shape)}"
        raise misfit(f"{what} to return one number for the batch", received, 'use reduction="mean", or .mean()')
    if not value.is_floating_point():
        remedy = "compute it from the outputs, not from their argmax"
        raise misfit(f"{what} to return a floating-point number", value.dtype, remedy, error=TypeError)
    if not value.requires_grad:
        remedy = "look for .detach(), .item(), .data, argmax or torch.no_grad() between the model and the loss"
        expected = f"{what} to return a value that depends on the parameters"
        raise misfit(expected, "one without a gradient", remedy)
    return value


def _check_gradient(value: Tensor, trained: dict[str, Tensor]) -> tuple[str, ...]:
    with explained("expected a loss that can be differentiated, but its gradient", "the first batch"):
        gradients = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
    unused = [name for name, gradient in zip(trained, gradients, strict=True) if gradient is None]
    if len(unused) == len(trained):
        remedy = "compute it from the model's outputs"
        raise misfit("a loss that depends on the model's parameters", "one that depends on none of them", remedy)
    note = f"the loss does not depend on these parameters, which will not be trained: {some(unused)}"
    return (note,) if unused else ()


def _finite(value: Tensor, batch: Batch) -> tuple[str, ...]:
    if bool(torch.isfinite(value)):
        return ()
    said = f"the loss of the first batch is {value.item()}"
    for leaf in leaves(batch):
        if leaf.is_floating_point():
            rows = (~torch.isfinite(leaf.reshape(leaf.shape[0], -1))).any(1).nonzero().flatten().tolist()
            if rows:
                return (f"{said}: its rows {rows[:5]} hold NaN or infinity",)
    return (f"{said} before any step, though its data is finite",)
