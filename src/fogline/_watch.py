"""``watch``: the signals and the verdict of somebody else's training loop."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from fogline.descent.optimizers import OPTIMIZERS
from fogline.descent.stopping import judge
from fogline.progress import ProgressFunction, ProgressReport, make_progress
from fogline.record.info import ending, frame, new_folder, now
from fogline.record.observer import Observer
from fogline.record.probes import Budget
from fogline.record.signals import Recorder
from fogline.record.store import Store, read_table
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

_NOT_OPTIONS = ("params", "lr", "initial_lr", "weight_decay", "foreach", "fused", "capturable", "differentiable")


def watch(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    loss_fn: Any = None,
    scheduler: Any = None,
    runs: str | Path = "runs",
    name: str | None = None,
    share: float = 0.02,
    progress: bool | ProgressFunction | None = None,
) -> WatchedRun:
    """Record the signals of a training loop that is not ours, and judge how it went.

    Weights, gradients, optimizer state and random numbers are bitwise what they are without it. Use it as a context
    manager around the loop, or call :meth:`WatchedRun.close` at the end.

    Args:
        model: the module that is trained; compiled or not.
        optimizer: the one that trains it; for several optimizers, a watch each.
        loss_fn: of the loop. Where it is a module its outputs are taken for the loss of a step that logs none.
        scheduler: of the learning rate; only its name is kept, the rate itself is read at every step.
        runs: the folder that run folders lie in.
        name: of the run folder; a dated name by default.
        share: the most that watching may cost, as a share of the time. 0 turns off what can be left out.
        progress: True draws a bar, a function is called with a :class:`~fogline.progress.ProgressReport`; by default
            nothing is drawn, since the loop may draw its own.

    Returns:
        The run, which is a :class:`~fogline.run.Run` and goes on while the loop does.

    Raises:
        TypeError, ValueError: what was given does not fit together.
        FileExistsError: there is a run of this name.

    >>> import torch
    >>> model, loss_fn = nn.Linear(2, 1), nn.MSELoss()
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> X = torch.eye(2)
    >>> with watch(model, optimizer, loss_fn=loss_fn) as run:
    ...     for _ in range(100):
    ...         optimizer.zero_grad()
    ...         loss = loss_fn(model(X), X[:, :1])
    ...         loss.backward()
    ...         optimizer.step()
    ...         run.log(loss)
    >>> len(run.steps), run.info["source"]
    (100, {'kind': 'watch'})
    """
    optimizer = _checked(model, optimizer, share)
    folder = new_folder(Path(runs), name, type(getattr(model, "_orig_mod", model)).__name__)
    return WatchedRun(folder, model, optimizer, loss_fn, scheduler, Budget(share), progress)


class WatchedRun(Run):
    """A run whose loop belongs to somebody else; made by :func:`watch`."""

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizer: Optimizer,
        loss_fn: Any,
        scheduler: Any,
        budget: Budget,
        progress: bool | ProgressFunction | None,
    ) -> None:
        super().__init__(folder, model=model)
        self._store = Store(folder)
        self._recorder = Recorder(self._store, budget)
        self._started = time.perf_counter()
        trained, left_out = _named(model, optimizer)
        self._info = _beginning(folder, model, optimizer, loss_fn, scheduler, budget)
        if left_out:
            self._info["notes"].append(_left_out(left_out))
            self._store.event(0, "note", _left_out(left_out), {"parameters": left_out})
        self._store.write_info(self._info)
        self._stack = ExitStack()
        self._report = self._stack.enter_context(make_progress(False if progress is None else progress, folder.name))
        self._observer = Observer(model, optimizer, loss_fn, self._recorder, trained, self._flushed)
        self._closed = False

    def log(
        self,
        loss: Tensor | float | None = None,
        *,
        valid: Tensor | float | Mapping[str, Tensor | float] | None = None,
        step: int | None = None,
        **scores: Tensor | float,
    ) -> None:
        """Tell the run the loss of a step, or held-out scores. Tensors are not waited for.

        A loss belongs to the step that its forward pass was for, whether it is logged before ``optimizer.step()`` or
        after it; several losses of one step are averaged.

        Args:
            loss: training loss, a scalar.
            valid: held-out loss, or several held-out scores by name.
            step: the optimizer step, from 0; by default the one just taken (for a loss, see above).
            **scores: more held-out scores by name, such as ``accuracy=0.9``.

        Raises:
            TypeError, ValueError: a value is no single number, or the loss of that step can no longer be told.

        Example::

            run.log(loss)
            run.log(valid=valid_loss, accuracy=0.93)
        """
        if loss is not None:
            self._observer.log(loss, step)
            if valid is None and not scores:
                return
        held_out = dict(valid) if isinstance(valid, Mapping) else {} if valid is None else {"loss": valid}
        for name, value in (held_out | scores).items():
            self._observer.score(name, value, step)

    def note(self, message: str, **data: Any) -> None:
        """Keep a remark among the events of the run, with the step it was made at; ``data`` must fit in JSON."""
        self._store.event(self._observer.taken, "note", message, data)

    def close(self) -> None:
        """Write what is left, judge the run and take every hook away; a second call does nothing."""
        self._close(None)

    def __enter__(self) -> WatchedRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(error)

    def _close(self, error: BaseException | None) -> None:
        if self._closed:
            return
        self._closed = True
        observer = self._observer
        try:
            if error is not None:
                self._store.event(observer.taken, *_parting(error))
            observer.remove()
            observer.flush(last=True)
            judgement, message = self._judged(error)
            self._finish(judgement, message)
        except OSError as failure:
            # The loop is over: nothing of it may be lost for a record that cannot be written.
            warnings.warn(f"the run could not be closed: {failure}", RuntimeWarning, stacklevel=3)
        finally:
            self._stack.close()
            self._store.close()

    def _finish(self, judgement: Judgement | None, message: str) -> None:
        observer = self._observer
        end = ending(
            judgement or Judgement(Verdict.INTERRUPTED),
            steps=observer.taken,
            refused=0,
            seconds=time.perf_counter() - self._started,
            budget=self._recorder.budget,
            message=message,
        )
        if judgement is None:
            end["verdict"] = None
            self._info["notes"].append(message)
            self._store.event(observer.taken, "note", message)
            warnings.warn(message, UserWarning, stacklevel=4)
        if observer.taken:
            self._info["recipe"] |= {"duration": f"{observer.taken}st"}
        self._info |= {
            **end,
            "scores": self._last_scores(),
            "skipped": observer.incidents.skipped,
            "not_finite": len(observer.incidents.not_finite),
        }
        self._store.write_info(self._info)

    def _judged(self, error: BaseException | None) -> tuple[Judgement | None, str]:
        """The verdict and its sentence; None, and why, where nothing was seen that could be judged."""
        observer, table = self._observer, read_table(self.folder, "steps")
        losses, steps = table["loss"].astype(np.float64), table["step"]
        bad = np.isin(steps, np.array(observer.incidents.not_finite, dtype=np.int64))
        known = np.isfinite(losses) | bad
        held_out = np.array([row["value"] for row in self.scores if row["name"] == "loss"], dtype=np.float64)
        judgement = judge(
            losses[known],
            table["lr"][known].astype(np.float64),
            held_out,
            slope=None,
            refused=bad[known].astype(np.float64),
        )
        if error is not None and (judgement.verdict is not Verdict.DIVERGED or isinstance(error, KeyboardInterrupt)):
            # A loop that stops itself at a NaN has ended by it; any other error says nothing of the descent.
            if not (bad.any() and judgement.verdict is Verdict.NONFINITE):
                judgement = Judgement(Verdict.INTERRUPTED, {"steps": observer.taken})
        elif not observer.taken:
            return None, "no step was seen, so there is no verdict; watch the optimizer whose step() the loop calls"
        elif not known.any():
            return None, "no loss was seen, so there is no verdict; call run.log(loss) in the loop"
        return judgement, _MESSAGES.get(judgement.verdict, "")

    def _last_scores(self) -> dict[str, float]:
        return {row["name"]: row["value"] for row in self.scores}

    def _flushed(self) -> None:
        observer, recorder = self._observer, self._recorder
        seconds = max(time.perf_counter() - self._started, 1e-9)
        lr = observer.last_rate
        self._report(
            ProgressReport(
                step=observer.taken,
                loss=recorder.last,
                lr=math.nan if lr is None else lr,
                examples_per_second=observer.examples / seconds,
            )
        )


def _parting(error: BaseException) -> tuple[str, str]:
    if isinstance(error, Exception):
        return "exception", f"the loop raised {type(error).__name__}: {error}"
    return "interrupted", f"the loop was left by {type(error).__name__}"


def _checked(model: object, optimizer: Any, share: object) -> Optimizer:
    """The optimizer whose hooks are called: trainers wrap theirs."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"watch: expected a torch.nn.Module as `model`, received {type(model).__name__}; pass the module you train"
        )
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    if not isinstance(optimizer, Optimizer):
        several = "; watch each optimizer on its own" if isinstance(optimizer, list | tuple) else ""
        raise TypeError(
            f"watch: expected a torch.optim.Optimizer as `optimizer`, received {type(optimizer).__name__}"
            f"{several or '; pass the one whose step() your loop calls'}"
        )
    if isinstance(share, bool) or not isinstance(share, int | float):
        raise TypeError(f"watch: expected a number from 0 to 1 as `share`, received {share!r}")
    if not 0 <= share < 1:
        raise ValueError(f"watch: expected a share of the time from 0 to 1, received {share!r}; 0.02 is two percent")
    own = {id(p) for p in model.parameters()}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if not any(id(p) in own and p.requires_grad for p in held):
        raise ValueError(
            f"watch: expected an optimizer of the model's trainable parameters, received one with {len(held)} "
            "parameters of which none is; make the optimizer from the parameters of this very model, after moving or "
            "replacing its layers"
        )
    return optimizer


