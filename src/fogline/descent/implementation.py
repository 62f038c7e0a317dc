"""Which implementation of an optimizer is the fastest here: measured, not assumed."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

IMPLEMENTATIONS = ("fused", "foreach", "forloop")


def choose_implementation(
    build_fn: Callable[[nn.Module, str], torch.optim.Optimizer], model: nn.Module, budget: float = 0.02
) -> tuple[str, dict[str, float]]:
    """Measure one optimizer step per implementation and choose: fused, unless another is clearly faster.

    The steps are taken on copies of the real parameter list (cut along the first dimension where they are larger than
    1M elements: the number of tensors and the ratio between them decide, not their sum) with random gradients, in turn,
    so that a passing load slows all alike. Weights, gradients and the global random state are not touched.

    To give two runs with one seed the same bits, the first supported of fused, foreach, forloop is kept unless another
    one's median is more than 1.5 times shorter.

    Args:
        build_fn: builds the optimizer from the model and the name of an implementation.
        model: the model to be trained.
        budget: seconds for the timed steps together; at least three rounds are always made.

    Returns:
        The implementation and the median seconds per step of each one tried (empty where there is no choice).

    Example:
        >>> from fogline.descent.optimizers import build
        >>> make = lambda model, how: build(model, "sgd", 0.1, implementation=how)
        >>> how, seconds = choose_implementation(make, nn.Linear(2, 1))
        >>> how in seconds
        True
    """
    steps = _candidates(build_fn, model)
    if not steps:
        raise ValueError("expected build_fn to build an optimizer for this model, received an error for every one")
    if len(steps) == 1:
        return next(iter(steps)), {}
    samples: dict[str, list[float]] = {how: [] for how in steps}
    spent, rounds = 0.0, 0
    while rounds < 3 or (spent < budget and rounds < 50):
        for how, step in steps.items():
            seconds = step()
            samples[how].append(seconds)
            spent += seconds
        rounds += 1
    medians = {how: statistics.median(times) for how, times in samples.items()}
    return preferred(medians), medians


def preferred(medians: Mapping[str, float]) -> str:
    """The first implementation, unless the fastest takes less than two thirds of its time.

    Example:
        >>> preferred({"fused": 1.4, "foreach": 1.0}), preferred({"fused": 1.6, "foreach": 1.0})
        ('fused', 'foreach')
    """
    first = next(iter(medians))
    fastest = min(medians, key=lambda how: medians[how])
    return fastest if medians[first] > 1.5 * medians[fastest] else first


def _candidates(
    build_fn: Callable[[nn.Module, str], torch.optim.Optimizer], model: nn.Module
) -> dict[str, Callable[[], float]]:
    """The timed step of every implementation that runs here, in order of preference, their state allocated."""
    optimizers = {}
    for how in IMPLEMENTATIONS:
        try:
            optimizers[how] = build_fn(model, how)
        except (ValueError, RuntimeError):  # not offered for this method, device or dtype
            continue
    if len(optimizers) == 1:
        return dict.fromkeys(optimizers, float)
    copies: dict[Tensor, Tensor] = {}
    candidates: dict[str, Callable[[], float]] = {}
    for how, optimizer in optimizers.items():
        copies = copies or _copies([parameter for group in optimizer.param_groups for parameter in group["params"]])
        for group in optimizer.param_groups:
            group["params"] = [copies[parameter] for parameter in group["params"]]
        step = _timed(optimizer, next(iter(copies.values())).device)
        try:
            step()
        except RuntimeError:  # a combination the method finds out about only when it steps
            continue
        candidates[how] = step
    return candidates


def _copies(parameters: list[Tensor], limit: int = 2**20) -> dict[Tensor, Tensor]:
    share = min(1.0, limit / max(1, sum(parameter.numel() for parameter in parameters)))
    copies = {}
    for parameter in parameters:
        cut = parameter.detach()
        if share < 1 and cut.ndim:
            cut = cut[: max(1, round(share * cut.shape[0]))]
        copy = cut.clone()
        generator = torch.Generator(copy.device).manual_seed(0)
        copy.grad = torch.empty_like(copy).normal_(generator=generator)
        copies[parameter] = copy
    return copies


def _timed(optimizer: torch.optim.Optimizer, device: torch.device) -> Callable[[], float]:
    def step() -> float:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        start = time.perf_counter()
        optimizer.step()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter() - start

    return step
