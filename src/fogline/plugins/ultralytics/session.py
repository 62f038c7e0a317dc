"""One training of Ultralytics' trainer: what of it goes into the run, and what is kept out of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from fogline._watched_run import WatchedRun
from fogline.plugins.ultralytics import findings
from fogline.plugins.ultralytics.guard import PATIENCE, Guard, bad_images
from fogline.record.seen import gradient_norm

Trainer = Any
"""``ultralytics.engine.trainer.BaseTrainer``, which is not imported."""

CLIP = 10.0
"""The norm that Ultralytics cuts gradients to; it has no setting for it."""
SUMMED = ("detect", "segment", "pose", "obb")
"""Tasks whose loss is the mean over images times their number."""


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

    >>> base_rate([{"lr": 0.0, "initial_lr": 0.03}, {"lr": 0.01}])
    0.01
    """
    return min(float(group.get("initial_lr", group["lr"])) for group in groups)


class Session:
    """One training, from its first batch to its end.

    Args:
        trainer: about to train.
        run: of ours, already open.
        asked: ``lr`` and ``optimizer`` before the trainer chose.
        guard, examples: as in :func:`~fogline.plugins.ultralytics.watch`.

    Attributes:
        fresh: whether an epoch has ended whose scores were not taken yet.
        batch: batches of the epoch so far.
    """

    def __init__(
        self, trainer: Trainer, run: WatchedRun, asked: dict[str, Any], *, guard: bool, examples: bool
    ) -> None:
        self.trainer, self.run, self.fresh, self.batch = trainer, run, False, 0
        self.inner = getattr(trainer.model, "module", trainer.model)
        self.summed = trainer.args.task in SUMMED
        self._norms: list[float] = []
        self._judged, self._updates = False, 0
        self._guard = Guard(trainer.model, self._bad) if guard else None
        self._images: Any = None
        if examples:
            from fogline.plugins.ultralytics.images import TrainingImages

            self._images = TrainingImages(trainer, run)
        self._theirs: Callable[[], None] = trainer.optimizer_step
        trainer.optimizer_step = self._step
        self._tell_the_plan(asked)

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
        self._updates += 1
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
        looks = guard.in_a_row == 1 and guard.skipped <= _MOST_NAMED  # an image at a time costs a while
        rows, in_data = bad_images(self.inner, batch) if looks else ([], False)
        files = [str(batch["im_file"][row]) for row in rows] if "im_file" in batch else [f"row {row}" for row in rows]
        said = f"images {', '.join(files)}" if files else "no single image"
        self.run.refuse(f"a batch was left out: its loss is not finite; {said}", files=files)
        self.run.found(findings.bad_batch(self._updates, files, None, in_data=in_data))

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


_MOST_NAMED = 20
"""Bad batches whose images are looked for."""
_DEFAULT_RATE = 0.01
"""``lr0`` where nobody says anything."""
