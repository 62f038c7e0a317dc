"""Model, loss and metrics are tried on one batch before any training time is spent, and nothing is left changed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from traceback import walk_tb
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from fogline.data import losses
from fogline.data.privacy import PrivateRandom
from fogline.data.source import Batch, Collated, Facts, cast, described, leaves, map_tree, rows_of, whole
from fogline.errors import misfit, some
from fogline.task import Loss, Metric, OnBatch

_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError)
"""What is raised when shapes, types or structure do not fit."""


def check_first_batch(
    model: nn.Module, loss: Loss | OnBatch, batch: Batch, metrics: Mapping[str, Metric], facts: Facts
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
            what = "the on_batch function"
            value = _run(model, copies, loss.function, whole(batch), what)
            value = _scalar(value.mean() if _one_an_example(value, batch) else value, what)
        else:
            inputs, targets = losses.pair(batch)
            what = f"the model {type(model).__name__}"
            outputs = _run(model, copies, lambda module, given: module(given), inputs, what)
            value = _try_loss(loss, outputs, targets, facts)
            if metrics and not isinstance(outputs, Tensor):  # training may give more than what is answered
                outputs = _run(model.eval(), copies, lambda module, given: module(given), inputs, what)
            _try_metrics(metrics, outputs, targets)
        notes = _check_gradient(value, {name: copy for name, copy in copies.items() if copy.requires_grad})
    return notes + _finite(value, batch)


def refuse_lazy(model: nn.Module) -> None:
    """Raise a ValueError where a model has parameters whose shapes nobody knows yet."""
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise misfit("a model whose parameters have shapes", "lazy ones", "call model(inputs) once on a batch")


def _check_parameters(model: nn.Module) -> None:
    parameters, name = list(model.parameters()), type(model).__name__
    refuse_lazy(model)
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


class _Inside(nn.Module):
    """The model inside a module whose forward is any function of both, so that the function sees the copies."""

    def __init__(self, model: nn.Module, function: Callable[[nn.Module, Any], Any]) -> None:
        super().__init__()
        self.model, self.forward = model, lambda given: function(model, given)
        self.training = model.training


def _run(model: nn.Module, copies: dict[str, Tensor], function: Callable[..., Any], given: Any, what: str) -> Any:
    with _explained(what, described(given), model):
        renamed = {f"model.{name}": copy for name, copy in copies.items()}
        return functional_call(_Inside(model, function), renamed, (given,))


def _try_loss(loss: Loss, outputs: Any, targets: Any, facts: Facts) -> Tensor:
    losses.check_pairing(loss, outputs, targets, facts)
    name = losses.name(loss)
    with _explained(f"expected a loss that takes (outputs, targets), but {name}", _both(outputs, targets)):
        value = losses.evaluated(loss, outputs, targets)
    return _scalar(value, f"the loss {name}")


def _both(outputs: Any, targets: Any) -> str:
    return f"outputs {described(outputs)} and targets {described(targets)}"


def _try_metrics(metrics: Mapping[str, Metric], outputs: Any, targets: Any) -> None:
    both = _both(outputs, targets)
    for metric_name, metric in metrics.items():
        called = f"metric {metric_name!r}"
        with torch.no_grad(), _explained(f"expected {called} to take (outputs, targets), but it", both):
            score = metric(map_tree(Tensor.detach, outputs), targets)
        _check_score(score, called)


def that_fit(metrics: Mapping[str, Metric], model: nn.Module, batch: Batch) -> dict[str, Metric]:
    """Of metrics that nobody asked for, those that can read what the model gives for a batch.

    A loss of the user's own may compare tuples, or read columns of the targets of which a usual metric knows nothing.
    """
    inputs, targets = losses.pair(batch)
    kept: dict[str, Metric] = {}
    with _undisturbed(model), torch.no_grad(), suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # shapes that broadcast
        outputs = model.eval()(inputs)
        if _more_labels_than_outputs(outputs, targets):
            return {}
        for name, metric in metrics.items():
            with suppress(Exception):
                float(metric(outputs, targets))
                kept[name] = metric
    return kept


def _more_labels_than_outputs(outputs: Any, targets: Any) -> bool:
    """As of steps of a scale, which their loss tells apart by fewer outputs: the highest of those is no answer."""
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor) and outputs.ndim > 1 and targets.numel()):
        return False
    return not targets.is_floating_point() and 1 < outputs.shape[1] <= int(targets.max())


def _check_score(score: Any, called: str) -> None:
    try:
        float(score)
    except (TypeError, ValueError, RuntimeError) as error:
        received = f"a tensor of shape {tuple(score.shape)}" if isinstance(score, Tensor) else type(score).__name__
        raise misfit(f"{called} to return one number", received, "average it", error=TypeError) from error


def _one_an_example(value: Any, batch: Batch) -> bool:
    """Whether a function of the batch returned the loss of each example."""
    rows = {rows_of(batch)} if isinstance(batch, Collated) else {leaf.shape[0] for leaf in leaves(batch) if leaf.ndim}
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim == 1 and rows == {len(value)}


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
        raise misfit(f"{what} to return a value that depends on the parameters", "one without a gradient", remedy)
    return value


def _check_gradient(value: Tensor, trained: dict[str, Tensor]) -> tuple[str, ...]:
    with _explained("expected a loss that can be differentiated, but its gradient", "the first batch"):
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
        rows = (~torch.isfinite(leaf.reshape(leaf.shape[0], -1))).any(1).nonzero().flatten().tolist()
        if rows:
            return (f"{said}: its rows {rows[:5]} hold NaN or infinity",)
    return (f"{said} before any step, though its data is finite",)


@contextmanager
def _explained(what: str, received: str, model: nn.Module | None = None) -> Iterator[None]:
    """A failure inside the block becomes an error in the terms of the user, which names the layer it happened in."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise  # a smaller batch is the caller's decision
    except _FAILURES as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        place, module, value = _innermost(error, model)
        if module is None:
            raise kind(f"{what} failed on {received}: {error}") from error
        reason = _reason(module, value) if isinstance(value, Tensor) else None
        if reason is None:
            raise kind(f"{what} failed in {place} on {described(value)}: {error}") from error
        raise ValueError(f"{place} {misfit(*reason)}") from error


