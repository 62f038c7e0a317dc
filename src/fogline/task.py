"""What is to be learned: model, loss, data and metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from inspect import Parameter, signature
from typing import Any

from torch import Tensor, nn

_PLAIN = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
Loss = Callable[[Any, Any], Tensor]
Metric = Callable[[Any, Any], "Tensor | float"]


@dataclass(frozen=True)
class OnBatch:
    """A loss that is given the model and the whole batch; made by :func:`on_batch`.

    Attributes:
        function: of (model, batch).
        deployment: a :class:`fogline.edge.deployment.Deployment`, where the model goes to a device in another form.
    """

    function: Callable[[nn.Module, Any], Tensor]
    deployment: Any = None


def on_batch(function: Callable[[nn.Module, Any], Tensor]) -> OnBatch:
    """Let a loss see the model and the batch as it comes, for work that is not (inputs, targets).

    Args:
        function: ``function(model, batch)`` returns the mean loss of the batch, a scalar tensor, or the loss of each
            example, shape (batch,), whose mean is then the loss and which are recorded. ``batch`` has the structure of
            the training data: a tensor, or a tuple or dict of tensors with the same first dimension. Where it only
            works in training mode, as with torchvision's detectors, held-out rows are scored with the model's own
            modules in that mode, and PyTorch's layers (dropout, batch normalisation) in evaluation mode.

    Raises:
        TypeError: if it is not callable.

    >>> import torch
    >>> loss = on_batch(lambda model, batch: (model(batch) - batch).square().mean())  # an auto-encoder
    >>> loss.function(torch.nn.Identity(), torch.ones(4, 2))
    tensor(0.)
    """
    if not callable(function):
        raise TypeError(f"on_batch: expected a function of (model, batch), received {function!r}")
    return OnBatch(function)


@dataclass(frozen=True)
class Task:
    """What is to be learned.

    Attributes:
        model: a factory without arguments, or a module (a copy of its weights is the start). None builds one that
            fits the data: a multilayer perceptron on standardised columns for tables, a small CNN for images.
        loss: ``loss(outputs, targets) -> scalar`` averaged over the batch, or :func:`on_batch`. None takes
            cross-entropy for class labels and the mean squared error for numbers.
        train: the training data: ``(inputs, targets)`` tensors or arrays, a pandas or Polars frame, a map-style
            ``Dataset``, a ``DataLoader`` (taken apart, its batch size kept), an ``IterableDataset``, the path of a
            CSV or Parquet file or of a folder of images by class.
        valid: held-out data in any of the same forms, or None.
        metrics: functions of (outputs, targets) by name, scored on the held-out data as the mean over examples.
        target: the target column of a frame or file.
        name: what the run is called; the class of the model by default.

    >>> import torch
    >>> X, y = torch.randn(32, 4), torch.randn(32, 1)
    >>> Task(torch.nn.Linear(4, 1), torch.nn.MSELoss(), (X, y)).train[0].shape
    torch.Size([32, 4])
    """

    model: Callable[[], nn.Module] | nn.Module | None = None
    loss: Loss | OnBatch | None = None
    train: Any = None
    valid: Any = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    target: str | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if self.train is None:
            raise TypeError("Task: expected training data in `train`, received None")
        if self.model is not None and not callable(self.model):
            raise TypeError(f"Task: expected a module or a function that makes one as `model`, received {self.model!r}")
        _check_factory(self.model)
        if isinstance(self.loss, type):
            name = self.loss.__name__
            raise TypeError(f"Task: expected a function as `loss`, received the class {name}; make one: {name}()")
        if self.loss is not None and not (callable(self.loss) or isinstance(self.loss, OnBatch)):
            raise TypeError(f"Task: expected a function of (outputs, targets) as `loss`, received {self.loss!r}")
        metrics: Any = {} if self.metrics is None else self.metrics  # as those say it who have none
        if not isinstance(metrics, Mapping):
            raise TypeError(f"Task: expected a dict of functions by name as `metrics`, received {metrics!r}")
        object.__setattr__(self, "metrics", metrics)
        for name, metric in metrics.items():
            if not callable(metric):
                raise TypeError(f"Task: expected a function of (outputs, targets) as metric {name!r}, got {metric!r}")


def _check_factory(model: Any) -> None:
    """Refuse a class or function that cannot be called without arguments."""
    if model is None or isinstance(model, nn.Module):
        return
    with suppress(ValueError):  # what is built in tells nothing
        wanted = [p.name for p in signature(model).parameters.values() if p.default is p.empty and p.kind in _PLAIN]
        if wanted:
            name = model.__name__ if isinstance(model, type) else "make"
            raise TypeError(
                "Task: expected a function without arguments that makes the `model`, received one that wants "
                f"{', '.join(wanted)}; write model=lambda: {name}(...)"
            )
