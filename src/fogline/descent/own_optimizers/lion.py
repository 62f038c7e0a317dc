"""Lion: the sign of a momentum.

Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023, arXiv:2302.06675:

    c_t     = b1 m_{t-1} + (1 - b1) g_t
    theta_t = theta_{t-1} - lr (sign(c_t) + wd theta_{t-1})
    m_t     = b2 m_{t-1} + (1 - b2) g_t
"""

from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from fogline.descent.own_optimizers.common import (
    Closure,
    cache_blocks,
    check_settings,
    evaluate,
    subtract,
    with_gradient,
)


class Lion(torch.optim.Optimizer):
    """Lion with decoupled weight decay; one state tensor per parameter.

    Every entry moves by exactly `lr`, so rates are three to ten times smaller and decays as much larger than for AdamW.

    Args:
        params: parameters or groups.
        lr: learning rate, a float or a 0-D tensor.
        betas: b1 for the step, b2 for the memory.
        weight_decay: decoupled decay, multiplied by the rate.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> weight.grad = torch.tensor([0.3, -9.0])
        >>> Lion([weight], lr=0.25).step()
        >>> weight.tolist()
        [0.75, -1.75]
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        check_settings("Lion", rates={"lr": lr, "weight_decay": weight_decay}, betas=betas)
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def init_state(self) -> None:
        """Create the momentum of every parameter that has none."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if not self.state[parameter]:
                    self.state[parameter] = {"exp_avg": torch.zeros_like(parameter)}

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """One step on the gradients in `.grad`; parameters without one stay."""
        loss = evaluate(closure)
        self.init_state()
        for group in self.param_groups:
            params, grads = with_gradient(group, "Lion")
            if not params:
                continue
            beta1, beta2 = group["betas"]
            momenta = [self.state[parameter]["exp_avg"] for parameter in params]
            for weights, slopes, memories in cache_blocks(params, grads, momenta):
                updates = list(torch._foreach_lerp(memories, slopes, 1 - beta1))
                torch._foreach_sign_(updates)
                if group["weight_decay"]:
                    torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
                subtract(weights, updates, group["lr"])
                torch._foreach_lerp_(memories, slopes, 1 - beta2)
        return loss
