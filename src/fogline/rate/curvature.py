"""The largest curvature along the optimizer's own steps, and the learning rate at which it becomes unstable."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fogline.data.source import Batch
from fogline.descent.objective import Objective
from fogline.descent.optimizer_specs import OptimizerSpec, stability_limit
from fogline.lanczos import lanczos

PRODUCTS = 5
"""Hessian-vector products a batch; each costs about one training step."""
_EPSILON_SHARE = 1e-3


def edge(
    objective: Objective,
    batches: Sequence[Batch],
    spec: OptimizerSpec,
    check: Callable[[], None] = lambda: None,
    products: int = PRODUCTS,
) -> float | None:
    """The learning rate beyond which the optimizer overshoots on the quadratic it stands on.

    With the largest eigenvalue L of the Hessian: gradient descent ``2 / L``, heavy ball ``(2 + 2b) / L``, Nesterov
    ``(2 + 2b) / ((1 + 2b) L)``, Adam ``(2 + 2b1) / ((1 - b1) L)`` with L of the preconditioned Hessian (Cohen et al.,
    2021, arXiv:2103.00065; 2022, arXiv:2207.14484). L is found by Lanczos iteration on Hessian-vector products, one
    draw a batch; the median over batches is taken, because a single batch can be ten times off.

    Returns:
        None where no limit is known for the method, the curvature is not positive, or the model cannot be
        differentiated twice.
    """
    if spec.edge is None:
        return None
    try:
        scales = _scales(objective, batches) if spec.edge == "preconditioned" else None
        sharpness = sorted(_largest(objective, k, batch, scales, check, products) for k, batch in enumerate(batches))
    except RuntimeError as error:
        if "derivative" in str(error) or "not implemented" in str(error) or "does not require grad" in str(error):
            return None  # an operation without a second derivative
        raise
    middle = sharpness[len(sharpness) // 2]
    limit = stability_limit(spec.edge, spec.momentum)
    return limit / middle if 0 < middle < float("inf") else None


def _largest(
    objective: Objective,
    draw: int,
    batch: Batch,
    scales: Sequence[Tensor] | None,
    check: Callable[[], None],
    products: int,
) -> float:
    """Largest eigenvalue of ``P^-1/2 H P^-1/2`` on one batch; ``scales`` is ``P^-1/2``, None the identity."""
    parameters = [p for p in objective.model.parameters() if p.requires_grad]
    scales = [torch.ones_like(_in_reals(p)) for p in parameters] if scales is None else scales
    gradients = torch.autograd.grad(objective(batch), parameters, create_graph=True, allow_unused=True)
    used = [(p, _in_reals(g), s) for p, g, s in zip(parameters, gradients, scales, strict=True) if g is not None]
    generator = torch.Generator().manual_seed(draw)
    start = torch.cat([torch.randn(s.numel(), generator=generator, dtype=torch.float64) for _, _, s in used])

    def curvature(vector: Tensor) -> Tensor:
        check()
        pieces = torch.split(vector, [s.numel() for _, _, s in used])
        scaled = [v.to(s).view_as(s) * s for v, (_, _, s) in zip(pieces, used, strict=True)]
        found = torch.autograd.grad(
            [g for _, g, _ in used], [p for p, _, _ in used], scaled, retain_graph=True, allow_unused=True
        )
        return torch.cat(
            [
                (torch.zeros_like(s) if h is None else _in_reals(h) * s).flatten().double().cpu()
                for h, (_, _, s) in zip(found, used, strict=True)
            ]
        )

    _, values, _ = lanczos(curvature, start, products)
    return float(values[-1]) if len(values) else 0.0


def _in_reals(values: Tensor) -> Tensor:
    """Complex numbers as two real ones each: the gradient of those is the gradient that PyTorch has of these."""
    return torch.view_as_real(values) if values.is_complex() else values


def _scales(objective: Objective, batches: Sequence[Batch]) -> list[Tensor]:
    """``P^-1/2`` with P = sqrt(v) of Adam, v the mean squared gradient of the batches.

    A floor of a thousandth of the mean keeps parameters that never had a gradient from deciding alone.
    """
    parameters = [p for p in objective.model.parameters() if p.requires_grad]
    moments = [torch.zeros_like(_in_reals(p)) for p in parameters]
    for batch in batches:
        gradients = torch.autograd.grad(objective(batch), parameters, allow_unused=True)
        for moment, gradient in zip(moments, gradients, strict=True):
            if gradient is not None:
                moment += _in_reals(gradient).square() / len(batches)
    floor = sum(float(m.sqrt().sum()) for m in moments) / max(1, sum(m.numel() for m in moments))
    return [(m.sqrt() + _EPSILON_SHARE * floor + torch.finfo(m.dtype).tiny).rsqrt() for m in moments]
