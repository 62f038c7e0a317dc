"""What the plug-ins for trainers share: the runs of a trainer, and the names of its scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn
from torch.optim import Optimizer

from fogline._watch import watch
from fogline._watched_run import WatchedRun
from fogline.progress import ProgressFunction

_HELD_OUT = ("validation", "valid", "val", "eval")


class Following:
    """The runs of a trainer: one for each of its optimizers, and again for each time it trains.

    Args:
        runs, name, share, progress: as in :func:`fogline.watch`. Of several runs the second is called ``name-2``.

    Attributes:
        open: the runs of the training that goes on.
        all: those of earlier ones, too.
    """

    def __init__(
        self, runs: str | Path, name: str | None, share: float, progress: bool | ProgressFunction | None
    ) -> None:
        self._runs, self._name, self._share, self._progress = runs, name, share, progress
        self.open: list[WatchedRun] = []
        self.all: list[WatchedRun] = []

    def begin(
        self, model: nn.Module, optimizers: Sequence[Any], *, loss_fn: Any = None, schedulers: Sequence[Any] = ()
    ) -> None:
        """Open a run for each optimizer; what is still open was left without a word.

        Raises:
            TypeError, ValueError, FileExistsError: as in :func:`fogline.watch`.
        """
        self.end(RuntimeError("training began anew before it had ended"))
        for optimizer in optimizers:
            scheduler = next((s for s in schedulers if getattr(s, "optimizer", None) is unwrapped(optimizer)), None)
            run = watch(
                model,
                optimizer,
                loss_fn=loss_fn,
                scheduler=scheduler,
                runs=self._runs,
                name=self._next_name(),
                share=self._share,
                progress=self._progress,
            )
            self.open.append(run)
            self.all.append(run)

    def _next_name(self) -> str | None:
        return self._name if self._name is None or not self.all else f"{self._name}-{len(self.all) + 1}"

    def end(self, error: BaseException | None = None) -> None:
        """Close what is open; ``error`` is what ended it."""
        closing, self.open = self.open, []
        for run in closing:
            run.__exit__(None if error is None else type(error), error, None)

    def score(self, metrics: Mapping[str, Any]) -> None:
        """Keep held-out scores with every open run; what is no number is left out."""
        found = {held_out_name(name): value for name, value in metrics.items() if is_number(value)}
        if found:
            for run in self.open:
                run.log(valid=found)

    def resumed(self, step: int) -> None:
        """Say that the trainer had taken so many steps before."""
        for run in self.open:
            run.note(f"the trainer goes on from its step {step}; steps are counted from there", trainer_step=step)

    @property
    def stopping(self) -> bool:
        """Whether somebody asked for a stop."""
        return any(run.stopping for run in self.open)

    @property
    def run(self) -> WatchedRun:
        """The latest training's run, that of its first optimizer where there are several.

        Raises:
            ValueError: nothing was trained yet.
        """
        found = self.open or self.all[-1:]
        if not found:
            raise ValueError("expected a trainer that has begun to train, received one that has not; train first")
        return found[0]


class Followed:
    """A callback that has such runs."""

    _following: Following

    @property
    def run(self) -> WatchedRun:
        """The run of the latest training, that of its first optimizer where there are several.

        Raises:
            ValueError: nothing was trained yet.
        """
        return self._following.run

    @property
    def runs(self) -> list[WatchedRun]:
        """All runs, one for each training, and for each optimizer where there are several."""
        return list(self._following.all)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._release()
        self._following.end(error)

    def _release(self) -> None:
        """Let go of what was hung on the trainer."""


def unwrapped(optimizer: Any) -> Any:
    """The optimizer of PyTorch inside those that trainers put around it."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer


def is_number(value: object) -> bool:
    """Whether it is one number."""
    return value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, Real) and not isinstance(value, bool)


def held_out_name(name: str) -> str:
    """The name of a held-out score without the word for it, so that the held-out loss is known by ``loss``.

    >>> [held_out_name(name) for name in ("val_loss", "valid/accuracy", "eval_f1", "value", "val")]
    ['loss', 'accuracy', 'f1', 'value', 'val']
    """
    for word in _HELD_OUT:
        for mark in "_/.-":
            if name.lower().startswith(word + mark) and len(name) > len(word) + 1:
                return name[len(word) + 1 :]
    return name
