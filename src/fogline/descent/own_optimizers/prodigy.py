"""Prodigy: Adam that estimates the distance to the solution, and with it its own rate.

Mishchenko & Defazio, "Prodigy: An Expeditiously Adaptive Parameter-Free Learner", 2023, arXiv:2306.06101, Algorithm 4.
With x_0 the start, d_0 small, gamma_k the rate (1, times a schedule):

    m_{k+1} = b1 m_k + (1 - b1) d_k g_k
    v_{k+1} = b2 v_k + (1 - b2) d_k^2 g_k^2
    r_{k+1} = sqrt(b2) r_k + (1 - sqrt(b2)) gamma_k d_k^2 <g_k, x_0 - x_k>
    s_{k+1} = sqrt(b2) s_k + (1 - sqrt(b2)) gamma_k d_k^2 g_k
    d_{k+1} = max(d_k, c r_{k+1} / |s_{k+1}|_1)
    x_{k+1} = x_k - gamma_k d_k (m_{k+1} / (sqrt(v_{k+1}) + d_k eps) + wd x_k)

r and s are kept divided by d_0, which cancels in d and keeps them from vanishing in float32.
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


class Prodigy(torch.optim.Optimizer):
    """Prodigy with decoupled weight decay: leave `lr` at 1.

    State per parameter: `exp_avg`, `exp_avg_sq`, `start` (x_0), `s`. The first parameter also carries `d` and `r`, 0-D
    tensors for all parameters together.

    Args:
        params: parameters or groups.
        lr: gamma, a float or a 0-D tensor.
        betas: b1, b2 as in Adam.
        eps: as in Adam.
        weight_decay: decoupled decay, multiplied by `d lr`.
        d0: first estimate of the distance, far too small on purpose.
        d_coefficient: c, multiplies every estimate.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([3.0]))
        >>> optimizer = Prodigy([weight])
        >>> for _ in range(300):
        ...     weight.grad = 2 * weight.detach()
        ...     optimizer.step()
        >>> abs(weight.item()) < 0.3
        True
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        d0: float = 1e-6,
        d_coefficient: float = 1.0,
    ) -> None:
        rates = {"lr": lr, "eps": eps, "weight_decay": weight_decay, "d0": d0, "d_coefficient": d_coefficient}
        check_settings("Prodigy", rates=rates, betas=betas)
        super().__init__(params, {**rates, "betas": betas})

    def init_state(self) -> None:
        """Create the state of every parameter that has none; `start` is the parameter as it is now."""
        first = self.param_groups[0]["params"][0]
        for group in self.param_groups:
            for parameter in group["params"]:
                if not self.state[parameter]:
                    value = parameter.detach()
                    zeros = {key: torch.zeros_like(value) for key in ("exp_avg", "exp_avg_sq", "s")}
                    self.state[parameter] = zeros | {"start": value.clone()}
        if "d" not in self.state[first]:
            dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
            d = torch.full((), self.param_groups[0]["d0"], dtype=dtype, device=first.device)
            self.state[first] |= {"d": d, "r": torch.zeros_like(d)}

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """One step on the gradients in `.grad`; parameters without one stay."""
        loss = evaluate(closure)
        self.init_state()
        shared = self.state[self.param_groups[0]["params"][0]]
        distance: Tensor = shared["d"].clone()
        products: list[Tensor] = []
        sizes: list[Tensor] = []
        for group in self.param_groups:
            params, grads = with_gradient(group, "Prodigy")
            state = ([self.state[p][key] for p in params] for key in ("exp_avg", "exp_avg_sq", "s", "start"))
            if params:
                for block in cache_blocks(params, grads, *state):
                    _update(group, distance, products, sizes, *block)
        if products:
            settings = self.param_groups[0]
            decay = settings["betas"][1] ** 0.5
            scale = distance * distance / settings["d0"]
            shared["r"].mul_(decay).add_((1 - decay) * scale * torch.stack(products).sum())
            size = torch.stack(sizes).sum()
            estimate = torch.where(size > 0, settings["d_coefficient"] * shared["r"] / size, torch.zeros_like(size))
            shared["d"].copy_(torch.maximum(distance, estimate))
        return loss


def _update(
    group: dict[str, Any],
    distance: Tensor,
    products: list[Tensor],
    sizes: list[Tensor],
    params: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    squares: list[Tensor],
    sums: list[Tensor],
    starts: list[Tensor],
) -> None:
    """Move one block; appends its gamma <g, x_0 - x> to `products` and its |s|_1 to `sizes`."""
    beta1, beta2 = group["betas"]
    lr, decay = group["lr"], beta2**0.5
    offsets = torch._foreach_sub(starts, params)
    torch._foreach_mul_(offsets, grads)
    products.append(lr * torch.stack([offset.sum() for offset in offsets]).sum().to(distance.dtype))
    scaled = torch._foreach_mul(grads, distance)
    torch._foreach_lerp_(momenta, scaled, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, scaled, scaled, 1 - beta2)
    torch._foreach_mul_(scaled, (1 - decay) * lr * distance / group["d0"])
    torch._foreach_mul_(sums, decay)
    torch._foreach_add_(sums, scaled)
    sizes.append(torch.stack(torch._foreach_norm(sums, 1)).sum().to(distance.dtype))
    # d m / (sqrt(v) + d eps) is m / (sqrt(v) / d + eps): no tensor has to be read on the host to be added.
    denominators = torch._foreach_sqrt(squares)
    torch._foreach_div_(denominators, distance)
    torch._foreach_add_(denominators, group["eps"])
    updates = list(torch._foreach_div(momenta, denominators))
    if group["weight_decay"]:
        torch._foreach_add_(updates, torch._foreach_mul(params, distance * group["weight_decay"]))
    subtract(params, updates, lr)
