"""The whole step as one graph: forward, ``autograd.grad`` and update, traced once, compiled and called directly.

``make_fx`` records forward, gradient and PyTorch's own optimizer as tensor operations (``recorded.py``); a second pass
makes them functional; Inductor compiles the result, which is called without Dynamo's guards (they cost more than a
small step). The compiled program updates weights, buffers and optimizer state in place and returns the signals and the
gradients.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from fogline.data.source import Batch, leaves
from fogline.descent.recorded import COMPILE_ERRORS, CannotCompileError, Trace, first_line, real_type
from fogline.descent.recorded import trace as trace
from fogline.record.probes import products

_SMALL_PRODUCT = 1 << 14
_SMALL_STATE = 1 << 18


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
        return real_type(self.state)

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
    lr = torch.zeros(chunk * traced.rates, dtype=real_type(traced.state), device=traced.state[0].device)
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
        raise CannotCompileError(f"cannot be compiled: {first_line(error)}") from error
    random = any(_draws(node) for node in graph.graph.nodes)
    seconds = traced.seconds + time.perf_counter() - started
    return Program(call, traced.state, chunk, random, seconds)


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
