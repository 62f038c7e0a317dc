"""The whole step as one graph: forward, ``autograd.grad`` and update, traced once, compiled and called directly.

``make_fx`` records forward, gradient and PyTorch's own optimizer as tensor operations; a second pass makes them
functional; Inductor compiles the result, which is called without Dynamo's guards (they cost more than a small step).
The compiled program updates weights, buffers and optimizer state in place and returns the signals and the gradients.
"""

from __future__ import annotations

import importlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.stateless import _reparametrize_module  # functional_call without its signature

from fogline.data.source import Batch, leaves
from fogline.descent.clipping import Clipping, memory_of
from fogline.descent.objective import Objective
from fogline.descent.optimizers import init_state
from fogline.descent.shortcuts import bare_step
from fogline.record.columns import Columns, shown_by
from fogline.record.probes import products

# What tracing or compiling a model that cannot be compiled raises, a missing C++ compiler included.
COMPILE_ERRORS = (
    RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError, OSError, ImportError,
)  # fmt: skip

_SMALL_PRODUCT = 1 << 14
_SMALL_STATE = 1 << 18


class CannotCompileError(Exception):
    """The step cannot be one graph; the text says why."""


@dataclass
class Program:
    """A compiled step, or several in one call.

    Attributes:
        call: Inductor's function of a flat list of tensors.
        state: the tensors that stay: weights, buffers, optimizer state, clip memory.
        chunk: optimizer steps a call.
        random: whether the graph draws random numbers.
        seconds: what tracing and compiling took.
    """

    call: Callable[[list[Any]], Any]
    state: list[Tensor]
    chunk: int
    random: bool
    seconds: float

    @property
    def rate_type(self) -> torch.dtype:
        """The type of the learning rates it takes."""
        return _real_type(self.state)

    def __call__(self, batch: Batch, lr: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """Take the step(s).

        Args:
            batch: the rows of all steps of the call, one after another.
            lr: shape (chunk,).

        Returns:
            Signals of shape (chunk, 2), loss and gradient norm of each step, and of a single step the gradients, of
            several the sums of :func:`fogline.record.probes.products` over the last two; where examples are recorded
            their columns come before these, shape (columns, rows). The next call may overwrite them.
        """
        rows = batch if type(batch) is tuple and type(batch[0]) is type(batch[-1]) is Tensor else leaves(batch)
        signals, *rest = self.call([*self.state, *rows, lr])
        return signals, rest


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
    lr = torch.zeros(recorder.rates, dtype=_real_type(state), device=state[0].device)
    try:
        # The Python dispatcher names batch normalisation for what it does: plain `native_batch_norm` changes the
        # running statistics behind the back of the second pass.
        with _compiling_flag(), enable_python_dispatcher(), torch.random.fork_rng(devices=[]):
            plain = make_fx(recorder, tracing_mode="fake")(*state, *leaves(batch), lr)
    except COMPILE_ERRORS as error:
        raise CannotCompileError(f"cannot be traced: {_first_line(error)}") from error
    return Trace(plain, state, recorder.trained, recorder.rates, time.perf_counter() - started)


def compile_steps(traced: Trace, batch: Batch, chunk: int = 1) -> Program:
    """Compile ``chunk`` steps into one call.

    Args:
        batch: the batch of one step; the call takes ``chunk`` times its rows.

    Raises:
        CannotCompileError: Inductor refused, or there is no C++ compiler.
    """
    from torch._guards import TracingContext, detect_fake_mode, tracing
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._subclasses import FakeTensorMode

    importlib.import_module("torch._inductor.lowering")  # the direct route does not import it by itself
    started = time.perf_counter()
    rows = [torch.cat([leaf] * chunk) if chunk > 1 else leaf for leaf in leaves(batch)]
    lr = torch.zeros(chunk * traced.rates, dtype=_real_type(traced.state), device=traced.state[0].device)
    arguments = [*traced.state, *rows, lr]
    try:
        graph = _functional(_repeated(traced, chunk), arguments)
        mode = detect_fake_mode(arguments) or FakeTensorMode()
        # The glue between kernels costs less in C++ than in Python, and longer to compile: small nets gain.
        small = arguments[0].device.type == "cpu" and sum(value.numel() for value in traced.state) < _SMALL_STATE
        with (
            tracing(TracingContext(mode)),
            # Random numbers come from the default generator, seeded for each step, as in the eager step.
            config.patch(fallback_random=True, size_asserts=False),
            _buffers_on_the_stack() if small else nullcontext(),
        ):
            fakes = [mode.from_tensor(value) for value in arguments]
            compiled = compile_fx_inner(graph, fakes, cpp_wrapper=small)
        # The wrapper around it looks for profilers and caches; that costs more than a small step.
        call = getattr(compiled, "current_callable", None) or compiled
    except COMPILE_ERRORS as error:
        raise CannotCompileError(f"cannot be compiled: {_first_line(error)}") from error
    random = any(_draws(node) for node in graph.graph.nodes)
    seconds = traced.seconds + time.perf_counter() - started
    return Program(call, traced.state, chunk, random, seconds)


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
        self.real_type = _real_type(self.state)

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


def _repeated(traced: Trace, chunk: int) -> Callable[..., list[Tensor]]:
    if chunk == 1:
        return traced.graph
    held, trained = len(traced.state), traced.trained

    def steps(*arguments: Tensor) -> list[Tensor]:
        state, rows, lr = arguments[:held], arguments[held:-1], arguments[-1]
        sizes = [leaf.shape[0] // chunk for leaf in rows]
        signals, weights, gradients, columns = [], [], [], []
        for k in range(chunk):
            parts = [leaf[k * n : (k + 1) * n] for leaf, n in zip(rows, sizes, strict=True)]
            weights.append([value.clone() for value in state[:trained]])
            one, *gradient = traced.graph(*state, *parts, lr[k : k + 1])
            signals.append(one)
            if traced.columns:
                columns.append(gradient.pop(0))
            gradients.append(gradient)
        told = [torch.cat(signals), *([torch.cat(columns, 1)] if columns else [])]
        if len(gradients[-1]) != trained:
            return told
        first, second = weights[-2], weights[-1]
        moved = [after - before for after, before in zip(state[:trained], second, strict=True)]
        first_moved = [after - before for after, before in zip(second, first, strict=True)]
        return [*told, products(second, gradients[-1], moved, gradients[-2], first_moved)]

    return steps


def _functional(function: Callable[..., Any], arguments: list[Tensor]) -> fx.GraphModule:
    """The graph without mutation but for copies into its arguments at the end, in Inductor's operations."""
    from torch._inductor.decomposition import select_decomp_table
    from torch.func import functionalize
    from torch.fx.experimental.proxy_tensor import make_fx

    aten = torch.ops.aten
    table: dict[Any, Any] = {**select_decomp_table(), aten.mm.default: _product, aten.addmm.default: _sum_product}
    traced: fx.GraphModule = make_fx(
        functionalize(function, remove="mutations"), decomposition_table=table, tracing_mode="fake"
    )(*arguments)
    for node in list(traced.graph.nodes):
        if node.target in (aten.detach.default, aten.alias.default):
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced


def _product(a: Tensor, b: Tensor) -> Any:
    """A product too small for a library call becomes a loop that fuses with its neighbours."""
    if a.shape[0] * a.shape[1] * b.shape[1] > _SMALL_PRODUCT:
        return NotImplemented
    return (a.unsqueeze(-1) * b.unsqueeze(0)).sum(1)


def _sum_product(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    product = _product(a, b)
    return NotImplemented if product is NotImplemented or (beta, alpha) != (1, 1) else c + product


def _draws(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded in tags


def rebuilt(batch: Batch, values: Iterator[Tensor]) -> Batch:
    from fogline.data.source import map_tree

    return map_tree(lambda _: next(values), batch)


def _real_type(tensors: Sequence[Tensor]) -> torch.dtype:
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


@contextmanager
def _buffers_on_the_stack() -> Iterator[None]:
    """In C++, let arrays on the stack be the buffers between kernels; making tensors costs several times a small step.

    Inductor does so where they are small and no kernel is a library's. It chooses between its two writers of C++ once a
    process: the choice is put back for whoever compiles next.
    """
    from torch._inductor import config
    from torch._inductor.codegen import common
    from torch._inductor.codegen.cpp_wrapper_cpu_array_ref import CppWrapperCpuArrayRef

    common.init_backend_registration()
    before = common.device_codegens["cpu"]
    common.device_codegens["cpu"] = replace(before, cpp_wrapper_codegen=CppWrapperCpuArrayRef)
    try:
        with config.patch({"aot_inductor.allow_stack_allocation": True}):
            yield
    finally:
        common.device_codegens["cpu"] = before


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
