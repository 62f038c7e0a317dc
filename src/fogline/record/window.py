"""Probes of two successive steps in a loop that is not ours."""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import Tensor, nn

from fogline.record.probes import Activations, Budget, Probe, Probed

_ROWS_OBSERVED = 32


class Window:
    """Opens a probe when the budget affords it, and gives it what it needs at each turn of a step.

    Args:
        named: the trained parameters; those without a gradient at the first probe are left out.
        budget: of the signals.
        observed: the module whose activations are sampled, or None where it is compiled.

    Attributes:
        probing: whether the step going on is one of the two.
    """

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]], budget: Budget, observed: nn.Module | None) -> None:
        self.budget, self.probing = budget, False
        self._named, self._observed = named, observed
        self._probe: Probe | None = None
        self._gradients: list[Tensor] = []
        self._activations: Activations | None = None

    @property
    def open(self) -> bool:
        """Whether the coming step is the second one."""
        return self._probe is not None and self._probe.open

    def forward(self) -> None:
        """Before a forward pass in training."""
        if self._probe is not None and self._probe.open and self._activations is None and self._observed is not None:
            self._activations = Activations(self._observed, _ROWS_OBSERVED, self._probe.charge)
            self._probe.activations = self._activations.read

    def begin(self, may_open: bool) -> None:
        """Before a step; a window is opened only if it may be."""
        if self._probe is None:
            named = [(name, p) for name, p in self._named if p.grad is not None] or self._named
            self._probe = Probe([n for n, _ in named], [p for _, p in named], self.budget)
        self.probing = self._probe.open or (may_open and self.budget.share > 0 and self._probe.affords())
        if self.probing:
            self._probe.before()

    def gradients(self, scale: Tensor | None) -> None:
        """When the gradients of the step are there; ``scale`` is what a fused optimizer will divide them by."""
        assert self._probe is not None
        started = time.perf_counter()
        held = [p.grad.detach() for p in self._probe.parameters if p.grad is not None]
        dense = [g.to_dense() if g.is_sparse else g for g in held]
        # Copies: a fused optimizer unscales in place, a closure is called again.
        self._gradients = [g.clone() if scale is None else g / scale.to(g.device) for g in dense]
        self._probe.charge(started)

    def end(self, step: int) -> Probed | None:
        """After a step that was taken; gives the measurement after the second one."""
        assert self._probe is not None
        probed = self._probe.after(step, self._gradients)
        self._close()
        return probed

    def cancel(self) -> None:
        """The step was skipped."""
        if self.probing and self._probe is not None:
            self._probe.cancel()
            self._close()

    def _close(self) -> None:
        self.probing, self._gradients = False, []
        if not self.open:
            self.remove()

    def remove(self) -> None:
        """Take away the hooks that sample activations."""
        if self._activations is not None and self._probe is not None:
            self._activations.remove()
            self._activations = self._probe.activations = None
