"""MuSGD: Muon's orthogonal step beside that of stochastic gradient descent with momentum, as YOLO26 is trained.

For a matrix or convolution kernel W with gradient G, kernels flattened to (outputs, inputs times window), with the
momentum mu, the decay wd and the shares m of Muon and s of plain descent:

    B_t = mu B_{t-1} + (1 - mu) G_t,   U_t = mu B_t + (1 - mu) G_t
    W'  = W_{t-1} - lr m sqrt(max(1, height / width)) NS(U_t)
    D_t = G_t + wd W',   V_t = mu V_{t-1} + D_t
    W_t = W' - lr s (D_t + mu V_t)

NS is the Newton-Schulz iteration of :mod:`fogline.descent.own_optimizers.muon`; height and width are the last two sizes
of W, so that a kernel's factor is 1. Everything else (biases, normalisation) takes the last two lines alone.

Ultralytics' own works in bfloat16 throughout and fills matrices of different heights up with zeros to put them into one
product. Here matrices of one shape go through one product, a tall one as its transpose. Where a matrix is much wider
than high the iteration goes on with X X^T alone, which is small: every X_i is Q_i X_0, and

    A_0 = X_0 X_0^T,   P_i = a I + b A_i + c A_i^2,   Q_{i+1} = Q_i P_i,   A_{i+1} = P_i A_i P_i

is five products of the small side where the other way has ten with the long one.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from torch.optim.sgd import sgd

from fogline.descent.groups import ParameterRole, groups_of
from fogline.descent.own_optimizers.common import Closure, check_settings, evaluate, subtract, with_gradient
from fogline.descent.own_optimizers.muon import EPSILON, NEWTON_SCHULZ, orthogonalise

WIDE = 2
"""Times as wide as high from which the small side alone is iterated: it has fewer operations there."""
ITERATIONS = 5
LARGE, MUCH_WIDER = 1 << 15, 4
"""Elements from which a CPU iterates in bfloat16, where the matrix is not so wide that the small side is cheaper still:
twice as fast, and off by less than 1e-5 in an update at a rate of 0.01. Smaller matrices have larger entries, and the
error of bfloat16 is larger there."""


class MuSGD(torch.optim.Optimizer):
    """MuSGD on groups with `use_muon`, SGD with Nesterov momentum on all others.

    Args:
        params: groups, best from `musgd_groups`.
        lr: learning rate, a float or a 0-D tensor.
        momentum: mu, of both.
        weight_decay: wd, added to the gradient of plain descent.
        muon: m.
        sgd: s.
        use_muon: of groups that do not say.
        precision: dtype of the iteration, such as "float32"; None is bfloat16 on a GPU and for large matrices, and the
            parameter's own elsewhere.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2, 2))
        >>> weight.grad = torch.eye(2)
        >>> MuSGD([{"params": [weight], "use_muon": True}], lr=0.1, momentum=0.0, sgd=0.0).step()
        >>> bool((weight.diag() < 0).all())
        True
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        muon: float = 0.2,
        sgd: float = 1.0,
        use_muon: bool = False,
        precision: str | None = None,
    ) -> None:
        rates = {"lr": lr, "weight_decay": weight_decay, "muon": muon, "sgd": sgd}
        check_settings("MuSGD", rates=rates, betas=(momentum,))
        if precision is not None and not isinstance(getattr(torch, precision, None), torch.dtype):
            raise ValueError(f"expected precision of MuSGD to name a torch dtype ('bfloat16'), received {precision!r}")
        super().__init__(params, {**rates, "momentum": momentum, "use_muon": use_muon, "precision": precision})
        for group in self.param_groups:
            flat = [tuple(p.shape) for p in group["params"] if group["use_muon"] and p.ndim < 2]
            if flat:
                raise ValueError(
                    f"expected parameters of two dimensions or more in a group with use_muon, received shapes "
                    f"{flat[:3]}; put them into a group without it"
                )

    def init_state(self) -> None:
        """Create the state of every parameter that has none."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if not self.state[parameter]:
                    names = ("momentum_buffer", "muon_buffer") if group["use_muon"] else ("momentum_buffer",)
                    self.state[parameter] = {name: torch.zeros_like(parameter) for name in names}

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """One step on the gradients in `.grad`; parameters without one stay."""
        loss = evaluate(closure)
        self.init_state()
        for group in self.param_groups:
            params, grads = with_gradient(group, "MuSGD")
            if params and group["use_muon"]:
                self._orthogonal_step(group, params, grads)
            if params:
                self._plain_step(group, params, grads)
        return loss

    def _orthogonal_step(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        buckets: dict[Any, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter, gradient in zip(params, grads, strict=True):
            height, width = parameter.shape[-2:]
            factor = max(1.0, height / width) ** 0.5
            shape = parameter.shape[0], parameter[0].numel()
            buckets[shape, factor, parameter.dtype, parameter.device].append((parameter, gradient))
        for (shape, factor, *_), members in buckets.items():
            owners, gradients = [p for p, _ in members], [g for _, g in members]
            steps = orthogonal(self._directions(group["momentum"], owners, gradients, shape), group["precision"])
            parts = [part.reshape(p.shape) for p, part in zip(owners, steps, strict=True)]
            subtract(owners, parts, group["muon"] * factor * group["lr"])

    def _directions(
        self, momentum: float, params: list[Tensor], grads: list[Tensor], shape: tuple[int, int]
    ) -> Tensor:  # (count, rows, columns)
        """U of matrices of one shape; bucket by bucket, what was just written is still in the cache."""
        buffers = [self.state[p]["muon_buffer"] for p in params]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        stacked, memory = (torch.stack([t.reshape(shape) for t in tensors]) for tensors in (grads, buffers))
        return stacked.lerp_(memory, momentum)

    def _plain_step(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in params)
        sgd(
            params,
            grads,
            [self.state[p]["momentum_buffer"] for p in params],
            foreach=not fused and not isinstance(group["lr"], Tensor),
            fused=fused,
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"] * (group["sgd"] if group["use_muon"] else 1.0),
            dampening=0.0,
            nesterov=group["momentum"] > 0,
            maximize=False,
        )


def orthogonal(
    matrices: Tensor,  # (count, rows, columns)
    precision: str | None = None,
) -> Tensor:  # (count, rows, columns), of the type of the matrices
    """Five Newton-Schulz iterations for each matrix of a stack, the cheaper way round.

    Example:
        >>> wide = torch.randn(2, 4, 40, generator=torch.manual_seed(0))
        >>> torch.allclose(orthogonal(wide), orthogonalise(wide), atol=1e-5)
        True
    """
    _, rows, columns = matrices.shape
    if rows > columns:
        return orthogonal(matrices.mT.contiguous(), precision).mT
    halved = precision is None and rows * columns >= LARGE and matrices.dtype == torch.float32
    if precision is None and not matrices.is_cuda and columns >= (MUCH_WIDER if halved else WIDE) * rows:
        return _by_the_small_side(matrices)
    return orthogonalise(matrices, precision="bfloat16" if halved else precision).to(matrices.dtype)


def _by_the_small_side(matrices: Tensor) -> Tensor:
    a, b, c = NEWTON_SCHULZ
    first = matrices / torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True).clamp(min=EPSILON)
    gram = first @ first.mT
    product = None
    for k in range(ITERATIONS):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
        product = polynomial if product is None else torch.bmm(product, polynomial)
        if k + 1 < ITERATIONS:
            gram = polynomial @ gram @ polynomial
    assert product is not None
    return torch.bmm(product, first)


def musgd_groups(roles: list[ParameterRole], weight_decay: float | None) -> list[dict[str, Any]]:
    """Groups for `MuSGD`: matrices and convolution kernels, the head's too, as Ultralytics has it; then the rest."""
    matrices = [role for role in roles if role.parameter.ndim in (2, 4)]
    rest = [role for role in roles if role.parameter.ndim not in (2, 4)]
    groups = groups_of(matrices, weight_decay)
    for group in groups:
        group["use_muon"] = True
    return groups + groups_of(rest, weight_decay)
