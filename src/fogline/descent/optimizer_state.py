"""The state of any torch optimizer as named tensors and JSON values: exact, nothing pickled."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

State = dict[str, Any]
Creator = Callable[[Tensor, Mapping[str, Any], Mapping[str, Any]], State]


def state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors of an optimizer's state under flat names, `"layer.weight/exp_avg"`; lists get a number behind, and
    tensors made of others, such as those of 8 bits, the names of these (`"layer.weight/exp_avg/codes"`).

    The tensors are the live ones, not copies. What is not a tensor is in `state_scalars`.

    Example:
        >>> from fogline.descent.optimizers import build
        >>> optimizer = build(torch.nn.Linear(2, 1), "adamw", 0.1)
        >>> init_state(optimizer)
        True
        >>> sorted(state_tensors(optimizer))[:3]
        ['bias/exp_avg', 'bias/exp_avg_sq', 'bias/step']
    """
    tensors: dict[str, Tensor] = {}
    for name, state in _named_states(optimizer):
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors |= {f"{name}/{key}{part}": inner for part, inner in _inner(value).items()}
            elif isinstance(value, list | tuple):
                tensors |= {f"{name}/{key}/{i}": item for i, item in enumerate(value) if isinstance(item, Tensor)}
    return tensors


def state_scalars(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What is in the state besides tensors, as values that JSON keeps exactly.

    Floats that JSON has no word for become `{"float": "inf"}`; a list becomes `{"list": [...]}` in which
    `{"tensor": i}` stands for the entry `name/key/i` of `state_tensors`.

    Raises:
        TypeError: a state value that is neither a tensor, a number, a string, None nor a list of these.
    """
    return {
        f"{name}/{key}": _encode(value, f"{name}/{key}")
        for name, state in _named_states(optimizer)
        for key, value in state.items()
        if not isinstance(value, Tensor)
    }


def load_state_tensors(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any] | None = None
) -> None:
    """Put back what `state_tensors` and `state_scalars` gave; every bit, dtype and device is as it was.

    Where the optimizer has a tensor of the same shape and dtype already it is written in place, so that a compiled step
    or a captured graph goes on with it. Rates and other settings of the groups belong to the recipe: not touched.

    Raises:
        ValueError: state for a parameter that this optimizer does not have.
    """
    scalars = scalars or {}
    if not tensors and not scalars:
        optimizer.state.clear()
        return
    init_state(optimizer)
    loaded: dict[str, State] = {}
    owners = dict(_named_parameters(optimizer))
    for path, saved in tensors.items():
        name, key = _owner(path, owners)
        key, _, part = key.partition("/")
        existing = optimizer.state.get(owners[name], {}).get(key)
        if not part:
            loaded.setdefault(name, {})[key] = _placed(saved, existing, owners[name])
        elif isinstance(existing, Tensor):  # made of others; the parts of a list are put together below
            getattr(existing, part).copy_(saved)
            loaded.setdefault(name, {})[key] = existing
    for path, value in scalars.items():
        name, key = _owner(path, owners)
        loaded.setdefault(name, {})[key] = _decode(value, path, tensors, owners[name])
    for name, parameter in owners.items():
        if name in loaded:
            optimizer.state[parameter] = loaded[name]
        else:
            optimizer.state.pop(parameter, None)


def init_state(optimizer: torch.optim.Optimizer) -> bool:
    """Create now the state that `step` would create at its first call, without a step.

    `k` steps after this give bitwise the weights of `k` steps without it. Methods that read the learning rate when
    their state is made (ASGD, Rprop) read it now: set the rate of the first step before. State that exists is kept.

    Returns:
        False where the state cannot be made in advance (LBFGS, SGD with dampening, classes of other people); then
        nothing is changed.
    """
    own = getattr(optimizer, "init_state", None)
    if callable(own):
        own()
        return True
    make = _eight_bit(optimizer) if in_eight_bits(optimizer) else _CREATORS.get(type(optimizer))
    if make is None or (make is _sgd and any(g["momentum"] and g["dampening"] for g in optimizer.param_groups)):
        return False
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not optimizer.state[parameter]:
                optimizer.state[parameter] = make(parameter, group, optimizer.defaults)
    return True


def in_eight_bits(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it is torchao's, which keeps its state in few bits and compiles its step by itself."""
    return type(optimizer).__module__.startswith("torchao.") and hasattr(optimizer, "_new_buffer")


def live_tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The tensors of its state, those of 8 bits as what they are made of."""
    values = (value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor))
    return [inner for value in values for inner in _inner(value).values()]


def _inner(value: Tensor) -> dict[str, Tensor]:
    """What a tensor is made of by the end of its name: itself, or its parts."""
    flatten = getattr(value, "__tensor_flatten__", None)
    if flatten is None or isinstance(value, torch.nn.Parameter):
        return {"": value}
    return {f"/{name}": getattr(value, name) for name in flatten()[0]}


def _eight_bit(optimizer: Any) -> Creator:
    def make(parameter: Tensor, group: Mapping[str, Any], _: Mapping[str, Any]) -> State:
        kept = {"exp_avg": True, "exp_avg_sq": False} | ({"max_exp_avg_sq": False} if group["amsgrad"] else {})
        step: State = {"step": torch.tensor(0.0)}
        return step | {key: optimizer._new_buffer(parameter, signed) for key, signed in kept.items()}

    return make


def _step(parameter: Tensor, group: Mapping[str, Any]) -> Tensor:
    on_device = group.get("capturable") or group.get("fused")
    fused_or_default = torch.float32 if group.get("fused") else _counter_dtype()
    return torch.zeros((), dtype=fused_or_default, device=parameter.device if on_device else "cpu")


def _counter_dtype() -> torch.dtype:
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32


def _sgd(parameter: Tensor, group: Mapping[str, Any], _: Mapping[str, Any]) -> State:
    # -0.0 is the one value that added to any gradient, +0.0 and -0.0 included, gives that gradient's own bits.
    return {"momentum_buffer": torch.full_like(parameter, -0.0)} if group["momentum"] else {}


def _adam(parameter: Tensor, group: Mapping[str, Any], _: Mapping[str, Any]) -> State:
    keys = ("exp_avg", "exp_avg_sq") + (("max_exp_avg_sq",) if group["amsgrad"] else ())
    return {"step": _step(parameter, group)} | _zeros(parameter, *keys)


def _nadam(parameter: Tensor, group: Mapping[str, Any], _: Mapping[str, Any]) -> State:
    step = _step(parameter, group)
    return {"step": step, "mu_product": torch.ones_like(step)} | _zeros(parameter, "exp_avg", "exp_avg_sq")


def _rmsprop(parameter: Tensor, group: Mapping[str, Any], _: Mapping[str, Any]) -> State:
    keys = ("momentum_buffer",) * (group["momentum"] > 0) + ("grad_avg",) * bool(group["centered"])
    return {"step": _step(parameter, group)} | _zeros(parameter, "square_avg", *keys)


def _adagrad(parameter: Tensor, group: Mapping[str, Any], defaults: Mapping[str, Any]) -> State:
    initial = defaults["initial_accumulator_value"]
    return {"step": _step(parameter, group), "sum": torch.full_like(parameter, initial)}


def _asgd(parameter: Tensor, group: Mapping[str, Any], _: Mapping[str, Any]) -> State:
    step = torch.zeros((), dtype=_counter_dtype(), device=parameter.device)
    eta = torch.full_like(step, float(group["lr"]))
    return {"step": step, "eta": eta, "mu": torch.ones_like(step)} | _zeros(parameter, "ax")


def _rprop(parameter: Tensor, group: Mapping[str, Any], _: Mapping[str, Any]) -> State:
    sizes = torch.full_like(parameter, float(group["lr"]))
    return {"step": _step(parameter, group)} | _zeros(parameter, "prev") | {"step_size": sizes}


def _zeros(parameter: Tensor, *keys: str) -> State:
    return {key: torch.zeros_like(parameter, memory_format=torch.preserve_format) for key in keys}


def _stepped(*keys: str) -> Creator:
    """A counter, and zeros like the parameter."""
    return lambda parameter, group, _: {"step": _step(parameter, group)} | _zeros(parameter, *keys)


_CREATORS: dict[type[torch.optim.Optimizer], Creator] = {
    torch.optim.SGD: _sgd,
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adam,
    torch.optim.NAdam: _nadam,
    torch.optim.RAdam: _stepped("exp_avg", "exp_avg_sq"),
    torch.optim.RMSprop: _rmsprop,
    torch.optim.Adagrad: _adagrad,
    torch.optim.Adadelta: _stepped("square_avg", "acc_delta"),
    torch.optim.Adamax: _stepped("exp_avg", "exp_inf"),
    torch.optim.ASGD: _asgd,
    torch.optim.Rprop: _rprop,
}


def _named_parameters(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    position = 0
    for group in optimizer.param_groups:
        names = group.get("names") or [str(position + i) for i in range(len(group["params"]))]
        yield from zip(names, group["params"], strict=True)
        position += len(group["params"])


def _named_states(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, State]]:
    return ((name, optimizer.state[p]) for name, p in _named_parameters(optimizer) if p in optimizer.state)


def _owner(path: str, owners: Mapping[str, Tensor]) -> tuple[str, str]:
    name, _, key = path.partition("/")
    if name not in owners:
        known = ", ".join(list(owners)[:5])
        raise ValueError(
            f"expected optimizer state for this model's parameters ({known}, ...), received {path!r}: "
            "was it saved from another model?"
        )
    return name, key


def _placed(saved: Tensor, existing: Any, parameter: Tensor) -> Tensor:
    if isinstance(existing, Tensor):
        if existing.shape == saved.shape and existing.dtype == saved.dtype:
            return existing.copy_(saved)
        return saved.to(existing.device, copy=True)
    return saved.to(parameter.device, copy=True)


def _encode(value: Any, path: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return {"list": [{"tensor": i} if isinstance(v, Tensor) else _encode(v, path) for i, v in enumerate(value)]}
    raise TypeError(
        f"expected optimizer state made of tensors, numbers, strings, None and lists of these, received "
        f"{type(value).__name__} at {path!r}: this optimizer cannot be saved in a checkpoint"
    )


def _decode(value: Any, path: str, tensors: Mapping[str, Tensor], parameter: Tensor) -> Any:
    if not isinstance(value, dict):
        return value
    if "float" in value:
        return float(value["float"])
    if "tensor" in value:
        return tensors[f"{path}/{value['tensor']}"].to(parameter.device, copy=True)
    return [_decode(item, path, tensors, parameter) for item in value["list"]]