def _innermost(error: Exception, model: nn.Module | None) -> tuple[str, nn.Module | None, Any]:
    """The innermost module of the model that the failure went through: how to call it, and what it received."""
    names = {} if model is None else {module: name for name, module in model.named_modules()}
    for frame, _ in reversed(list(walk_tb(error.__traceback__))):
        module = frame.f_locals.get("self")
        if frame.f_code.co_name == "_call_impl" and module in names:
            received = frame.f_locals["args"]
            place = f"{type(module).__name__} {names[module]!r}" if names[module] else type(module).__name__
            return place, module, received[0] if received else None
    return "", None, None


def _reason(module: nn.Module, value: Tensor) -> tuple[str, str, str] | None:
    """What a layer of a known kind expects, what it received instead, and what to do."""
    shape, weight = tuple(value.shape), getattr(module, "weight", None)
    received = f"shape {shape}"
    if isinstance(module, nn.Embedding):
        return _embedding_reason(module, value)
    if isinstance(weight, Tensor) and weight.dtype != value.dtype and not value.is_floating_point():
        remedy = "convert them with x.float() (and divide pixels by 255)"
        return f"floating-point inputs ({weight.dtype})", str(value.dtype), remedy
    if isinstance(module, nn.Linear) and (not shape or shape[-1] != module.in_features):
        if module.in_features == value.ndim == 1:
            return "inputs of shape (batch, 1)", received, "reshape the inputs with x[:, None]"
        remedy = f"set in_features={value.shape[-1:].numel()} or change the columns"
        if value.ndim > 2 and value.shape[1:].numel() == module.in_features:
            remedy = "put nn.Flatten() before it"
        return f"inputs with {module.in_features} features in the last dimension", received, remedy
    if isinstance(module, _ConvNd):
        axes = ("batch", "channels", *("depth", "height", "width")[-len(module.kernel_size) :])
        if value.ndim != len(axes) or shape[1] != module.in_channels:
            remedy = "reshape the data, for example with x[:, None] for images without a channel"
            return f"inputs of shape ({', '.join(axes)}) with {module.in_channels} channels", received, remedy
    if isinstance(module, _BatchNorm) and value.ndim > 1:
        if module.training and value.numel() == shape[1]:
            remedy = "use a batch size above 1 (also for the last batch) or nn.GroupNorm"
            return "more than one value per channel in training", f"a batch of {received}", remedy
        if shape[1] != module.num_features:
            return f"{module.num_features} channels", received, f"set num_features={shape[1]}"
    return None


def _embedding_reason(module: nn.Embedding, value: Tensor) -> tuple[str, str, str] | None:
    if value.dtype not in (torch.int64, torch.int32):
        return "whole numbers", str(value.dtype), "convert the inputs with x.long()"
    low, high = int(value.min()), int(value.max())
    if low >= 0 and high < module.num_embeddings:
        return None
    remedy = f"set num_embeddings={high + 1} or map the inputs"
    return f"numbers from 0 to {module.num_embeddings - 1}", f"{low} to {high}", remedy
