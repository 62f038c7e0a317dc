"""Which parameters decay and which are hidden matrices: by the type of the module that owns them, never by name."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fogline.errors import unknown

_MATRIX_OWNERS = (nn.Linear, nn.Bilinear, _ConvNd, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
_NEVER_DECAYED = (nn.Embedding, nn.EmbeddingBag, _NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True, eq=False)
class ParameterRole:
    """What one trainable parameter is for.

    Attributes:
        name: qualified name as in `named_parameters()`; the first one for a shared parameter.
        parameter: the parameter itself.
        decays: whether weight decay applies.
        hidden: for a hidden matrix `(count, rows, columns)`, the stack of matrices it is; None for everything else.
        lr_scale: what the learning rate is multiplied by for it.
    """

    name: str
    parameter: nn.Parameter
    decays: bool
    hidden: tuple[int, int, int] | None
    lr_scale: float = 1.0


def parameter_roles(model: nn.Module) -> list[ParameterRole]:
    """The role of every trainable parameter, in the order of `model.named_parameters()`.

    Weights of linear, convolution, attention and recurrent modules decay; biases, normalisation layers, embeddings and
    parameters of at most one dimension do not. A bare `nn.Parameter` of another module decays when at least two of its
    dimensions are larger than one, so class tokens `(1, 1, C)` and layer scales `(C, 1, 1)` do not.

    Embeddings are left out as in minGPT (Karpathy, 2020): a row gets a gradient only when its token is in the batch but
    would shrink at every step, so that decay there measures how rare a token is. A weight shared between an embedding
    and the output layer counts as an embedding.

    A hidden matrix is the weight of a linear module other than the last one, or a convolution kernel flattened to
    (outputs, inputs times window); grouped convolutions and the query, key and value of attention are stacks of
    several matrices.

    Raises:
        ValueError: the model has no trainable parameter, or a lazy module has not seen its first batch.
    """
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for local, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append((module, local))
    head = _last_linear(model)
    roles = []
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(
                f"expected a model whose shapes are known, received the uninitialised parameter {name!r}: "
                "pass one batch through its lazy modules first"
            )
        if parameter.requires_grad:
            used_in = owners[id(parameter)]
            decays = all(_decays(module, parameter) for module, _ in used_in)
            is_head = any(module is head for module, _ in used_in)
            hidden = _hidden_shape(*used_in[0], parameter) if decays and not is_head else None
            roles.append(ParameterRole(name, parameter, decays, hidden))
    if not roles:
        raise ValueError(
            "expected a model with at least one trainable parameter, received one with none: "
            "set requires_grad=True on what shall be trained"
        )
    return roles


def groups_of(roles: list[ParameterRole], weight_decay: float | None) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimizer: by what decays and what does not, and by what multiplies the rate.

    Args:
        roles: of the parameters, as `parameter_roles` gives them.
        weight_decay: of what decays; with None or 0 the groups say nothing about decay.

    Returns:
        Groups with the keys `params`, `names` (same order), `lr_scale` (`set_lr` multiplies by it) and, when there is
        decay, `weight_decay`.

    Example:
        >>> groups = groups_of(parameter_roles(nn.Linear(2, 1)), 0.1)
        >>> [(group["names"], group["weight_decay"]) for group in groups]
        [(['weight'], 0.1), (['bias'], 0.0)]
    """
    groups = []
    for scale in dict.fromkeys(role.lr_scale for role in roles):
        scaled = [role for role in roles if role.lr_scale == scale]
        if not weight_decay:
            groups.append(_group(scaled, scale))
            continue
        for decay, part in (
            (weight_decay, [role for role in scaled if role.decays]),
            (0.0, [role for role in scaled if not role.decays]),
        ):
            groups += [_group(part, scale) | {"weight_decay": decay}] if part else []
    return groups


def _group(roles: list[ParameterRole], scale: float) -> dict[str, Any]:
    return {"params": [role.parameter for role in roles], "names": [role.name for role in roles], "lr_scale": scale}


def scaled_roles(roles: list[ParameterRole], lr_scale: Mapping[str, float]) -> list[ParameterRole]:
    """The roles with what multiplies their rate: of the names that a parameter's begins with, the longest counts.

    Raises:
        ValueError: a name that no parameter begins with.

    Example:
        >>> roles = scaled_roles(parameter_roles(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))), {"1": 10.0})
        >>> [(role.name, role.lr_scale) for role in roles if role.decays]
        [('0.weight', 1.0), ('1.weight', 10.0)]
    """
    for prefix in lr_scale:
        if not any(_begins(role.name, prefix) for role in roles):
            known = {".".join(role.name.split(".")[:k]) for role in roles for k in range(1, role.name.count(".") + 2)}
            raise unknown("module or parameter in lr_scale", prefix, sorted(known))
    return [
        replace(role, lr_scale=lr_scale[max(fitting, key=len)]) if fitting else role
        for role in roles
        for fitting in [[prefix for prefix in lr_scale if _begins(role.name, prefix)]]
    ]


def _begins(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def _decays(module: nn.Module, parameter: nn.Parameter) -> bool:
    if isinstance(module, _NEVER_DECAYED):
        return False
    if isinstance(module, _MATRIX_OWNERS):
        return parameter.ndim >= 2
    return sum(size > 1 for size in parameter.shape) >= 2


def _last_linear(model: nn.Module) -> nn.Linear | None:
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return linears[-1] if linears else None


def _hidden_shape(module: nn.Module, local: str, parameter: nn.Parameter) -> tuple[int, int, int] | None:
    if isinstance(module, nn.MultiheadAttention) and local == "in_proj_weight":
        return 3, parameter.shape[0] // 3, parameter.shape[1]
    if isinstance(module, nn.Linear) or (isinstance(module, nn.MultiheadAttention) and parameter.ndim == 2):
        return 1, parameter.shape[0], parameter.shape[1]
    if isinstance(module, _ConvNd):
        count = 1 if isinstance(module, _ConvTransposeNd) else module.groups
        return count, parameter.shape[0] // count, math.prod(parameter.shape[1:])
    return None
