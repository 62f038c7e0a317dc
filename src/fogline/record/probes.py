"""Signals that cost something, spaced so that watching stays inside a share of the time.

A probe spans two successive steps: with ``w0 -> w1 -> w2``, steps ``d1 = w1 - w0``, ``d2 = w2 - w1`` and the gradients
``g1`` at ``w0``, ``g2`` at ``w1`` it measures, for the whole and for each layer,

- update norm ``|d2|`` and update ratio ``|d2| / |w1|``,
- step cosine ``d1 . d2 / (|d1| |d2|)``: 1 is a straight walk, negative is zig-zag,
- overshoot ``alpha = -(g2 . d1) / (g1 . d1)``: -1 is an unchanged slope (a short step), 0 a step to the bottom of the
  line, above 1 the far wall is steeper than the near one; on a quadratic it is ``lr * lambda - 1``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fogline.record.hook import transformed

_ROWS_OBSERVED = 32

Rows = list[tuple[int, str, float, float, float, float | None, float | None]]


@dataclass(frozen=True)
class Probed:
    """What one probe measured: the whole, and rows of the table ``layers``."""

    step: int
    update_norm: float
    update_ratio: float
    step_cosine: float | None
    overshoot: float | None
    layers: Rows


@dataclass
class Budget:
    """Keeps what watching costs within a share of the time, by timing every piece of it.

    Attributes:
        share: the most it may cost, as a share of the time since the start.
        spent: seconds spent so far.
        probing: those of them that probes took.
        saved: seconds that cheap probes leave for a dear one.
    """

    share: float
    spent: float = 0.0
    probing: float = 0.0
    saved: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def affords(self, seconds: float) -> bool:
        """Whether something that takes this long may be done now."""
        return self.spent + seconds + self.saved <= self.allowed()

    def allowed(self) -> float:
        """Seconds that may have been spent by now."""
        return self.share * (time.perf_counter() - self.started)

    def measured_share(self) -> float:
        """What watching has cost so far, as a share of the time."""
        return self.spent / max(1e-9, time.perf_counter() - self.started)


class Probe:
    """Measures two successive steps whenever the budget affords it.

    Args:
        parameters: the trained ones, with their names.
        activations: called with no argument, gives the rms and the share of zeros of each module's output on a few
            examples, or None where that is not possible.
    """

    def __init__(
        self,
        names: Sequence[str],
        parameters: Sequence[nn.Parameter],
        budget: Budget,
        activations: Callable[[], dict[str, tuple[float, float]]] | None = None,
    ) -> None:
        self.names, self.parameters, self.budget = list(names), list(parameters), budget
        self.activations = activations
        self.cost = 0.0
        self._before: list[Tensor] | None = None
        self._first: tuple[list[Tensor], list[Tensor]] | None = None
        self._window_cost = 0.0
        self._windows = 0

    @property
    def open(self) -> bool:
        """Whether the coming step is the second of a window."""
        return self._first is not None

    def affords(self) -> bool:
        """Whether a window may begin: the first always, another when the last one's cost fits in the budget."""
        return self._windows == 0 or self.budget.affords(self.cost)

    def before(self) -> None:
        """To be called before each of the two steps of a window, and :meth:`after` or :meth:`cancel` after it."""
        started = time.perf_counter()
        self._before = [p.detach().clone() for p in self.parameters]
        self.charge(started)

    def after(self, step: int, gradients: Sequence[Tensor]) -> Probed | None:
        """To be called after a step that was taken; gives the measurement at the end of a window."""
        started = time.perf_counter()
        assert self._before is not None
        before, self._before = self._before, None
        if len(gradients) != len(self.parameters):
            self._close()  # parameters without a gradient: the products below would not line up
            return None
        moved = torch._foreach_sub([p.detach() for p in self.parameters], before)
        if self._first is None:
            self._first = (list(moved), [g.detach().clone() for g in gradients])
            self.charge(started)
            return None
        first_moved, first_gradients = self._first
        table = products(before, gradients, moved, first_gradients, first_moved)
        self.charge(started)
        return self.read(step, table)

    def cancel(self) -> None:
        """The step was refused: what it would have measured is void."""
        self._before = None
        self._close()

    def _close(self) -> None:
        self._first = None
        self._windows += 1
        self.cost, self._window_cost = self._window_cost, 0.0

    def charge(self, started: float) -> None:
        """Count the time since ``started`` (of ``perf_counter``) as spent on this window."""
        seconds = time.perf_counter() - started
        self.budget.spent += seconds
        self.budget.probing += seconds
        self._window_cost += seconds

    def read(self, step: int, table: Tensor) -> Probed:
        """The measurement behind the sums of :func:`products`; one transfer from the device."""
        started = time.perf_counter()
        w, g, d, turn, first, slope, first_slope = table.tolist()
        lengths = (sum(first) * sum(d)) ** 0.5
        probed = Probed(
            step,
            update_norm=sum(d) ** 0.5,
            update_ratio=(sum(d) / sum(w)) ** 0.5 if sum(w) > 0 else 0.0,
            step_cosine=sum(turn) / lengths if lengths > 0 else None,
            overshoot=-sum(slope) / sum(first_slope) if sum(first_slope) != 0 else None,
            layers=self._layers(step, w, g, d),
        )
        self.charge(started)
        self._close()
        return probed

    def _layers(self, step: int, *squares: list[float]) -> Rows:
        """A row for each module that holds parameters, from the squared norms of weights, gradients and updates."""
        outputs = self.activations() if self.activations is not None else {}
        sums: dict[str, tuple[float, ...]] = {}
        for name, *found in zip(self.names, *squares, strict=True):
            layer = name.rpartition(".")[0]
            before = sums.get(layer, (0.0, 0.0, 0.0))
            sums[layer] = tuple(a + b for a, b in zip(before, found, strict=True))
        return [
            (step, layer, weight**0.5, gradient**0.5, update**0.5, *outputs.get(layer, (None, None)))
            for layer, (weight, gradient, update) in sums.items()
        ]


