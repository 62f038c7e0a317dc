"""What a loss expects of outputs and targets, known from PyTorch's own classes and functions."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._functorch import is_batchedtensor

from fogline.data.source import Facts, described
from fogline.errors import misfit, some
from fogline.task import OnBatch

Family = Literal["classes", "binary", "elementwise", "on_batch", "unknown"]

_FAMILIES: dict[Any, Family] = {
    OnBatch: "on_batch",
    **dict.fromkeys((nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss), "classes"),
    **dict.fromkeys((F.cross_entropy, F.nll_loss, F.multi_margin_loss), "classes"),
    **dict.fromkeys((nn.BCEWithLogitsLoss, nn.BCELoss), "binary"),
    **dict.fromkeys((F.binary_cross_entropy_with_logits, F.binary_cross_entropy), "binary"),
    **dict.fromkeys((nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss), "elementwise"),
    **dict.fromkeys((F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss), "elementwise"),
}


def family(loss: Any) -> Family:
    """The kind of targets a loss works on.

    >>> family(nn.CrossEntropyLoss()), family(F.mse_loss), family(lambda outputs, targets: outputs.sum())
    ('classes', 'elementwise', 'unknown')
    """
    known = (found for member, found in _FAMILIES.items() if loss is member or member in type(loss).__mro__)
    return next(known, "unknown")


def on_probabilities(loss: Any) -> bool:
    """Whether a binary loss takes probabilities and not logits."""
    return isinstance(loss, nn.BCELoss) or loss is F.binary_cross_entropy


def name(loss: Any) -> str:
    """How to call a loss in a sentence."""
    return str(getattr(loss, "__name__", None) or type(loss).__name__)


def evaluated(loss: Any, outputs: Any, targets: Any) -> Any:
    """The loss; NaN where it raises for outputs that are not finite, as ``nn.BCELoss`` does and others do not.

    >>> evaluated(nn.BCELoss(), torch.tensor([torch.nan]), torch.tensor([1.0]))
    tensor(nan)
    """
    try:
        if on_probabilities(loss) and isinstance(outputs, Tensor) and outputs.is_cuda:
            return _of_probabilities(loss, outputs, targets)
        return loss(outputs, targets)
    except RuntimeError:
        if not isinstance(outputs, Tensor):
            raise
        finite = torch.isfinite(outputs.detach())
        if is_batchedtensor(outputs):  # each member of a population by itself: not all of them need be lost
            value: Tensor = loss(outputs.where(finite, 0.5), targets)
            return value.where(finite.all(), torch.nan)
        if bool(finite.all()):
            raise
        return outputs.sum() * torch.nan


def _of_probabilities(loss: Any, outputs: Tensor, targets: Any) -> Tensor:
    """A loss of probabilities; NaN where something else comes, which would end the process on a CUDA device.

    >>> _of_probabilities(nn.BCELoss(), torch.tensor([0.5, 1.5]), torch.ones(2))
    tensor(nan)
    """
    fine = (outputs >= 0) & (outputs <= 1)
    value: Tensor = loss(outputs.where(fine, 0.5), targets)
    return value.where(fine.all(), torch.nan)


def pair(batch: Any, what: str = "") -> tuple[Any, Any]:
    """The inputs and targets of a batch.

    Raises:
        TypeError: if it is of another structure.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    remedy = "return such a pair, or pass loss=fogline.on_batch(fn) with fn(model, batch)"
    raise misfit("a pair (inputs, targets)", described(batch), remedy, what, TypeError)


def check_pairing(loss: Any, outputs: Any, targets: Any, facts: Facts) -> None:
    """Refuse what PyTorch would broadcast, misread or reject; losses we do not know are left to themselves.

    Raises:
        TypeError: for outputs or targets that are no tensors.
        ValueError: for shapes, types or labels that do not fit the loss.
    """
    if family(loss) == "unknown":
        return
    for value, expected in ((outputs, "a model that returns one tensor"), (targets, "targets that are one tensor")):
        if not isinstance(value, Tensor):
            remedy = "give the tensor the loss is for, or pass loss=fogline.on_batch(fn) with fn(model, batch)"
            raise misfit(f"{expected} for {name(loss)}", described(value), remedy, error=TypeError)
    if family(loss) == "classes":
        _check_classes(loss, outputs, targets, facts)
    else:
        _check_elementwise(loss, outputs, targets)


