"""Muon: momentum, orthogonalised; AdamW for what is not a hidden matrix.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024, with the scale of Liu et al., "Muon is
Scalable for LLM Training", 2025, arXiv:2502.16982, that lets one learning rate serve Muon and AdamW. For a matrix W of
`rows x columns` with gradient G:

    B_t = mu B_{t-1} + (1 - mu) G_t
    U_t = mu B_t + (1 - mu) G_t                          (Nesterov)
    X_0 = U_t / |U_t|_F,   X_{i+1} = a X_i + (b A + c A^2) X_i   with A = X_i X_i^T, five times
    W_t = (1 - lr wd) W_{t-1} - 0.2 sqrt(max(rows, columns)) lr X_5

(a, b, c) drive every singular value to between 0.7 and 1.2: X_5 is close to the nearest orthogonal matrix.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT

from fogline.descent.groups import ParameterRole, groups_of
from fogline.descent.own_optimizers.common import Closure, check_settings, evaluate, with_gradient

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
EPSILON = 1e-7


class Muon(torch.optim.Optimizer):
    """Muon on groups with the key `stacks`, AdamW on all others, under one learning rate and one decay.

    Matrices of equal shape (a tall one counts as its transpose) are orthogonalised together in one batched product.

    Args:
        params: groups, best from `muon_groups`. `stacks` holds for every parameter `(count, rows, columns)`: the
            matrices it is made of.
        lr: learning rate, a float or a 0-D tensor.
        momentum: mu.
        betas: of AdamW.
        eps: of AdamW.
        weight_decay: decoupled decay.
        iterations: Newton-Schulz iterations.
        precision: dtype of these, such as "bfloat16"; None is bfloat16 on a GPU and the parameter's own elsewhere.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2, 2))
        >>> weight.grad = torch.tensor([[5.0, 0.0], [0.0, 0.1]])
        >>> Muon([{"params": [weight], "stacks": [(1, 2, 2)]}], lr=1.0, iterations=12).step()
        >>> bool(((weight.diag() < -0.15) & (weight.diag() > -0.4)).all())  # both directions move alike
        True
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        iterations: int = 5,
        precision: str | None = None,
    ) -> None:
        rates = {"lr": lr, "eps": eps, "weight_decay": weight_decay, "iterations": iterations}
        check_settings("Muon", rates=rates, betas=(momentum, *betas))
        if precision is not None and not isinstance(getattr(torch, precision, None), torch.dtype):
            raise ValueError(f"expected precision of Muon to name a torch dtype ('bfloat16'), received {precision!r}")
        super().__init__(
            params, {**rates, "momentum": momentum, "betas": betas, "precision": precision, "stacks": None}
        )
        for group in self.param_groups:
            # The fused kernel of AdamW reads its step counters on the parameters' device.
            group["fused"] = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in group["params"])

    def init_state(self) -> None:
        """Create the state of every parameter that has none."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if self.state[parameter]:
                    continue
                if group["stacks"]:
                    self.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
                else:
                    counter = torch.zeros((), dtype=torch.float32, device=parameter.device if group["fused"] else "cpu")
                    zeros = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
                    self.state[parameter] = {"step": counter} | zeros

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """One step on the gradients in `.grad`; parameters without one stay."""
        loss = evaluate(closure)
        self.init_state()
        for group in self.param_groups:
            params, grads = with_gradient(group, "Muon")
            if params and group["stacks"]:
                self._orthogonal_step(group, params, grads)
            elif params:
                self._adamw_step(group, params, grads)
        return loss

    def _orthogonal_step(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        shapes = {id(p): stack for p, stack in zip(group["params"], group["stacks"], strict=True)}
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        directions = torch._foreach_lerp(grads, buffers, group["momentum"])
        buckets: dict[Any, list[tuple[Tensor, Tensor, tuple[int, int, int]]]] = defaultdict(list)
        for parameter, direction in zip(params, directions, strict=True):
            count, rows, columns = shapes[id(parameter)]
            key = (min(rows, columns), max(rows, columns), parameter.dtype, parameter.device)
            buckets[key].append((parameter, direction.reshape(count, rows, columns), (count, rows, columns)))
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        for (_, longest, *_), members in buckets.items():
            wide = [direction.mT if rows > columns else direction for _, direction, (_, rows, columns) in members]
            steps = orthogonalise(torch.cat(wide), group["iterations"], group["precision"])
            steps = steps.to(members[0][0].dtype) * (0.2 * longest**0.5 * group["lr"])
            parts = steps.split([count for _, _, (count, _, _) in members])
            for (parameter, _, (_, rows, columns)), part in zip(members, parts, strict=True):
                parameter.sub_((part.mT if rows > columns else part).reshape(parameter.shape))

    def _adamw_step(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        compiling = torch.compiler.is_compiling()
        fused = group["fused"] and not compiling
        beta1, beta2 = group["betas"]
        adamw(
            params,
            grads,
            [self.state[p]["exp_avg"] for p in params],
            [self.state[p]["exp_avg_sq"] for p in params],
            [],
            [self.state[p]["step"] for p in params],
            # Outside a graph the foreach version cannot read a tensor rate from another device.
            foreach=compiling or not (fused or isinstance(group["lr"], Tensor)),
            capturable=compiling,
            fused=fused,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonalise(
    matrices: Tensor,  # (count, rows, columns), rows <= columns
    iterations: int = 5,
    precision: str | None = None,
) -> Tensor:  # (count, rows, columns)
    """Newton-Schulz towards the nearest orthogonal matrix of each one in a stack.

    Example:
        >>> values = torch.linalg.svdvals(orthogonalise(torch.randn(3, 4, 6, generator=torch.manual_seed(0))))
        >>> bool((values > 0.3).all() and (values < 1.3).all())
        True
    """
    a, b, c = NEWTON_SCHULZ
    dtype = getattr(torch, precision) if precision else (torch.bfloat16 if matrices.is_cuda else matrices.dtype)
    x = matrices.to(dtype)
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=EPSILON)
    for _ in range(iterations):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


def muon_groups(roles: list[ParameterRole], weight_decay: float | None) -> list[dict[str, Any]]:
    """Groups for `Muon`: the hidden matrices with their stacks, the rest in decayed and not decayed."""
    hidden = [role for role in roles if role.hidden]
    rest = [role for role in roles if not role.hidden]
    stacks = {role.name: role.hidden for role in hidden}
    groups = groups_of(hidden, weight_decay)
    for group in groups:
        group["stacks"] = [stacks[name] for name in group["names"]]
    return groups + groups_of(rest, weight_decay)
