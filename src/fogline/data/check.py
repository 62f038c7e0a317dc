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
from fogline.data.datasets import described
from fogline.data.explain import FAILURES, entered_modules, explain
from fogline.data.facts import Facts
from fogline.data.fingerprint import fingerprint as fingerprint
from fogline.data.pairing import check_pairing
from fogline.data.privacy import PrivateRandom
from fogline.data.source import Batch, cast, leaves
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
    batch = cast(batch, _float_type(model))
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
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise ValueError(
            "expected a model whose parameters have shapes, received lazy ones; call model(inputs) once on a batch"
        )
    parameters = list(model.parameters())
    if not parameters:
        raise ValueError(f"expected a model with parameters to train, received {type(model).__name__} without any")
    if not any(parameter.requires_grad for parameter in parameters):
        raise ValueError(
            f"expected parameters that require a gradient, received {len(parameters)} frozen ones; "
            "unfreeze some with parameter.requires_grad_(True)"
        )


def _float_type(model: nn.Module) -> torch.dtype:
    return next((item.dtype for item in model.parameters() if item.is_floating_point()), torch.get_default_dtype())


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
    with entered_modules(model) as entered:
        try:
            value = functional_call(_OnBatch(model, loss.function), renamed, (batch,))
        except torch.OutOfMemoryError:
            raise  # a smaller batch is the caller's decision
        except FAILURES as error:
            raise explain(error, entered, "the on_batch function", batch) from error
    return _scalar(value, "the on_batch function")


def _try_supervised(
    model: nn.Module,
    loss: Callable[[Any, Any], Tensor],
    copies: dict[str, Tensor],
    batch: Batch,
    metrics: Mapping[str, Callable[[Any, Any], Any]],
    facts: Facts,
) -> Tensor:
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        raise TypeError(
            f"expected batches (inputs, targets), received {described(batch)}; for other work pass "
            "loss=fogline.on_batch(fn) with fn(model, batch)"
        )
    inputs, targets = batch
    with entered_modules(model) as entered:
        try:
            outputs = functional_call(model, copies, (inputs,))
        except torch.OutOfMemoryError:
            raise
        except FAILURES as error:
            raise explain(error, entered, f"the model {type(model).__name__}", inputs, facts.columns) from error
    check_pairing(loss, outputs, targets, facts)
    try:
        value = loss(outputs, targets)
    except torch.OutOfMemoryError:
        raise
    except FAILURES as error:
        raise ValueError(
            f"expected a loss that takes (outputs, targets), but {losses.name(loss)} failed on outputs "
            f"{described(outputs)} and targets {described(targets)}: {error}"
        ) from error
    value = _scalar(value, f"the loss {losses.name(loss)}")
    _check_metrics(metrics, outputs, targets)
    return value


def _scalar(value: Any, what: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"expected {what} to return a scalar tensor, received {type(value).__name__}; "
            "return the tensor itself (without .item() or float())"
        )
    if value.ndim:
        raise ValueError(
            f"expected {what} to return one number for the batch, received a tensor of shape {tuple(value.shape)}; "
            'use reduction="mean", or .mean()'
        )
    if not value.is_floating_point():
        raise TypeError(f"expected {what} to return a floating-point number, received {value.dtype}")
    if not value.requires_grad:
        raise ValueError(
            f"expected {what} to return a value that depends on the parameters, received one without a gradient; "
            "look for .detach(), .item(), .data, argmax or torch.no_grad() between the model and the loss"
        )
    return value


def _check_gradient(value: Tensor, trained: dict[str, Tensor]) -> tuple[str, ...]:
    try:
        gradients = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(f"expected a loss that can be differentiated, but its gradient failed: {error}") from error
    unused = [name for name, gradient in zip(trained, gradients, strict=True) if gradient is None]
    if len(unused) == len(trained):
        raise ValueError(
            "expected a loss that depends on the model's parameters, received one that depends on none of them; "
            "compute it from the model's outputs"
        )
    if unused:
        shown = ", ".join(unused[:5]) + (f", ... ({len(unused)} in all)" if len(unused) > 5 else "")
        return (f"the loss does not depend on these parameters, which will not be trained: {shown}",)
    return ()


def _check_metrics(metrics: Mapping[str, Callable[[Any, Any], Any]], outputs: Any, targets: Any) -> None:
    detached = outputs.detach() if isinstance(outputs, Tensor) else outputs
    for name, metric in metrics.items():
        with torch.no_grad():
            try:
                value = metric(detached, targets)
            except FAILURES as error:
                raise ValueError(
                    f"expected metric {name!r} to take (outputs, targets), but it failed on outputs "
                    f"{described(outputs)} and targets {described(targets)}: {error}"
                ) from error
        received = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        if isinstance(value, Tensor) and value.numel() == 1:
            continue
        try:
            float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"expected metric {name!r} to return one number, received {received}; average it"
            ) from error


def _finite(value: Tensor, batch: Batch) -> tuple[str, ...]:
    if bool(torch.isfinite(value)):
        return ()
    number = value.item()
    for leaf in leaves(batch):
        if leaf.is_floating_point():
            rows = (~torch.isfinite(leaf.reshape(leaf.shape[0], -1))).any(1).nonzero().flatten().tolist()
            if rows:
                return (f"the loss of the first batch is {number}: its rows {rows[:5]} hold NaN or infinity",)
    return (f"the loss of the first batch is {number} before any step, though its data is finite",)
