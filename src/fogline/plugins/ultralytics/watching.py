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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from fogline._watch import WatchedRun
from fogline._watch import watch as watch_loop
from fogline.plugins.ultralytics import findings
from fogline.plugins.ultralytics.guard import PATIENCE, Guard, bad_images
from fogline.record.seen import gradient_norm

Trainer = Any
"""``ultralytics.engine.trainer.BaseTrainer``, which is not imported."""

CLIP = 10.0
"""The norm that Ultralytics cuts gradients to; it has no setting for it."""
SUMMED = ("detect", "segment", "pose", "obb")
"""Tasks whose loss is the mean over images times their number."""
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
    _session: _Session | None = None
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
        run = watch_loop(trainer.model, trainer.optimizer, runs=self.runs, name=self._folder(), share=self.share)
        self.runs_made.append(run)
        self._session = _Session(self, trainer, run, self._asked)

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


def set_rate(trainer: Trainer, lr: float) -> None:
    """Let the group of the weights have this rate, and every other group its ratio to it."""
    groups = trainer.optimizer.param_groups
    factor = lr / base_rate(groups)
    for group in groups:
        group["lr"] *= factor
        group["initial_lr"] = group.get("initial_lr", group["lr"] / factor) * factor
    trainer.scheduler.base_lrs = [group["initial_lr"] for group in groups]


def base_rate(groups: list[dict[str, Any]]) -> float:
    """The rate that ratios are counted from: the lowest of all groups.

    >>> base_rate([{"initial_lr": 0.03}, {"initial_lr": 0.01}])
    0.01
    """
    return min(float(group.get("initial_lr", group["lr"])) for group in groups)


