"""A step recorded as a graph of plain tensor operations: forward, ``autograd.grad`` and PyTorch's own optimizer."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.stateless import _reparametrize_module  # functional_call without its signature

from fogline.data.source import Batch, leaves, map_tree
from fogline.descent.clipping import Clipping, memory_of
from fogline.descent.objective import Objective
from fogline.descent.optimizers import init_state
from fogline.descent.shortcuts import bare_step
from fogline.record.columns import Columns, shown_by

# What tracing or compiling a model that cannot be compiled raises, a missing C++ compiler included.
COMPILE_ERRORS = (
    RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError, OSError, ImportError,
)  # fmt: skip


class CannotCompileError(Exception):
    """The step cannot be one graph; the text says why."""


@dataclass
class Trace:
    """One step as a graph of plain tensor operations."""

    graph: fx.GraphModule
    state: list[Tensor]  # the trained weights first
    trained: int
    rates: int
    seconds: float
    columns: bool = False  # whether those of the examples come after the signals


class Recorder(Protocol):
    """A step as a function of flat tensors: its state, the leaves of the batch and the learning rates.

    Attributes:
        state: the tensors that stay, the trained weights first; the function writes the new values into them.
        trained: how many weights are trained.
        rates: learning rates that the step takes.
    """

    state: list[Tensor]
    trained: int
    rates: int

    def __call__(self, *arguments: Tensor) -> list[Tensor]: ...


def trace(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    clipping: Clipping | None,
    batch: Batch,
    columns: Columns | None = None,
) -> Trace:
    """Record one step on a batch of this shape. Nothing is computed and nothing changed.

    Args:
        objective, optimizer, clipping: of the step.
        batch: of the right shapes.
        columns: what is to be known of each example, if anything.

    Raises:
        CannotCompileError: the model, the loss or the optimizer cannot be recorded.
    """
    if not init_state(optimizer):
        raise CannotCompileError(f"the state of {type(optimizer).__name__} cannot be made before its first step")
    traced = record(_Recorder(objective, optimizer, clipping, batch, columns), batch)
    return replace(traced, columns=columns is not None)


def record(recorder: Recorder, batch: Batch) -> Trace:
    """:func:`trace` of a step that is written down already.

    Raises:
        CannotCompileError: as there.
    """
    from torch._dispatch.python import enable_python_dispatcher
    from torch.fx.experimental.proxy_tensor import make_fx

    started = time.perf_counter()
    state = recorder.state
    lr = torch.zeros(recorder.rates, dtype=real_type(state), device=state[0].device)
    try:
        # The Python dispatcher names batch normalisation for what it does: plain `native_batch_norm` changes the
        # running statistics behind the back of the second pass.
        with _compiling_flag(), enable_python_dispatcher(), torch.random.fork_rng(devices=[]):
            plain = make_fx(recorder, tracing_mode="fake")(*state, *leaves(batch), lr)
    except COMPILE_ERRORS as error:
        raise CannotCompileError(f"cannot be traced: {first_line(error)}") from error
    return Trace(plain, state, recorder.trained, recorder.rates, time.perf_counter() - started)


class _Recorder:
    """The step as a function of flat tensors, written with the real objective and the real optimizer."""

    def __init__(
        self,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        clipping: Clipping | None,
        batch: Batch,
        columns: Columns | None,
    ) -> None:
        self.objective, self.clipping, self.batch, self.columns = objective, clipping, batch, columns
        model = objective.model
        self.weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
        self.held = {**frozen, **dict(model.named_buffers())}
        self.optimizer = StandIn(optimizer, list(self.weights.values()))
        self.state: list[Tensor] = [
            *(p.detach() for p in self.weights.values()),
            *(value.detach() for value in self.held.values()),
            *self.optimizer.slots,
            *memory_of(clipping),
        ]
        self.trained, self.rates = len(self.weights), 1
        self.real_type = real_type(self.state)

    def __call__(self, *arguments: Tensor) -> list[Tensor]:
        taken = iter(arguments)
        weights = [next(taken) for _ in self.weights]
        held = [next(taken) for _ in self.held]
        slots = [next(taken) for _ in self.optimizer.slots]
        memory = next(taken) if memory_of(self.clipping) else None
        batch = rebuilt(self.batch, taken)
        lr = next(taken)[0]
        held_before = [value.clone() for value in held]
        leaf_weights = [weight.detach().requires_grad_() for weight in weights]
        loss, columns = self._loss(leaf_weights, held, batch)
        gradients = torch.autograd.grad(loss, leaf_weights, allow_unused=True)
        used = [gradient for gradient in gradients if gradient is not None]
        with torch.no_grad():
            norm = torch.stack([gradient.square().sum() for gradient in used]).sum().sqrt()
            finite = torch.isfinite(norm) & torch.isfinite(loss)
            if self.clipping is not None:
                used = self.clipping.functional(used, norm, memory, finite)
            clipped = iter(used)
            # Nesterov's foreach step writes into the gradients it is given.
            given = [None if g is None else next(clipped).clone() for g in gradients]
            before = [value.clone() for value in (*weights, *slots)]
            self.optimizer.step(weights, slots, given, lr)
            for value, old in zip((*weights, *slots, *held), (*before, *held_before), strict=True):
                value.copy_(torch.where(finite, value, old))
            signals = torch.stack([loss.detach().to(self.real_type), norm.to(self.real_type)])
        return [signals.unsqueeze(0), *columns, *(gradient for gradient in gradients if gradient is not None)]

    def _loss(self, weights: list[Tensor], held: list[Tensor], batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """The loss, and the columns of the examples where they are wanted."""
        model = self.objective.model
        values = {**dict(zip(self.weights, weights, strict=True)), **dict(zip(self.held, held, strict=True))}
        with torch.enable_grad(), _reparametrize_module(model, values, tie_weights=True):
            if self.columns is None:
                return self.objective(batch), []
            with self.columns.watching() as hidden:
                forward = self.objective.forward(batch)
        with torch.no_grad():
            shown = shown_by(forward, batch, hidden[-1] if hidden else None)
            return forward.loss, [self.columns(shown)]


class StandIn:
    """PyTorch's own optimizer within a traced step.

    Attributes:
        slots: the tensors of its state, which must have been made.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
        self.optimizer, self.parameters = optimizer, parameters
        self._named = [
            (parameter, key)
            for parameter in parameters
            for key, value in optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        ]
        self.slots: list[Tensor] = [optimizer.state[parameter][key] for parameter, key in self._named]

    def step(
        self, weights: list[Tensor], slots: list[Tensor], gradients: Sequence[Tensor | None], lr: Tensor | float
    ) -> None:
        """Its step, on stand-ins for weights and state."""
        stand_in: dict[Tensor, Tensor] = dict(zip(self.parameters, weights, strict=True))
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        state: defaultdict[Tensor, Any] = defaultdict(dict)
        for parameter, weight in stand_in.items():
            state[weight] = dict(self.optimizer.state.get(parameter, {}))
        for (parameter, key), value in zip(self._named, slots, strict=True):
            state[stand_in[parameter]][key] = value
        shadow = object.__new__(type(self.optimizer))
        shadow.__dict__ = dict(self.optimizer.__dict__)
        shadow.state = state
        shadow.param_groups = [_traceable(group, stand_in, lr) for group in self.optimizer.param_groups]
        bare_step(shadow)()
        for weight in weights:
            weight.grad = None


def _traceable(group: dict[str, Any], stand_in: dict[Tensor, Tensor], lr: Tensor | float) -> dict[str, Any]:
    changed = {**group, "params": [stand_in[p] for p in group["params"] if p in stand_in]}
    changed["lr"] = lr * group.get("lr_scale", 1.0)
    tensors_only = {"fused": False, "foreach": True, "capturable": True}
    return changed | {key: value for key, value in tensors_only.items() if key in group}


def rebuilt(batch: Batch, values: Iterator[Tensor]) -> Batch:
    """The batch with these tensors, one after another, in the place of its own."""
    return map_tree(lambda _: next(values), batch)


def real_type(tensors: Sequence[Tensor]) -> torch.dtype:
    """What rates and signals are computed in beside these tensors."""
    return torch.float64 if any(value.dtype == torch.float64 for value in tensors) else torch.float32


@contextmanager
def _compiling_flag() -> Iterator[None]:
    """Let PyTorch's optimizers take their tensor-only paths, as they do under torch.compile."""
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before


def first_line(error: BaseException) -> str:
    """The kind of an error and what it says first."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
