"""What our optimizers share: the parameters that have a gradient, and an update scaled by a rate of either kind."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

Closure = Callable[[], Any]


def evaluate(closure: Closure | None) -> Any:
    """The loss of a closure with gradients enabled, None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def with_gradient(group: Mapping[str, Any], owner: str) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters of a group that have a gradient, and these gradients.

    Raises:
        ValueError: a sparse or complex gradient.
    """
    params = [parameter for parameter in group["params"] if parameter.grad is not None]
    grads: list[Tensor] = [parameter.grad for parameter in params]
    for grad in grads:
        if grad.is_sparse or grad.is_complex():
            kind = "sparse" if grad.is_sparse else "complex"
            raise ValueError(f"expected dense real gradients for {owner}, received a {kind} one: use adamw or sgd")
    return params, grads


def subtract(params: list[Tensor], updates: list[Tensor], rate: float | Tensor) -> None:
    """`p -= rate * u` for every pair; a tensor rate is never read on the host. May overwrite the updates."""
    if isinstance(rate, Tensor):
        torch._foreach_mul_(updates, rate)
        torch._foreach_sub_(params, updates)
    else:
        torch._foreach_add_(params, updates, alpha=-rate)


def check_settings(owner: str, *, rates: Mapping[str, Any], betas: tuple[float, ...] = ()) -> None:
    """Reject negative rates and momenta outside [0, 1).

    Raises:
        ValueError: naming the setting and what was received.
    """
    for name, value in rates.items():
        if not value >= 0:
            raise ValueError(f"expected {name} of {owner} to be at least 0, received {value}")
    for beta in betas:
        if not 0 <= beta < 1:
            raise ValueError(f"expected every beta of {owner} in 0 <= beta < 1, received {beta}")


def cache_blocks(*columns: list[Tensor], limit: int = 2**17) -> Iterator[tuple[list[Tensor], ...]]:
    """The same lists in pieces that stay in the processor's cache over all the passes of an elementwise update.

    Ten passes over 25M parameters are bound by memory; over pieces of 128k elements hardly. The pieces are views.
    On other devices, inside a graph and for small lists there is one piece: everything.

    Args:
        columns: lists of equal length whose i-th tensors have the same shape (parameters, gradients, state).
        limit: elements in a piece.

    Example:
        >>> pieces = list(cache_blocks([torch.zeros(3), torch.zeros(10)], [torch.ones(3), torch.ones(10)], limit=4))
        >>> [[len(tensor) for tensor in params] for params, _ in pieces]
        [[3], [4], [4], [2]]
    """
    on_cpu = all(tensor.device.type == "cpu" for tensor in columns[0])
    if not on_cpu or torch.compiler.is_compiling() or sum(tensor.numel() for tensor in columns[0]) <= limit:
        yield columns
        return
    block: list[tuple[Tensor, ...]] = []
    size = 0
    for row in zip(*columns, strict=True):
        divisible = row[0].numel() > limit and all(tensor.is_contiguous() for tensor in row)
        pieces = zip(*(tensor.view(-1).split(limit) for tensor in row), strict=True) if divisible else [row]
        for piece in pieces:
            if block and size + piece[0].numel() > limit:
                yield tuple(map(list, zip(*block, strict=True)))
                block, size = [], 0
            block.append(piece)
            size += piece[0].numel()
    yield tuple(map(list, zip(*block, strict=True)))
