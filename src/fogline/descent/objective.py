"""What is minimised: a model and a loss on a batch, the same for supervised work and for ``on_batch``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fogline.data import losses
from fogline.data.source import Batch, map_tree, whole
from fogline.descent.copies import copied
from fogline.task import Loss, OnBatch


class Forward(NamedTuple):
    """What a forward pass gave.

    Attributes:
        outputs: of the model; None for ``on_batch``.
        loss: of the batch, a scalar.
        losses: of each example, where the function of ``on_batch`` returns them.
    """

    outputs: Any
    loss: Tensor
    losses: Tensor | None = None


@dataclass
class Objective:
    """``objective(batch)`` is the mean loss of a batch, a scalar tensor with a graph behind it.

    Attributes:
        model: the module that is trained.
        loss: ``loss(outputs, targets)`` or :class:`~fogline.task.OnBatch`.
        autocast: type of the matrix products under mixed precision; None computes in the type of the weights.
        only_trained: whether the model was seen to give its loss in training mode only, as detectors do that return
            losses there and boxes else. It is then evaluated with PyTorch's own layers in evaluation mode, and with
            those of its own in training mode.
    """

    model: nn.Module
    loss: Loss | OnBatch
    autocast: torch.dtype | None = None
    device_type: str = "cpu"
    only_trained: bool = False

    def __call__(self, batch: Batch) -> Tensor:
        return self.forward(batch).loss

    def value(self, batch: Batch) -> Tensor:
        """The loss alone, no graph kept; a loss that sees the model may still differentiate its inputs on the way."""
        with torch.set_grad_enabled(not self.supervised):
            return self(batch).detach()

    def with_outputs(self, batch: Batch) -> tuple[Any, Tensor]:
        """The outputs (None for ``on_batch``) and the loss."""
        return self.forward(batch)[:2]

    def forward(self, batch: Batch) -> Forward:
        """All that a forward pass gives.

        Under mixed precision the loss of (outputs, targets) is computed in full: it costs next to nothing, no digit of
        it gets lost, and some losses (``nn.BCELoss``) refuse anything else.
        """
        if self.model.training:
            return self._of(batch)
        if not self.only_trained:
            try:
                return self._of(batch)
            except torch.OutOfMemoryError:
                raise
            except _NO_LOSS:
                if not self._has_one_in_training(batch):
                    raise
            self.only_trained = True
        with _own_modules_training(self.model):
            found = self._of(batch)
        return found._replace(outputs=self._outputs(batch[0])) if self.supervised else found

    def _of(self, batch: Batch) -> Forward:
        if not isinstance(self.loss, OnBatch):
            inputs, targets = batch
            outputs = self._outputs(inputs)
            if self.autocast is not None and not _is_tree(outputs):
                with self._mixed():
                    return Forward(outputs, losses.evaluated(self.loss, outputs, targets))
            return Forward(outputs, losses.evaluated(self.loss, outputs, targets))
        with self._mixed():
            value = self.loss.function(self.model, whole(batch))
        if not isinstance(value, Tensor):
            raise TypeError(f"on_batch: expected the loss as a tensor, received {type(value).__name__}")
        return Forward(None, value) if value.ndim == 0 else Forward(None, value.mean(), value)

    def _outputs(self, inputs: Any) -> Any:
        with self._mixed():
            outputs = self.model(inputs)
        return map_tree(_in_full, outputs) if self.autocast is not None and _is_tree(outputs) else outputs

    def _has_one_in_training(self, batch: Batch) -> bool:
        with suppress(*_NO_LOSS), _own_modules_training(self.model):
            self._of(batch)
            return True
        return False

    def copied(self) -> Objective:
        """The same on a copy of the model: what is done to it leaves this one alone."""
        return replace(self, model=copied(self.model))

    def _mixed(self) -> AbstractContextManager[None]:
        return nullcontext() if self.autocast is None else torch.autocast(self.device_type, self.autocast)

    @contextmanager
    def without_learning(self) -> Iterator[None]:
        """Evaluation mode, and no graph kept; a loss that sees the model may still differentiate its inputs."""
        with torch.set_grad_enabled(not self.supervised), mode(self.model, training=False):
            yield

    @property
    def supervised(self) -> bool:
        return not isinstance(self.loss, OnBatch)


_NO_LOSS = (TypeError, AttributeError, LookupError, ValueError, RuntimeError, AssertionError)
"""What a function of a loss may raise that is given something else than losses."""


def _is_tree(outputs: Any) -> bool:
    """Whether its tensors can be exchanged: an object of a class of its own keeps those it has."""
    return isinstance(outputs, Tensor) or type(outputs) in (tuple, list, dict)


def _in_full(leaf: Tensor) -> Tensor:
    return leaf.float() if leaf.dtype in (torch.bfloat16, torch.float16) else leaf


def mode(model: nn.Module, training: bool) -> AbstractContextManager[None]:
    """Put the whole model in training or evaluation mode and each module back afterwards."""
    return _Mode(model, training) if any(m.training != training for m in model.modules()) else nullcontext()


@contextmanager
def _own_modules_training(model: nn.Module) -> Iterator[None]:
    """Layers of PyTorch stay as they are: dropout stays off, and batch normalisation keeps its statistics."""
    own = [m for m in model.modules() if not m.training and not type(m).__module__.startswith("torch.nn.")]
    for module in own:
        module.training = True
    try:
        yield
    finally:
        for module in own:
            module.training = False


class _Mode(AbstractContextManager[None]):
    def __init__(self, model: nn.Module, training: bool) -> None:
        self._before: list[tuple[nn.Module, bool]] = [(m, m.training) for m in model.modules()]
        self._set: Callable[[], Any] = lambda: model.train(training)

    def __enter__(self) -> None:
        self._set()

    def __exit__(self, *_: object) -> None:
        for module, training in self._before:
            module.training = training