def products(
    weights: Sequence[Tensor],  # w1
    gradients: Sequence[Tensor],  # g2, at w1
    moved: Sequence[Tensor],  # d2
    first_gradients: Sequence[Tensor],  # g1, at w0
    first_moved: Sequence[Tensor],  # d1
) -> Tensor:
    """The sums of products a probe needs, shape (7, parameters), float64.

    Row by row: |w1|^2, |g2|^2, |d2|^2, d1.d2, |d1|^2, g2.d1, g1.d1.
    """
    pairs = (
        (weights, weights),
        (gradients, gradients),
        (moved, moved),
        (first_moved, moved),
        (first_moved, first_moved),
        (gradients, first_moved),
        (first_gradients, first_moved),
    )
    with torch.no_grad():
        return torch.stack([torch.stack([_dot(x, y) for x, y in zip(a, b, strict=True)]) for a, b in pairs])


def _dot(x: Tensor, y: Tensor) -> Tensor:
    if x.is_complex():  # as two real numbers each
        x, y = torch.view_as_real(x.detach().resolve_conj()), torch.view_as_real(y.detach().resolve_conj())
    return torch.sum(x.detach() * y.detach(), dtype=torch.float64)


class Activations:
    """Observes the output of every module from now on until :meth:`read`.

    Args:
        model: gets a forward hook on each of its modules.
        rows: of each output, the first so many are looked at; None looks at all of them.
        charge: called with the time at which a look began, where it is of interest what it cost.
    """

    def __init__(
        self, model: nn.Module, rows: int | None = None, charge: Callable[[float], None] | None = None
    ) -> None:
        self._rows, self._charge = rows, charge
        self._found: dict[str, tuple[Tensor, Tensor]] = {}
        self._handles = [module.register_forward_hook(self._observer(name)) for name, module in model.named_modules()]

    def _observer(self, name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_: nn.Module, __: object, output: object) -> None:
            if transformed():
                return  # nothing of this may become part of somebody's graph
            started = time.perf_counter()
            if isinstance(output, Tensor) and not output.is_nested and output.is_floating_point() and output.numel():
                some = output.detach() if output.ndim == 0 else output.detach()[: self._rows]
                self._found[name] = (some.float().square().mean().sqrt(), (some == 0).float().mean())
            if self._charge is not None:
                self._charge(started)

        return hook

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def read(self) -> dict[str, tuple[float, float]]:
        """Root mean square and share of exact zeros by name of the module, of its latest output; ends observing."""
        self.remove()
        if not self._found:
            return {}
        values = torch.stack([torch.stack(pair) for pair in self._found.values()]).tolist()
        return {name: (rms, zero) for name, (rms, zero) in zip(self._found, values, strict=True)}


