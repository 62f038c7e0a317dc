"""Schedule-free AdamW: averaging instead of a decaying schedule.

Defazio et al., "The Road Less Scheduled", 2024, arXiv:2405.15682. Gradients g_t are taken at y, steps are made on z, x
is the running average that is evaluated; v is Adam's second moment:

    y_t     = (1 - b1) z_t + b1 x_t
    v_t     = b2 v_{t-1} + (1 - b2) g_t^2
    z_{t+1} = z_t - lr_t (g_t / (sqrt(v_t / (1 - b2^t)) + eps) + wd y_t)
    c_t     = lr_t^2 / sum of lr_i^2 up to t
    x_{t+1} = (1 - c_t) x_t + c_t z_{t+1}
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from fogline.descent.own_optimizers.common import (
    Closure,
    cache_blocks,
    check_settings,
    evaluate,
    subtract,
    with_gradient,
)


class ScheduleFreeAdamW(torch.optim.Optimizer):
    """AdamW without a schedule: warm-up only, then a constant rate; the average is what gets evaluated.

    While training the parameters hold y; `to_eval` makes them x and `to_train` makes them y again, bit for bit: the two
    are exchanged, nothing is recomputed. Statistics of BatchNorm belong to y and have to be refreshed for x.

    State per parameter: `x` (or y while the parameter holds x), `z`, `exp_avg_sq`. The first parameter also carries the
    counters `step` and `weight_sum` (0-D tensors) and `averaged`, whether the parameters hold x.

    Args:
        params: parameters or groups.
        lr: learning rate, a float or a 0-D tensor.
        betas: b1 for the interpolation, b2 for the second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled decay, applied at y.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([4.0]))
        >>> optimizer = ScheduleFreeAdamW([weight], lr=1.0)
        >>> for _ in range(2):
        ...     weight.grad = torch.tensor([1.0])
        ...     optimizer.step()
        >>> round(weight.item(), 4)
        2.45
        >>> to_eval(optimizer)
        >>> round(weight.item(), 4)
        2.5
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 2.5e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        check_settings("ScheduleFreeAdamW", rates={"lr": lr, "eps": eps, "weight_decay": weight_decay}, betas=betas)
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def init_state(self) -> None:
        """Create the state of every parameter that has none; x and z start at the parameter."""
        first = self.param_groups[0]["params"][0]
        for group in self.param_groups:
            for parameter in group["params"]:
                if not self.state[parameter]:
                    value = parameter.detach()
                    zeros = torch.zeros_like(value)
                    self.state[parameter] = {"x": value.clone(), "z": value.clone(), "exp_avg_sq": zeros}
        if "step" not in self.state[first]:
            counter = torch.zeros((), dtype=_counter_dtype(first), device=first.device)
            self.state[first] |= {"step": counter, "weight_sum": counter.clone(), "averaged": False}

    def swap(self, averaged: bool) -> None:
        """Let the parameters hold the average x (True) or the training point y (False); no-op when they do."""
        self.init_state()
        shared = self.state[self.param_groups[0]["params"][0]]
        if shared["averaged"] == averaged:
            return
        shared["averaged"] = averaged
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    other = self.state[parameter]["x"]
                    held = parameter.detach().clone()
                    parameter.copy_(other)
                    other.copy_(held)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """One step on the gradients in `.grad`; parameters without one stay.

        Raises:
            RuntimeError: the parameters hold the average.
        """
        self.init_state()
        shared = self.state[self.param_groups[0]["params"][0]]
        if shared["averaged"]:
            raise RuntimeError(
                "expected a step at the training weights, received one at the average: call to_train first"
            )
        loss = evaluate(closure)
        shared["step"].add_(1)
        lr = self.param_groups[0]["lr"]
        shared["weight_sum"].add_(lr * lr)
        share = lr * lr / shared["weight_sum"].clamp(min=torch.finfo(shared["weight_sum"].dtype).tiny)
        for group in self.param_groups:
            params, grads = with_gradient(group, "ScheduleFreeAdamW")
            state = ([self.state[p][key] for p in params] for key in ("x", "z", "exp_avg_sq"))
            if params:
                for block in cache_blocks(params, grads, *state):
                    _update(group, *block, correction=1 - group["betas"][1] ** shared["step"], share=share)
        return loss


def _update(
    group: dict[str, Any],
    params: list[Tensor],
    grads: list[Tensor],
    averages: list[Tensor],
    leaders: list[Tensor],
    squares: list[Tensor],
    *,
    correction: Tensor,
    share: Tensor,
) -> None:
    beta1, beta2 = group["betas"]
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
    denominators = torch._foreach_div(squares, correction)
    torch._foreach_sqrt_(denominators)
    torch._foreach_add_(denominators, group["eps"])
    updates = list(torch._foreach_div(grads, denominators))
    if group["weight_decay"]:
        torch._foreach_add_(updates, params, alpha=group["weight_decay"])
    subtract(leaders, updates, group["lr"])
    towards = torch._foreach_sub(leaders, averages)
    torch._foreach_mul_(towards, share)
    torch._foreach_add_(averages, towards)
    torch._foreach_copy_(params, torch._foreach_lerp(leaders, averages, beta1))


def to_eval(optimizer: torch.optim.Optimizer) -> None:
    """Let the parameters hold the average where the optimizer keeps one; no-op for every other."""
    if isinstance(optimizer, ScheduleFreeAdamW):
        optimizer.swap(averaged=True)


def to_train(optimizer: torch.optim.Optimizer) -> None:
    """Undo `to_eval`, bit for bit; no-op for optimizers without an average."""
    if isinstance(optimizer, ScheduleFreeAdamW):
        optimizer.swap(averaged=False)


def _counter_dtype(parameter: Tensor) -> torch.dtype:
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32
