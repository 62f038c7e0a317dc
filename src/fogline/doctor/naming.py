"""Where the first NaN of a loop that is not ours came from, as far as a passer-by can tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fogline.data.source import leaves
from fogline.descent.copies import copied
from fogline.descent.randomness import private_randomness
from fogline.descent.tracing import Operation, Range, traced
from fogline.doctor.finding import Evidence

LOGARITHMS = ("log", "log2", "log10", "log1p", "backward of log", "backward of log2", "backward of log10", "xlogy")
HUGE = 1e18
"""The square of such a number is infinite in float32: no data and no first weights are so large."""
_MOST_WEIGHTS = 50_000_000
"""A model is copied to run the batch again only up to this size."""


@dataclass(frozen=True)
class Named:
    """The source in words, the module if it is known, and what was measured."""

    sentence: str
    module: str | None
    evidence: tuple[Evidence, ...]
    cause: str = "nan_source"


def name_not_finite(
    model: nn.Module,
    named: Sequence[tuple[str, nn.Parameter]],
    given: tuple[Any, Any] | None,
    *,
    targets: Tensor | None = None,
    in_loss: Sequence[str] = (),
    runs: bool = True,
) -> Named:
    """Look for the source of a gradient that is not finite, before the step is taken with it.

    Weights first, then the batch, then a forward pass of the batch on a copy of the model, at last the gradients:
    back-propagation reaches the last layer first, so the last bad gradient in the order of the layers is the source.

    Args:
        given: the arguments of the latest forward pass, if they are known.
        targets: what the outputs are compared with, if they are known.
        in_loss: the operations between outputs and loss.
        runs: whether the model is run on them; else they are only looked at.
    """
    for name, parameter in named:
        if not _finite(parameter):
            layer = name.rpartition(".")[0] or name
            return Named(f"The weights of {layer!r} were not finite before this step.", layer, ())
    for value in [*leaves(given), *leaves(targets)]:
        if value.is_floating_point() and value.ndim and not _finite(value):
            bad = ~torch.isfinite(value.detach()).reshape(len(value), -1).all(1)
            rows = ", ".join(map(str, bad.nonzero().flatten()[:10].tolist()))
            return Named(
                "The batch holds NaN or infinity.", None, (Evidence("rows of the batch", rows, "none"),), "nan_in_data"
            )
    operation, largest = (None, 0.0) if given is None or not runs else _forward_on_a_copy(model, given)
    if operation is not None:
        ranges = tuple(Evidence("values that went in", str(r), "", layer=operation.module) for r in operation.ranges)
        return Named(
            f"The first operation that is not finite is {operation.name} in {operation.module!r}.",
            operation.module or None,
            (Evidence("operation", operation.name, layer=operation.module), *ranges),
            _cause(operation),
        )
    if largest > HUGE:
        return Named(
            "Outputs grew from step to step until the loss left the range of its type.", None, (), "lr_too_high"
        )
    if "log" in in_loss and runs and given is not None:
        seen = Evidence("operation", "log")
        return Named("The outputs are finite, and the loss takes the logarithm of zero.", None, (seen,), "log_of_zero")
    bad_names = [name for name, p in named if p.grad is not None and not _finite(p.grad)]
    if not bad_names:
        return Named("The norm of the gradient overflows: it grew from step to step.", None, (), "lr_too_high")
    layer = bad_names[-1].rpartition(".")[0] or bad_names[-1]
    whole = len(bad_names) == len(named)
    where = "all gradients are bad, so it is the loss or the last layer" if whole else f"it begins in {layer!r}"
    although = "although the outputs of all modules are" if runs else "although weights and batch are"
    return Named(f"The gradient is not finite {although}: {where}.", layer, ())


def _cause(operation: Operation) -> str:
    if any(r.largest > HUGE for r in operation.ranges):
        return "lr_too_high"
    zero = operation.name in LOGARITHMS and any(r.low <= 0 for r in operation.ranges[:1])
    return "log_of_zero" if zero else "nan_source"


def _forward_on_a_copy(model: nn.Module, given: tuple[Any, Any]) -> tuple[Operation | None, float]:
    """The batch again, without gradients, on a copy that has no hooks of anybody; and its largest output."""
    if sum(p.numel() for p in model.parameters()) > _MOST_WEIGHTS:
        return None, 0.0
    failures = (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError, NotImplementedError)
    args, kwargs = given
    device = next(model.parameters()).device
    try:
        twin = without_hooks(copied(model))
        with private_randomness(device), torch.no_grad(), traced(twin) as tracer:
            outputs = [t for t in leaves(twin(*args, **kwargs)) if t.is_floating_point()]
    except failures:  # a model that cannot be copied, or not be run again: then the gradients have to do
        return None, 0.0
    return tracer.found, max((Range.of(t).largest for t in outputs), default=0.0)


def without_hooks(model: nn.Module) -> nn.Module:
    """The model without the hooks of its owner, which would see a pass that is none of theirs; PyTorch's own stay."""
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks):
            for key in [k for k, hook in hooks.items() if not type(hook).__module__.startswith("torch.")]:
                del hooks[key]
    return model


def _finite(value: Tensor) -> bool:
    value = value.detach()
    value = value.coalesce().values() if value.is_sparse else value
    return bool(torch.isfinite(value).all())