def _check_elementwise(loss: Any, outputs: Tensor, targets: Tensor) -> None:
    if not targets.is_floating_point():
        raise misfit(f"floating-point targets for {name(loss)}", targets.dtype, "convert with y.float()")
    if outputs.shape != targets.shape:
        raise ValueError(
            f"outputs are {tuple(outputs.shape)} and targets are {tuple(targets.shape)}: "
            f"{_meeting(outputs, targets)}; {_remedy(outputs, targets)}"
        )
    low, high = targets.min().item(), targets.max().item()
    if family(loss) == "binary" and (low < 0 or high > 1):  # NaN passes: such rows are named elsewhere
        raise misfit(f"targets from 0 to 1 for {name(loss)}", f"{low:g} to {high:g}", "map them to 0 and 1")
    low, high = outputs.min().item(), outputs.max().item()
    if on_probabilities(loss) and (low < 0 or high > 1):
        remedy = "use nn.BCEWithLogitsLoss() on the logits, or end the model in nn.Sigmoid()"
        raise misfit(f"probabilities for {name(loss)}", f"outputs from {low:.3g} to {high:.3g}", remedy)


def _meeting(outputs: Tensor, targets: Tensor) -> str:
    try:
        return f"would broadcast to {np.broadcast_shapes(outputs.shape, targets.shape)}"
    except ValueError:
        return "they do not match"


def _remedy(outputs: Tensor, targets: Tensor) -> str:
    if outputs.shape == (*targets.shape, 1):
        return "reshape targets with y[:, None]" if targets.ndim == 1 else "reshape targets with y.unsqueeze(-1)"
    if targets.shape == (*outputs.shape, 1):
        return "reshape targets with y.squeeze(-1)"
    if outputs.ndim == targets.ndim == 2:
        return f"let the last layer have {targets.shape[1]} outputs"
    return "give both the same shape"


def _check_classes(loss: Any, outputs: Tensor, targets: Tensor, facts: Facts) -> None:
    shape, wanted = tuple(outputs.shape), tuple(targets.shape)
    if outputs.ndim < 2:
        remedy = "let the last layer have one output per class"
        raise misfit(f"outputs of shape (batch, classes) for {name(loss)}", shape, remedy)
    if targets.is_floating_point():
        if shape == wanted and not isinstance(loss, nn.NLLLoss):
            return  # probabilities of the classes
        remedy = "convert with y.long() if they are labels, or use nn.MSELoss() if they are quantities"
        raise misfit(f"whole-number labels for {name(loss)}", f"{targets.dtype} targets of shape {wanted}", remedy)
    if targets.dtype != torch.int64:
        raise misfit(f"int64 labels for {name(loss)}", targets.dtype, "convert with y.long()")
    expected = (shape[0], *shape[2:])
    if wanted != expected:
        remedy = "reshape targets with y[:, 0]" if wanted == (*expected, 1) else "give one label per example"
        if wanted == shape:
            remedy = "for one-hot targets use y.argmax(1), or y.float() for probabilities"
        elif len(shape) == 3 and wanted == shape[:2]:
            remedy = "the classes are dimension 1: use on_batch with outputs.flatten(0, 1) and targets.flatten()"
        raise misfit(f"targets of shape {expected} for outputs {shape}", wanted, remedy)
    _check_labels(loss, outputs.shape[1], targets, facts)


def labels_that_count(loss: Any, targets: Tensor) -> Tensor:
    """The labels a loss does not ignore.

    >>> labels_that_count(nn.CrossEntropyLoss(), torch.tensor([3, 1, -100, 3]))
    tensor([3, 1, 3])
    """
    return targets[targets != getattr(loss, "ignore_index", -100)]


def labels_in_words(labels: Tensor) -> str:
    """The different labels there are, the first few.

    >>> labels_in_words(torch.tensor([3, 1, 3]))
    'labels 1, 3'
    """
    return f"labels {some(torch.unique(labels).tolist())}"


def _check_labels(loss: Any, width: int, targets: Tensor, facts: Facts) -> None:
    used = labels_that_count(loss, targets)
    if not used.numel():
        return
    highest = max(int(used.max()), facts.outputs - 1 if facts.kind == "classification" else 0)
    if int(used.min()) >= 0 and highest < width:
        return
    came = labels_in_words(used) + (f" (up to {highest} in all the data)" if highest > int(used.max()) else "")
    remedy = f"let the last layer have {highest + 1} outputs, or "
    if width == 1:
        remedy += "use nn.BCEWithLogitsLoss() with y.float()[:, None]"
        raise misfit(f"one output per class for {name(loss)}", f"a single output and {came}", remedy)
    remedy += "map the labels with classes, y = torch.unique(y, return_inverse=True)"
    raise misfit(f"labels from 0 to {width - 1} for a model with {width} outputs", came, remedy)
