"""The largest curvature along the optimizer's own steps, and the learning rate at which it becomes unstable."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fogline.data.source import Batch
from fogline.descent.objective import Objective
from fogline.descent.optimizers import OptimizerSpec

_ITERATIONS = 12
_EPSILON_SHARE = 1e-3


def edge(
    objective: Objective, batches: Sequence[Batch], spec: OptimizerSpec, check: Callable[[], None] = lambda: None
) -> float | None:
    """The learning rate beyond which the optimizer overshoots on the quadratic it stands on.

    With the largest eigenvalue L of the Hessian: gradient descent ``2 / L``, heavy ball ``(2 + 2b) / L``, Nesterov
    ``(2 + 2b) / ((1 + 2b) L)``, Adam ``(2 + 2b1) / ((1 - b1) L)`` with L of the preconditioned Hessian (Cohen et al.,
    2021, 2022). L is found by power iteration on Hessian-vector products; the median over batches is taken, because a
    single batch can be ten times off.

    Returns:
        None where no limit is known for the method, the curvature is not positive, or the model cannot be
        differentiated twice.
    """
    if spec.edge is None:
        return None
    try:
        sharpness = sorted(
            _largest(objective, batch, batches, spec.edge == "preconditioned", check) for batch in batches
        )
    except RuntimeError as error:
        if "derivative" in str(error) or "not implemented" in str(error) or "does not require grad" in str(error):
            return None  # an operation without a second derivative
        raise
    middle = sharpness[len(sharpness) // 2]
    b = spec.momentum
    limit = {
        "gradient": 2.0,
        "heavy_ball": 2 + 2 * b,
        "nesterov": (2 + 2 * b) / (1 + 2 * b),
        "preconditioned": (2 + 2 * b) / (1 - b),
    }[spec.edge]
    return limit / middle if 0 < middle < float("inf") else None


def _largest(
    objective: Objective, batch: Batch, batches: Sequence[Batch], preconditioned: bool, check: Callable[[], None]
) -> float:
    """Largest eigenvalue of ``P^-1/2 H P^-1/2`` by power iteration, P the identity or Adam's second moment."""
    parameters = [p for p in objective.model.parameters() if p.requires_grad]
    scales = _scales(objective, parameters, batches) if preconditioned else [torch.ones_like(p) for p in parameters]
    loss = objective(batch)
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    used = [(p, g, s) for p, g, s in zip(parameters, gradients, scales, strict=True) if g is not None]
    generator = torch.Generator().manual_seed(0)
    vector = [torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device) for p, _, _ in used]
    value = 0.0
    for _ in range(_ITERATIONS):
        check()
        length = _norm(vector)
        if not 0 < length < float("inf"):
            return 0.0
        vector = [v / length for v in vector]
        scaled = [v * s for v, (_, _, s) in zip(vector, used, strict=True)]
        product = torch.autograd.grad(
            [g for _, g, _ in used],
            [p for p, _, _ in used],
            grad_outputs=scaled,
            retain_graph=True,
            allow_unused=True,
        )
        found = [torch.zeros_like(v) if h is None else h for h, v in zip(product, vector, strict=True)]
        following = [h * s for h, (_, _, s) in zip(found, used, strict=True)]
        value = sum(float((v * h).sum()) for v, h in zip(vector, following, strict=True))
        vector = following
    return value


def _scales(objective: Objective, parameters: Sequence[Tensor], batches: Sequence[Batch]) -> list[Tensor]:
    """``P^-1/2`` with P = sqrt(v) of Adam, v the mean squared gradient of the batches.

    A floor of a thousandth of the mean keeps parameters that never had a gradient from deciding alone.
    """
    moments = [torch.zeros_like(p) for p in parameters]
    for batch in batches:
        gradients = torch.autograd.grad(objective(batch), parameters, allow_unused=True)
        for moment, gradient in zip(moments, gradients, strict=True):
            if gradient is not None:
                moment += gradient.square() / len(batches)
    floor = sum(float(m.sqrt().sum()) for m in moments) / max(1, sum(m.numel() for m in moments))
    return [(m.sqrt() + _EPSILON_SHARE * floor + torch.finfo(m.dtype).tiny).rsqrt() for m in moments]


def _norm(vector: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(v.double().square().sum()) for v in vector))