def activation_statistics(model: nn.Module, forward: Callable[[], object]) -> dict[str, tuple[float, float]]:
    """Root mean square and share of exact zeros of each module's output during one forward pass.

    Args:
        model: its modules are observed; hooks are removed afterwards.
        forward: runs the model on a few examples; the caller sees to evaluation mode and to the random state.
    """
    observed = Activations(model)
    try:
        with torch.no_grad():
            forward()
    finally:
        observed.remove()
    return observed.read()


class Window:
    """Opens a probe when the budget affords it, and gives it what it needs at each turn of a step.

    Args:
        named: the trained parameters; those without a gradient as a window opens are left out.
        budget: of the signals.
        observed: the module whose activations are sampled, or None where it is compiled.

    Attributes:
        probing: whether the step going on is one of the two.
    """

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]], budget: Budget, observed: nn.Module | None) -> None:
        self.probing = False
        self._named, self._observed = named, observed
        self._probe = Probe([n for n, _ in named], [p for _, p in named], budget)
        self._gradients: list[Tensor] = []
        self._activations: Activations | None = None

    @property
    def open(self) -> bool:
        """Whether the coming step is the second one."""
        return self._probe.open

    def forward(self) -> None:
        """Before a forward pass in training."""
        if self._probe.open and self._activations is None and self._observed is not None:
            self._activations = Activations(self._observed, _ROWS_OBSERVED, self._probe.charge)
            self._probe.activations = self._activations.read

    def begin(self, may_open: bool) -> None:
        """Before a step; a window is opened only if it may be."""
        probe = self._probe
        opens = may_open and not probe.open and probe.budget.share > 0 and probe.affords()
        if opens:
            named = [(name, p) for name, p in self._named if p.grad is not None] or self._named
            probe.names, probe.parameters = [n for n, _ in named], [p for _, p in named]
        self.probing = opens or probe.open
        if self.probing:
            probe.before()

    def gradients(self, scale: Tensor | None) -> None:
        """When the gradients of the step are there; ``scale`` is what a fused optimizer will divide them by."""
        started = time.perf_counter()
        held = [p.grad.detach() for p in self._probe.parameters if p.grad is not None]
        dense = [g.to_dense() if g.is_sparse else g for g in held]
        # Copies: a fused optimizer unscales in place, a closure is called again.
        self._gradients = [g.clone() if scale is None else g / scale.to(g.device) for g in dense]
        self._probe.charge(started)

    def end(self, step: int) -> Probed | None:
        """After a step that was taken; gives the measurement after the second one."""
        probed = self._probe.after(step, self._gradients)
        self._close()
        return probed

    def cancel(self) -> None:
        """The step was skipped."""
        if self.probing:
            self._probe.cancel()
            self._close()

    def _close(self) -> None:
        self.probing, self._gradients = False, []
        if not self._probe.open:
            self.remove()

    def remove(self) -> None:
        """Take away the hooks that sample activations."""
        if self._activations is not None:
            self._activations.remove()
            self._activations = self._probe.activations = None
