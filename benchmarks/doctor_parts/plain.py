"""Every program as a plain hand-written loop, with a stand-in for ``fogline.watch`` that tells a tool what happens.

A task with its recipe becomes the loop that its author would write without Fogline: the same model, loss, optimizer,
rate, schedule, batch size and number of steps, and no guard. A program that is a loop already runs as it is.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from faults import Program, loops
from fogline import Duration, Recipe, Task
from fogline.descent.optimizers import build, spec_of
from fogline.descent.schedules import curve
from fogline.task import OnBatch

Batch = Any
Watch = Callable[..., Any]


@dataclass(frozen=True)
class Subject:
    """What the author of a loop has at hand when it begins.

    Attributes:
        model, optimizer: the ones that are trained.
        loss_fn: of (outputs, targets), or an ``OnBatch``.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss_fn: Any

    def twin(self) -> Subject:
        """The same before training, sharing nothing; parameters that only the optimizer knows stay only its own."""
        model = copy.deepcopy(self.model)
        known = {id(p): q for p, q in zip(self.model.parameters(), model.parameters(), strict=True)}
        groups = [
            group | {"params": [known.get(id(p), p.detach().clone().requires_grad_()) for p in group["params"]]}
            for group in self.optimizer.param_groups
        ]
        kind: Any = type(self.optimizer)
        return Subject(model, kind(groups, lr=groups[0]["lr"]), self.loss_fn)


class Tool:
    """A tool at one program. Its calls come in the order of a loop; by default it does nothing.

    Attributes:
        found: alarms as the tool gave them, in its own order.
        before_training: it looks at one batch before the first step, and the program is then left.
    """

    before_training = False

    def __init__(self) -> None:
        self.found: list[Alarm] = []

    def begin(self, subject: Subject) -> None:
        """Model and optimizer are made; nothing was trained."""

    def check(self, batch: Batch, inputs: Any) -> None:
        """The first batch and what the model is given of it, if it looks before training."""

    def backward(self) -> None:
        """Gradients were computed."""

    def step(self, loss: float) -> None:
        """A pass of the inner loop is over."""

    def epoch(self, valid: float) -> None:
        """The held-out loss was computed."""

    def end(self) -> None:
        """The loop is over, or broke."""


@dataclass(frozen=True)
class Alarm:
    """What a tool said.

    Attributes:
        check: the tool's own name of what it found.
        level: the tool's own word for how bad it is.
        message: its first words.
        where: layer or parameter, if it named one.
    """

    check: str
    level: str
    message: str = ""
    where: str = ""


class Left(BaseException):
    """A tool that looks before training has seen enough."""