class _Session:
    """One training, from its first batch to its end.

    Attributes:
        fresh: whether an epoch has ended whose scores were not taken yet.
        batch: batches of the epoch so far.
    """

    def __init__(self, watching: Watching, trainer: Trainer, run: WatchedRun, asked: dict[str, Any]) -> None:
        self.trainer, self.run, self.fresh, self.batch = trainer, run, False, 0
        self.inner = getattr(trainer.model, "module", trainer.model)
        self.summed = trainer.args.task in SUMMED
        self._norms: list[float] = []
        self._judged = False
        self._guard = self._guarded() if watching.guard else None
        self._images: Any = None
        if watching.examples:
            from fogline.plugins.ultralytics.images import TrainingImages

            self._images = TrainingImages(trainer, run)
        self._theirs: Callable[[], None] = trainer.optimizer_step
        trainer.optimizer_step = self._step
        self._tell_the_plan(asked)

    def _guarded(self) -> Guard:
        if getattr(self.trainer.args, "compile", False):
            raise ValueError(
                "watch: expected compile=False beside guard=True, received compile=True; a compiled model computes "
                "its loss outside, where the guard does not see it"
            )
        return Guard(self.trainer.model, self._bad)

    def _tell_the_plan(self, asked: dict[str, Any]) -> None:
        """What can be said of a training before its first batch."""
        trainer, args, groups = self.trainer, self.trainer.args, self.trainer.optimizer.param_groups
        epoch = len(trainer.train_loader)
        batches = epoch * max(1, trainer.epochs - trainer.start_epoch)
        warmup = trainer._get_warmup_iterations(epoch)
        updates = findings.planned_updates(batches, warmup, trainer.accumulate)
        told = findings.few_updates(updates, batches, trainer.accumulate, args.nbs, trainer.batch_size)
        if told is not None:
            self.run.found(told)
        if warmup and not trainer.start_epoch:
            self.run.found(findings.long_warmup(warmup, batches) or findings.zero_first_step())
        taken = base_rate(groups)
        if asked.get("optimizer") == "auto" and not math.isclose(asked["lr"], taken) and asked["lr"] != _DEFAULT_RATE:
            self.run.found(findings.rate_ignored(asked["lr"], taken, type(trainer.optimizer).__name__))
        if trainer.resume:
            self.run.note(findings.RESUMED, epoch=trainer.start_epoch)

    # -- what happens ----------------------------------------------------------------------------------------------

    def _step(self) -> None:
        """In the place of the trainer's own step, which it calls where nothing speaks against it."""
        gradients = [p.grad for p in self.trainer.model.parameters() if p.grad is not None]
        if not gradients:
            return  # all batches of this update were left out
        norm = gradient_norm(gradients)
        scaler = self.trainer.scaler
        scaled = scaler is not None and scaler.is_enabled()
        if scaled:
            norm = norm / scaler.get_scale()
        # A scale that is too large gives infinity by design, and the scaler leaves that step out itself.
        if self._guard is not None and not scaled and not self._guard.allows(norm):
            self.trainer.optimizer.zero_grad()
            self.run.refuse("an update was left out: its gradient is not finite although the losses are")
            self._stop_where_hopeless()
            return
        self._look_at_the_clip(norm)
        self.run.before_clipping(norm)
        self._theirs()

    def _look_at_the_clip(self, norm: Tensor) -> None:
        if self._judged:
            return
        self._norms.append(float(norm))
        if len(self._norms) == findings.MOST_CLIPPED:
            self._judge_the_clip()

    def _judge_the_clip(self) -> None:
        self._judged = True
        share = findings.clipped_share(self._norms, CLIP)
        told = findings.always_clipped(self._norms, CLIP, len(self._norms) - 1, self.trainer.batch_size)
        if told is not None and self.summed:
            self.run.found(told)
        elif told is not None:
            self.run.note(f"the gradient is cut to a norm of {CLIP:g} at {share:.0%} of the first steps")

    def _bad(self, batch: dict[str, Any]) -> None:
        """A batch was left out: say which images it was."""
        guard = self._guard
        assert guard is not None
        rows, in_data = bad_images(self.inner, batch) if guard.in_a_row == 1 else ([], False)
        files = [str(batch["im_file"][row]) for row in rows] if "im_file" in batch else [f"row {row}" for row in rows]
        step = len(self._norms)
        said = f"images {', '.join(files)}" if files else "no single image"
        self.run.refuse(f"a batch was left out: its loss is not finite; {said}", files=files)
        self.run.found(findings.bad_batch(step, files, None, in_data=in_data))

    def batch_ended(self) -> None:
        """The loss of the batch, an image's share of it."""
        trainer = self.trainer
        rows = min(trainer.batch_size, len(trainer.train_loader.dataset) - self.batch * trainer.batch_size)
        self.batch += 1
        if self._guard is not None and self._guard.now:
            self._stop_where_hopeless()
            return
        if trainer.loss is not None:
            loss = trainer.loss.detach()
            self.run.log(loss / max(1, rows) if self.summed else loss)
        if self.run.stopping:
            trainer.stop = True

    def _stop_where_hopeless(self) -> None:
        guard = self._guard
        assert guard is not None
        if guard.in_a_row >= PATIENCE and not self.trainer.stop:
            self.trainer.stop = True
            self.run.note(f"the training was ended: {guard.in_a_row} batches in a row were not finite", kind="ended")

    def epoch_ended(self) -> None:
        """Held-out scores; what the trainer calls after its last epoch again is not taken twice."""
        if not self.fresh:
            return
        self.fresh = False
        metrics = {str(name): float(value) for name, value in (self.trainer.metrics or {}).items()}
        losses = [value for name, value in metrics.items() if name.startswith("val/")]
        scores = {n.removeprefix("metrics/"): v for n, v in metrics.items() if n.startswith("metrics/")}
        self.run.log(valid=({"loss": sum(losses)} if losses else {}) | scores)
        if self._images is not None:
            self._images.look(self.trainer.epoch)

    def end(self, error: BaseException | None) -> None:
        """The training is over."""
        if not self._judged and len(self._norms) >= 3:
            self._judge_the_clip()
        self.trainer.optimizer_step = self._theirs
        if self._guard is not None:
            self._guard.remove()
            if self._guard.skipped:
                self.run.note(f"{self._guard.skipped} batches were left out", skipped=self._guard.skipped)
        self.run.__exit__(None if error is None else type(error), error, None)


_DEFAULT_RATE = 0.01
"""``lr0`` where nobody says anything."""
