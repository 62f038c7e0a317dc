"""Fogline beside a loop that Accelerate runs: the same watch, on what is inside the prepared objects.

::

    from fogline.plugins.accelerate import watch
    with watch(accelerator, model, optimizer, loader=loader) as run:
        for batch in loader:
            with accelerator.accumulate(model):
                ...
            run.log(loss)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fogline._watch import watch as watched
from fogline._watched_run import WatchedRun
from fogline.plugins.following import unwrapped
from fogline.plugins.numbering import Numbers
from fogline.progress import ProgressFunction


class AcceleratedRun:
    """A watched run that every process may log to, and the main process of Accelerate writes.

    Attributes:
        run: the :class:`~fogline.run.Run`; None on the other processes.
    """

    def __init__(self, run: WatchedRun | None, numbers: Numbers | None) -> None:
        self.run, self._numbers = run, numbers

    @property
    def stopping(self) -> bool:
        """Whether somebody asked for a stop; only the main process knows.

        Of several processes: ``if run.stopping: accelerator.set_trigger()``, and all break where
        ``accelerator.check_trigger()``.
        """
        return self.run is not None and self.run.stopping

    def log(
        self,
        loss: Tensor | float | None = None,
        *,
        valid: Tensor | float | Mapping[str, Tensor | float] | None = None,
        **scores: Tensor | float,
    ) -> None:
        """Tell the run the loss of a batch, or held-out scores, as ``run.log`` of :func:`fogline.watch`.

        The loss is the one that went into ``accelerator.backward``: of accumulated batches each one's own, not divided.
        With a ``loader`` every batch must be logged, and what its examples do is recorded.

        Raises:
            TypeError, ValueError: as in ``run.log`` of :func:`fogline.watch`.
        """
        numbers = None if loss is None or self._numbers is None else self._numbers.next()
        if self.run is not None:
            self.run.log(loss, examples=numbers, valid=_named(valid, scores))

    def note(self, message: str, **data: Any) -> None:
        """Keep a remark among the events."""
        if self.run is not None:
            self.run.note(message, **data)

    def close(self) -> None:
        """End the run; a second call does nothing."""
        self.__exit__(None, None, None)

    def __enter__(self) -> AcceleratedRun:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self._numbers is not None:
            self._numbers.release()
        if self.run is not None:
            self.run.__exit__(kind, error, trace)


def _named(valid: Any, scores: Mapping[str, Any]) -> Any:
    """All held-out scores of a call by name; None where there are none."""
    if valid is None:
        return dict(scores) or None
    return (dict(valid) if isinstance(valid, Mapping) else {"loss": valid}) | dict(scores)


def watch(
    accelerator: Any,
    model: nn.Module,
    optimizer: Any,
    *,
    loss_fn: Any = None,
    scheduler: Any = None,
    loader: Any = None,
    runs: str | Path = "runs",
    name: str | None = None,
    share: float = 0.02,
    progress: bool | ProgressFunction | None = None,
) -> AcceleratedRun:
    """Watch a loop whose model, optimizer, scheduler and loader Accelerate has prepared.

    Steps are those that the optimizer takes: a batch that is only accumulated is none, nor is one that the gradient
    scaler skips.

    Args:
        accelerator: that prepared them.
        model, optimizer, scheduler: as ``prepare`` gave them.
        loss_fn: of the loop, a module where the examples are to be recorded by more than their loss.
        loader: of the training data, as ``prepare`` gave it: what each example does is recorded. Then log the
            loss of ``loss_fn`` where that is a module, else the loss of each example.
        runs, name, share, progress: as in :func:`fogline.watch`.

    Raises:
        TypeError, ValueError, FileExistsError: as in :func:`fogline.watch`; the loader draws no numbered examples.

    Example::

        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        with watch(accelerator, model, optimizer) as run:
            ...
    """
    numbers = None if loader is None else Numbers(loader)
    if not accelerator.is_main_process:
        return AcceleratedRun(None, numbers)
    run = watched(
        accelerator.unwrap_model(model, keep_torch_compile=True),
        unwrapped(optimizer),
        loss_fn=loss_fn,
        scheduler=getattr(scheduler, "scheduler", scheduler),
        runs=runs,
        name=name,
        share=share,
        progress=progress,
    )
    return AcceleratedRun(run, numbers)