@dataclass
class StandIn:
    """Called and used like ``fogline.watch``; tells its tools what the loop does.

    Attributes:
        tools: who listens.
        losses: of every pass of the inner loop.
    """

    tools: list[Tool]
    losses: list[float] = field(default_factory=list)
    model: Any = None
    _batch: Batch = None
    _pending: float | None = None

    def __call__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, loss_fn: Any, **_: Any) -> StandIn:
        subject, self.model = Subject(model, optimizer, loss_fn), model
        for tool in self.tools:
            tool.begin(subject)
        self._handle = model.register_forward_pre_hook(lambda _, given: self._forward(given[0]))
        return self

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *_: object) -> None:
        self._pass_is_over()
        self._handle.remove()
        for tool in self.tools:
            tool.end()

    def log(self, loss: Tensor | None = None, *, valid: Tensor | None = None) -> None:
        """The loss of a pass, after its gradients were computed; or the held-out loss."""
        if loss is not None:
            self._pending = float(loss.detach())
            self.losses.append(self._pending)
            for tool in self.tools:
                tool.backward()
        if valid is not None:
            self._pass_is_over()
            for tool in self.tools:
                tool.epoch(float(valid))

    def saw(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, remembered as they pass."""
        for batch in batches:
            self._batch = batch
            yield batch

    def _forward(self, inputs: Any) -> None:
        """The model is about to be called: whatever went before is over."""
        self._pass_is_over()
        early = [tool for tool in self.tools if tool.before_training]
        if early:
            for tool in early:
                tool.check(self._batch, inputs)
            raise Left

    def _pass_is_over(self) -> None:
        if self._pending is not None:
            loss, self._pending = self._pending, None
            for tool in self.tools:
                tool.step(loss)


def run(program: Program, stand_in: StandIn, seed: int = 0) -> None:
    """Train a program by hand, or as far as its tools want it."""
    try:
        if program.make is None:
            assert program.loop is not None
            batches = loops._batches
            with mock.patch.object(loops, "_batches", lambda *how: stand_in.saw(batches(*how))):
                program.loop(seed, stand_in)
        else:
            task, recipe = program.make(seed)
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                train(task, recipe, stand_in)
    except Left:
        pass


def train(task: Task, recipe: Recipe, watch: StandIn) -> None:
    """The loop that somebody would write for a task and a recipe."""
    assert callable(task.model)
    model = task.model()
    size = _rows(task.train) if recipe.batch_size == "full" else int(recipe.batch_size) * recipe.accumulate
    steps = Duration.parse(recipe.duration).steps(size, _rows(task.train))
    assert steps is not None
    optimizer = _optimizer(model, recipe)
    scheduler = LambdaLR(optimizer, _schedule(recipe, steps))
    taken = 0
    with watch(model, optimizer, loss_fn=task.loss, scheduler=scheduler) as run:
        while taken < steps:
            model.train()
            for batch in run.saw(_batches(task.train, size, recipe.shuffle)):
                _step(model, task.loss, optimizer, batch, recipe, run)
                scheduler.step()
                taken += 1
                if taken == steps:
                    break
            model.eval()
            with torch.no_grad():
                run.log(valid=evaluate(task.loss, model, task.valid))


def evaluate(loss_fn: Any, model: nn.Module, batch: Batch) -> Tensor:
    """The loss of a batch."""
    if isinstance(loss_fn, OnBatch):
        return loss_fn.function(model, batch)
    loss: Tensor = loss_fn(model(batch[0]), batch[1])
    return loss


def _step(
    model: nn.Module, loss_fn: Any, optimizer: torch.optim.Optimizer, batch: Batch, recipe: Recipe, run: StandIn
) -> None:
    def closure() -> Any:
        optimizer.zero_grad()
        loss = evaluate(loss_fn, model, batch)
        loss.backward()
        return loss

    if spec_of(recipe.optimizer).needs_closure:
        run.log(closure())
        optimizer.step(closure)
        return
    run.log(closure())
    if isinstance(recipe.clip, int | float):
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    if not any(parameter.requires_grad for parameter in model.parameters()):  # which PyTorch does not mind
        return spec_of(recipe.optimizer).cls(list(model.parameters()), lr=recipe.lr)  # type: ignore[call-arg]
    lr, decay = float(recipe.lr), recipe.weight_decay
    how = {"options": recipe.options, "lr_scale": recipe.lr_scale}
    return build(model, recipe.optimizer, lr, weight_decay=decay, **how)  # type: ignore[arg-type]


def _schedule(recipe: Recipe, steps: int) -> Callable[[float], float]:
    """As Fogline resolves it: ``"auto"`` is linear to zero behind a warm-up of 5 %."""
    name = "linear" if recipe.schedule == "auto" else recipe.schedule
    warmup = recipe.warmup
    if warmup == "auto":
        warmup = 0.0 if name in ("constant", "one_cycle") else 0.05
    return curve(name, steps, warmup=float(warmup))


def _batches(data: Batch, size: int, shuffle: bool) -> Iterator[Batch]:
    rows = _rows(data)
    order = torch.randperm(rows) if shuffle else torch.arange(rows)
    for chosen in order.split(size):
        yield tuple(part[chosen] for part in data) if isinstance(data, tuple) else data[chosen]


def _rows(data: Batch) -> int:
    return len(data[0]) if isinstance(data, tuple) else len(data)


def fingerprint(losses: list[float]) -> str:
    """Tells whether a program is still the one that was run: its number of passes and some of its losses.

    >>> fingerprint([1.0, 0.5])
    '2: 1 0.5 0.5'
    """
    if not losses:
        return "0:"
    some = [losses[0], losses[len(losses) // 2], losses[-1]]
    return f"{len(losses)}: " + " ".join("nan" if math.isnan(loss) else f"{loss:.6g}" for loss in some)