def _named(model: nn.Module, optimizer: Optimizer) -> tuple[list[tuple[str, nn.Parameter]], list[str]]:
    """The model's trainable parameters in the optimizer, and the names of those that are not."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    named = [(n, p) for n, p in getattr(model, "_orig_mod", model).named_parameters() if p.requires_grad]
    return [(n, p) for n, p in named if id(p) in held], [n for n, p in named if id(p) not in held]


def _left_out(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"not in the optimizer, though trainable: {', '.join(names[:5])}{more}; they stay as they are"


def _beginning(
    folder: Path, model: nn.Module, optimizer: Optimizer, loss_fn: Any, scheduler: Any, budget: Budget
) -> dict[str, Any]:
    inner = getattr(model, "_orig_mod", model)
    recipe = _recipe(optimizer) | {"watch": budget.share}
    device = str(next(inner.parameters()).device)
    return {
        **frame(folder, recipe, device, {"kind": "watch"}),
        "started": now(),
        "task": {
            "model": type(inner).__name__,
            "architecture": str(inner)[:20000],
            "parameters": sum(p.numel() for p in inner.parameters()),
            "loss": None if loss_fn is None else getattr(loss_fn, "__name__", type(loss_fn).__name__),
        },
        "recipe": recipe,
        "resolved": {},
        "notes": [],
        "mechanics": {
            "mode": "watched",
            "optimizer": type(optimizer).__name__,
            "scheduler": None if scheduler is None else type(scheduler).__name__,
            "groups": len(optimizer.param_groups),
        },
        "verdict": None,
    }


def _recipe(optimizer: Optimizer) -> dict[str, Any]:
    """What is known of the recipe, in its own terms: the first group stands for all."""
    kind, group = type(optimizer), optimizer.param_groups[0]
    plain = {n: _plain(v) for n, v in group.items() if n not in _NOT_OPTIONS and v not in (None, False)}
    known = kind.__name__.lower()
    named = known in OPTIMIZERS and OPTIMIZERS[known].cls is kind
    recipe: dict[str, Any] = {
        "optimizer": known if named else f"{kind.__module__}:{kind.__qualname__}",
        "options": {n: v for n, v in plain.items() if isinstance(v, bool | int | float | str | list)},
    }
    lr, decay = float(group.get("initial_lr", group.get("lr", 0.0))), group.get("weight_decay")
    if lr > 0:
        recipe["lr"] = lr
    if isinstance(decay, int | float):
        recipe["weight_decay"] = decay
    return recipe


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else value.tolist()
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
