"""The run of somebody else's training loop: what the loop tells it, and how the loop is judged at its end."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from fogline.descent.interrupts import StopFile
from fogline.descent.stopping import judge
from fogline.doctor.finding import Finding
from fogline.doctor.watching import Inspector
from fogline.record.info import ending
from fogline.record.observer import Observer
from fogline.record.watched_examples import WatchedExamples
from fogline.run import Run
from fogline.verdict import Judgement, Verdict

_MESSAGES = {
    Verdict.IMPROVING: "Still improving: the loop ended first; train longer.",
    Verdict.NONFINITE: "Non-finite: the loss or a gradient became NaN or infinite; the events name the step.",
    Verdict.OVERFIT: (
        "Overfit: the held-out loss turned upwards while the training loss fell; go back to the weights of its lowest "
        "point. More data, augmentation or weight decay would help."
    ),
    Verdict.INTERRUPTED: "Interrupted: the loop was left before its end; what was recorded until then is kept.",
}
"""Sentences of the verdicts that speak of what only our own loop does: refuse steps, keep the best weights, resume."""

Numbers = NDArray[np.float64]


class WatchedRun(Run):
    """A run whose loop belongs to somebody else; made by :func:`fogline.watch`."""

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        observer: Observer,
        info: dict[str, Any],
        resources: ExitStack,
        loss_fn: object,
    ) -> None:
        super().__init__(folder, model=model)
        self._observer, self._info, self._resources = observer, info, resources
        self._recorder, self._store = observer.recorder, observer.recorder.store
        assert isinstance(observer.inspector, Inspector)
        self._inspector = observer.inspector
        self._examples = WatchedExamples(folder, model, loss_fn, self._examples_known)
        self._stop = StopFile(folder)
        self._stopping = self._closed = False
        self._refused = 0

    @property
    def stopping(self) -> bool:
        """Whether somebody asked for a stop, by the dashboard's button or a file ``stop`` in the run folder.

        The loop is yours, so nothing stops by itself: ``if run.stopping: break``. Cheap enough for every step.
        """
        self._stopping = self._stopping or self._stop.found()
        return self._stopping

    def log(
        self,
        loss: Tensor | float | None = None,
        *,
        examples: Any = None,
        epoch: int | None = None,
        valid: Tensor | float | Mapping[str, Tensor | float] | None = None,
        step: int | None = None,
        **scores: Tensor | float,
    ) -> None:
        """Tell the run the loss of a step, or held-out scores. Tensors are not waited for.

        A loss belongs to the step that its forward pass was for, whether it is logged before ``optimizer.step()`` or
        after it; several losses of one step are averaged.

        Args:
            loss: training loss, a scalar; or the loss of each example, shape (rows,), whose mean it then is.
            examples: which examples the batch is made of, shape (rows,), by their position in the data: what each of
                them does is recorded, see :attr:`~fogline.run.Run.examples`. Beside the losses themselves that is what
                the watched ``loss_fn`` shows of them, where that is a module.
            epoch: the pass over the data; by default another begins when an example comes again.
            valid: held-out loss, or several held-out scores by name.
            step: the optimizer step, from 0; by default the one just taken (for a loss, see above).
            **scores: more held-out scores by name, such as ``accuracy=0.9``.

        Raises:
            TypeError, ValueError: a value is no single number, the loss of that step can no longer be told, or the
                examples are not as many as the rows.

        Example::

            run.log(loss)
            run.log(loss, examples=rows)
            run.log(valid=valid_loss, accuracy=0.93)
        """
        if examples is not None:
            loss = self._logged(loss, examples, epoch)
        elif loss is not None:
            self._examples.forget()
        if loss is not None:
            self._observer.log(loss, step)
            if valid is None and not scores:
                return
        held_out = dict(valid) if isinstance(valid, Mapping) else {} if valid is None else {"loss": valid}
        for name, value in (held_out | scores).items():
            self._observer.score(name, value, step)
        if held_out or scores:
            self._observer.scored()

    def forward(self, batch: Any) -> None:
        """Say that a batch goes forward, where the loop does not call the model itself but a part or a method of it.

        Trainers with a ``training_step`` do so. From then on the rows of a step are those that were said.

        Args:
            batch: tensors in any structure; the first one's first dimension counts the examples.
        """
        self._observer.announce(batch)

    def _logged(self, loss: Any, examples: Any, epoch: int | None) -> Any:
        started = time.perf_counter()
        loss = self._examples.log(loss, examples, epoch, self._observer.taken)
        self._observer.budget.spent += time.perf_counter() - started
        return loss

    def _examples_known(self, described: dict[str, Any]) -> None:
        self._info["examples"] = described
        self._store.write_info(self._info)

    def log_examples(self, losses: Tensor, examples: Any, epoch: int) -> None:
        """Keep the loss of each example as a pass over the data beside the training gives it; it is of no step.

        Args:
            losses: shape (rows,).
            examples: which they are, shape (rows,), by their position in the data.
            epoch: the passes over the data there were before.
        """
        self._logged(losses, examples, epoch)

    def before_clipping(self, norm: Tensor | float) -> None:
        """Tell the norm of the gradient that the loop is about to clip; else the run records what is left of it.

        Example::

            run.before_clipping(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        """
        self._observer.unclipped = norm

    def note(self, message: str, *, kind: str = "note", **data: Any) -> None:
        """Keep a remark among the events of the run, with the step it was made at; ``data`` must fit in JSON."""
        self._store.event(self._observer.taken, kind, message, data)

    def refuse(self, message: str, **data: Any) -> None:
        """Tell the run that a step, or a part of one, was left out: it was not finite; ``data`` must fit in JSON."""
        self._refused += 1
        self.note(message, kind="refused", **data)

    def found(self, finding: Finding) -> None:
        """Keep a fault of the loop that somebody else saw, a plug-in for one; each cause is told once."""
        self._inspector.say(self._observer.taken, finding)

    def close(self) -> None:
        """Write what is left, judge the run and take every hook away; a second call does nothing."""
        self._close(None)

    def __enter__(self) -> WatchedRun:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._close(error)

    def _close(self, error: BaseException | None) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            with self._resources:
                self._finish(error)
        except OSError as failure:
            # The loop is over: nothing of it may be lost for a record that cannot be written.
            warnings.warn(f"the run could not be closed: {failure}", RuntimeWarning, stacklevel=3)

    def _finish(self, error: BaseException | None) -> None:
        observer, info = self._observer, self._info
        self._stop.remove()
        if error is not None:
            self._store.event(observer.taken, *_parting(error))
        inspector = self._inspector
        observer.remove()
        self._examples.finish()
        observer.flush()
        losses, rates = (self.steps[name].astype(np.float64) for name in ("loss", "lr"))
        held_out = np.array([row["value"] for row in self.scores if row["name"] == "loss"], dtype=np.float64)
        inspector.finish(observer.taken, losses, rates, observer.ledger.not_finite, held_out)
        inspector.skipped(observer.taken, observer.ledger.skipped)
        info |= inspector.facts(losses, held_out)
        judgement, message = self._judged(error, losses, rates, held_out)
        if observer.taken:
            info["recipe"] |= {"duration": f"{observer.taken}st"}
        info |= ending(
            judgement or Judgement(Verdict.INTERRUPTED),
            steps=observer.taken,
            refused=self._refused,
            seconds=time.perf_counter() - observer.started,
            budget=observer.budget,
            message=message,
        )
        info |= {
            "scores": {row["name"]: row["value"] for row in self.scores},
            "skipped": observer.ledger.skipped,
            "not_finite": len(observer.ledger.not_finite),
        }
        if judgement is None:
            info["verdict"] = None
            info["notes"].append(message)
            self.note(message)
            warnings.warn(message, UserWarning, stacklevel=4)
        self._store.write_info(info)

    def _judged(
        self, error: BaseException | None, losses: Numbers, rates: Numbers, held_out: Numbers
    ) -> tuple[Judgement | None, str]:
        """The verdict and its sentence; None, and why, where nothing was seen that could be judged."""
        taken = self._observer.taken
        bad = np.isin(self.steps["step"], np.array(self._observer.ledger.not_finite, dtype=np.int64))
        known = np.isfinite(losses) | bad
        if error is None and not taken and self._refused:
            return Judgement(Verdict.NONFINITE, {"refused": self._refused}), _MESSAGES[Verdict.NONFINITE]
        if error is None and not taken:
            return None, "no step was seen, so there is no verdict; watch the optimizer whose step() the loop calls"
        if error is None and not known.any():
            return None, "no loss was seen, so there is no verdict; call run.log(loss) in the loop"
        even = np.flatnonzero(known)[_evenly(self.steps["step"][known])]
        refused = bad[even].astype(np.float64)
        judgement = judge(losses[even], rates[even], held_out, slope=None, refused=refused)
        # A loop that stops itself at a NaN or as it diverges has ended by it; other errors say nothing of the descent.
        ended_by_it = (judgement.verdict is Verdict.NONFINITE and bad.any()) or (
            judgement.verdict is Verdict.DIVERGED and not isinstance(error, KeyboardInterrupt)
        )
        if error is not None and not ended_by_it:
            judgement = Judgement(Verdict.INTERRUPTED, {"steps": taken})
        return judgement, _MESSAGES.get(judgement.verdict, "")


def _evenly(steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of steps that lie about evenly: where time is short fewer are recorded, and all of the beginning.

    >>> _evenly(np.array([0, 1, 2, 3, 4, 5, 6, 12, 18, 24]))
    array([0, 3, 6, 7, 8, 9])
    """
    if not len(steps):
        return steps
    return np.unique(np.searchsorted(steps, np.linspace(steps[0], steps[-1], len(steps))))


def _parting(error: BaseException) -> tuple[str, str]:
    if isinstance(error, Exception):
        return "exception", f"the loop raised {type(error).__name__}: {error}"
    return "interrupted", f"the loop was left by {type(error).__name__}"
