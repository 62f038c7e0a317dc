"""Ultralytics' own training, watched: a run of ours beside theirs, with signals, findings and a guard.

Where it holds on to the trainer::

    on_pretrain_routine_start   what was asked for, before optimizer="auto" overwrites it
    on_pretrain_routine_end     the learning rate, where one was given
    on_train_start              the run begins; the trainer's own optimizer_step is taken over
    on_train_batch_end          the loss of a batch
    on_fit_epoch_end            the held-out scores, and what each image does
    teardown                    the run ends, whatever ended the training
"""

from __future__ import annotations

import math
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fogline._watch import watch as watch_loop
from fogline._watched_run import WatchedRun
from fogline.plugins.ultralytics.session import Session, Trainer, set_rate

_EVENTS = (
    "on_pretrain_routine_start",
    "on_pretrain_routine_end",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_end",
    "on_train_epoch_end",
    "on_fit_epoch_end",
    "teardown",
)


def watch(
    yolo: Any,
    *,
    guard: bool = False,
    lr: float | None = None,
    examples: bool = False,
    runs: str | Path = "runs",
    name: str | None = None,
    share: float = 0.02,
) -> Watching:
    """Watch the trainings of a YOLO: signals, findings and a verdict in a run folder each.

    Without ``guard`` and ``lr`` the training is bit for bit what it is without it.

    Args:
        yolo: ``ultralytics.YOLO``, of any task and model.
        guard: leave out batches whose loss or gradient is not finite, put the statistics of batch normalisation back,
            name the images, and stop when ten in a row are so.
        lr: the learning rate at the top of the schedule, such as :func:`find_lr` measures it; every group of the
            optimizer keeps its ratio to it, and ``optimizer="auto"`` keeps it, too.
        examples: once an epoch, compute the loss of each training image alone, without augmentation: a forward pass
            over the data, shown on the examples page with the boxes drawn.
        runs: the folder that run folders lie in.
        name: of the run folder; a dated name by default.
        share: the most that watching may cost, as a share of the time; ``guard`` and ``examples`` come on top.

    Returns:
        What is watched; its ``run`` is there as soon as the training has begun.

    Raises:
        TypeError, ValueError: it is no YOLO, or the rate is no rate.

    Example::

        watching = watch(yolo, guard=True)
        yolo.train(data="signs.yaml", epochs=100)
        print(watching.run.verdict, watching.run.findings)
    """
    if not callable(getattr(yolo, "add_callback", None)) or not callable(getattr(yolo, "train", None)):
        raise TypeError(
            f"watch: expected an ultralytics.YOLO, received {type(yolo).__name__}; for a loop of your own there is "
            "fogline.watch(model, optimizer)"
        )
    if lr is not None and not (isinstance(lr, int | float) and 0 < lr < math.inf):
        raise ValueError(f"watch: expected a positive learning rate as `lr`, received {lr!r}")
    watching = Watching(yolo, guard, lr, examples, Path(runs), name, share)
    for event in _EVENTS:
        yolo.add_callback(event, getattr(watching, event))
    return watching


@dataclass
class Watching:
    """The trainings of a YOLO that are watched; made by :func:`watch`.

    Attributes:
        runs_made: a run for each training, the latest last.
    """

    yolo: Any
    guard: bool
    lr: float | None
    examples: bool
    runs: Path
    name: str | None
    share: float
    runs_made: list[WatchedRun] = field(default_factory=list)
    _session: Session | None = None
    _asked: dict[str, Any] = field(default_factory=dict)

    @property
    def run(self) -> WatchedRun:
        """The run of the latest training.

        Raises:
            ValueError: nothing was trained yet.
        """
        if not self.runs_made:
            raise ValueError("expected a training, received none so far; call yolo.train(data=...) first")
        return self.runs_made[-1]

    def stop(self) -> None:
        """Watch no further training."""
        for event in _EVENTS:
            callbacks = self.yolo.callbacks.get(event, [])
            callbacks[:] = [callback for callback in callbacks if getattr(callback, "__self__", None) is not self]

    # -- what the trainer calls ------------------------------------------------------------------------------------

    def on_pretrain_routine_start(self, trainer: Trainer) -> None:
        self._asked = {"lr": float(trainer.args.lr0), "optimizer": str(trainer.args.optimizer)}

    def on_pretrain_routine_end(self, trainer: Trainer) -> None:
        if self.lr is not None:
            set_rate(trainer, self.lr)

    def on_train_start(self, trainer: Trainer) -> None:
        if self.guard and getattr(trainer.args, "compile", False):
            raise ValueError(
                "watch: expected compile=False beside guard=True, received compile=True; a compiled model computes its "
                "loss outside, where the guard does not see it"
            )
        run = watch_loop(trainer.model, trainer.optimizer, runs=self.runs, name=self._folder(), share=self.share)
        self.runs_made.append(run)
        self._session = Session(trainer, run, self._asked, guard=self.guard, examples=self.examples)

    def on_train_epoch_start(self, trainer: Trainer) -> None:
        if self._session is not None:
            self._session.batch = 0

    def on_train_batch_end(self, trainer: Trainer) -> None:
        if self._session is not None:
            self._session.batch_ended()

    def on_train_epoch_end(self, trainer: Trainer) -> None:
        if self._session is not None:
            self._session.fresh = True

    def on_fit_epoch_end(self, trainer: Trainer) -> None:
        if self._session is not None:
            self._session.epoch_ended()

    def teardown(self, trainer: Trainer) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.end(sys.exception())
        elif getattr(trainer, "ddp", False):
            warnings.warn(
                "the training was not watched: on several devices Ultralytics trains in processes of its own, which "
                "callbacks do not reach; train on one device to watch it",
                UserWarning,
                stacklevel=2,
            )

    def _folder(self) -> str | None:
        return self.name if self.name is None or not self.runs_made else f"{self.name}-{len(self.runs_made) + 1}"
