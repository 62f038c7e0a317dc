"""Every way to a learning rate: Fogline's, the published finders from their own packages, rules of thumb.

A finder is given a cell and proposes a rate, at which the cell is then really trained. Peers see the loss as the output
of a module (``Judged``), so that tasks without targets serve them as well; they get the cell's optimizer, first
weights and batches, and are otherwise used as their documentation says, with their own defaults.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import fogline
from fogline.descent.batches import rows_of
from fogline.descent.objective import Objective
from fogline.descent.optimizers import spec_of
from fogline.descent.schedules import curve
from fogline.descent.scoring import refresh_statistics
from overhead_parts.trainers import make_torchvision_importable
from rate_parts import verified
from rate_parts.grid import RANGES, WARMUP, Cell, Ready, Trained, train

os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported

TRIALS = 20
SHARE = 0.05  # of the run, for equal probing where Fogline's own cost is not known
_SWEEP = 1000  # batches an epoch for finders that want to know; none of them comes to the end
_REFRESHED = 50
# What a finder may stumble over; its row says so.
TROUBLE = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass
class Proposal:
    """What a finder said.

    Attributes:
        rate: None where it found none.
        cost_steps: training steps it took.
        interval: where it says that the rate lies.
        note: which rule, or what went wrong.
        warnings: its own.
        evidence: its own.
        seconds, processor: what it took on the clock.
    """

    rate: float | None
    cost_steps: int = 0
    interval: tuple[float, float] | None = None
    note: str = ""
    warnings: list[str] = field(default_factory=list)
    evidence: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    processor: float = 0.0


Finder = Callable[[Ready, Cell], Proposal]


class Judged(nn.Module):
    """A model with its loss behind it: a batch in, its mean loss out."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.model, self.loss = objective.model, objective.loss

    def forward(self, batch: Any) -> Tensor:
        return Objective(self.model, self.loss)(batch)


class Fed:
    """The cell's batches as a loader of (batch, something in the place of targets); counts what was taken."""

    n_inp = 1

    def __init__(self, ready: Ready) -> None:
        self.batches, self.batch_size, self.taken = ready.batches, ready.problem.batch_size, 0
        self.dataset = range(_SWEEP * self.batch_size)

    def __len__(self) -> int:
        return _SWEEP

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        for batch in self.batches.stream(0):
            self.taken += 1
            yield batch, torch.zeros(rows_of(batch))


def _itself(loss: Tensor, _: object) -> Tensor:
    return loss


def ours(ready: Ready, _: Cell) -> Proposal:
    """``fogline.find_lr``; a checkout from before it has the interim rule of ``fogline.rate.measure_rate``."""
    find = getattr(fogline, "find_lr", None)
    if find is not None:
        rate, note = find(ready.task, ready.recipe), "find_lr"
    else:
        from fogline.rate import measure_rate

        rate, note = measure_rate(ready.fresh(), ready.batches, ready.recipe), "measure_rate"
    low, high = (float(end) for end in rate.interval)
    evidence = dict(getattr(rate, "evidence", {}))
    return Proposal(float(rate.value), int(rate.cost_steps), (low, high), note, list(rate.warnings), evidence)


def fastai(which: str) -> Finder:
    """``Learner.lr_find`` with one of its suggestion functions."""

    def propose(ready: Ready, _: Cell) -> Proposal:
        _import_torchvision()
        from fastai.callback import schedule
        from fastai.data.core import DataLoaders
        from fastai.learner import Learner
        from fastai.optimizer import OptimWrapper

        fed, judged = Fed(ready), Judged(ready.fresh())

        def optimizer(_parameters: Any, lr: float, **_: object) -> OptimWrapper:
            return OptimWrapper(opt=ready.make_optimizer(judged.model, lr))

        with tempfile.TemporaryDirectory() as folder:
            learner = Learner(
                DataLoaders(fed, []), judged, loss_func=_itself, opt_func=optimizer, path=folder, train_bn=False
            )
            found = learner.lr_find(show_plot=False, suggest_funcs=getattr(schedule, which))
        return Proposal(float(found[0]), fed.taken)

    return propose


def torch_lr_finder(ready: Ready, _: Cell) -> Proposal:
    """The range test and its suggestion, the steepest descent."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot
    from torch_lr_finder import LRFinder, TrainDataLoaderIter

    fed, judged = Fed(ready), Judged(ready.fresh())
    optimizer = ready.make_optimizer(judged.model, 1e-7)
    finder = LRFinder(judged, optimizer, _itself, device="cpu")
    finder.range_test(TrainDataLoaderIter(fed), end_lr=100, num_iter=100)
    figure, axes = pyplot.subplots()
    try:
        _, rate = finder.plot(suggest_lr=True, ax=axes)
    finally:
        pyplot.close(figure)
    return Proposal(float(rate), fed.taken)


def lightning(ready: Ready, _: Cell) -> Proposal:
    """``Tuner.lr_find``."""
    _import_torchvision()
    import lightning as L
    from lightning.pytorch.tuner import Tuner

    fed, judged = Fed(ready), Judged(ready.fresh())

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.judged, self.lr = judged, 1e-3

        def training_step(self, batch: tuple[Any, Tensor], _index: int) -> Tensor:
            return self.judged(batch[0])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return ready.make_optimizer(self.judged.model, self.lr)

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=folder, max_steps=ready.problem.steps,
        )  # fmt: skip
        found = Tuner(trainer).lr_find(Module(), train_dataloaders=fed)
        rate = None if found is None else found.suggestion()
    return Proposal(None if rate is None else float(rate), fed.taken, note="" if rate else "no suggestion")


def trial_steps(ready: Ready, cell: Cell) -> int:
    """Steps of one of Optuna's trials, so that all of them cost what finding and verifying cost Fogline."""
    known = cell.proposals.get("fogline", {}).get("cost_steps")
    cost = verified.cost(cell) if known else SHARE * ready.problem.steps
    return max(1, round(cost / TRIALS))


def optuna(ready: Ready, cell: Cell) -> Proposal:
    """Twenty trials of a short run annealed to zero, scored on the held-out data."""
    import optuna as package

    package.logging.set_verbosity(package.logging.ERROR)
    steps = trial_steps(ready, cell)
    study = package.create_study(sampler=package.samplers.TPESampler(seed=ready.seed))

    def score(trial: Any) -> float:
        return min(train(ready, trial.suggest_float("lr", *RANGES[ready.optimizer], log=True), steps=steps).loss, 1e30)

    study.optimize(score, n_trials=TRIALS)
    return Proposal(study.best_params["lr"], TRIALS * steps, note=f"{steps} steps a trial")


def default(ready: Ready, _: Cell) -> Proposal:
    """The rate everybody starts from: 0.01 for SGD with momentum, 1e-3 for AdamW and Muon."""
    return Proposal(spec_of(ready.optimizer).lr)


def ultralytics(ready: Ready, _: Cell) -> Proposal:
    """Ultralytics' rule: by the number of classes for AdamW (and, one scale serving both, Muon), 0.01 for SGD."""
    if ready.optimizer == "momentum":
        return Proposal(0.01)
    return Proposal(round(0.002 * 5 / (4 + ready.problem.classes), 6))


FINDERS: dict[str, Finder] = {
    "fogline": ours,
    "fastai_minimum": fastai("minimum"),
    "fastai_valley": fastai("valley"),
    "torch_lr_finder": torch_lr_finder,
    "lightning": lightning,
    "optuna": optuna,
    "default": default,
    "ultralytics": ultralytics,
}
"""Finders of a rate for the cell's own optimizer; Fogline's first, since Optuna's budget is what that cost."""


_called: set[str] = set()


def propose(name: str, ready: Ready, cell: Cell) -> dict[str, Any]:
    """A finder's proposal, timed; what it stumbles over is its note. ImportError passes through."""
    if name not in _called:  # the first call in a process imports packages, which is no part of the search
        _called.add(name)
        _asked(name, ready, cell)
    wall, processor = time.perf_counter(), time.process_time()
    found = _asked(name, ready, cell)
    found.seconds, found.processor = time.perf_counter() - wall, time.process_time() - processor
    if found.rate is not None and not 0 < found.rate < float("inf"):
        found.note, found.rate = f"proposed {found.rate}", None
    return asdict(found)


def _asked(name: str, ready: Ready, cell: Cell) -> Proposal:
    torch.manual_seed(ready.seed)
    with _silence():
        try:
            return FINDERS[name](ready, cell)
        except TROUBLE as error:
            said = str(error).splitlines() or [""]
            return Proposal(None, note=f"{type(error).__name__}: {said[0]}")


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _import_torchvision() -> None:
    with contextlib.suppress(RuntimeError):  # the schemas are there already
        make_torchvision_importable()


# Methods that are a whole optimizer and set their own step: each is run once a task and seed, with the settings its
# authors recommend, and held against the grid of the optimizer it is a variant of.


def prodigy(ready: Ready) -> Trained:
    """lr = 1, annealed to zero."""
    from prodigyopt import Prodigy

    anneal = curve("linear", ready.problem.steps)
    return train(ready, 1.0, optimizer=lambda model: Prodigy(model.parameters(), lr=1.0), multiplier=anneal)


def dadapt_adam(ready: Ready) -> Trained:
    """lr = 1, annealed to zero."""
    from dadaptation import DAdaptAdam

    anneal = curve("linear", ready.problem.steps)
    return train(ready, 1.0, optimizer=lambda model: DAdaptAdam(model.parameters(), lr=1.0), multiplier=anneal)


def dadapt_sgd(ready: Ready) -> Trained:
    """lr = 1, momentum 0.9, annealed to zero."""
    from dadaptation import DAdaptSGD

    def make(model: nn.Module) -> torch.optim.Optimizer:
        return DAdaptSGD(model.parameters(), lr=1.0, momentum=0.9)

    return train(ready, 1.0, optimizer=make, multiplier=curve("linear", ready.problem.steps))


def schedule_free(ready: Ready) -> Trained:
    """Its default rate of 0.0025 with warm-up and no schedule; running statistics are gathered anew for its average."""
    from schedulefree import AdamWScheduleFree

    warmup = round(WARMUP * ready.problem.steps)

    def make(model: nn.Module) -> torch.optim.Optimizer:
        optimizer = AdamWScheduleFree(model.parameters(), lr=0.0025, warmup_steps=warmup)
        optimizer.train()
        return optimizer

    def average(optimizer: torch.optim.Optimizer, objective: Objective) -> Callable[[], None]:
        buffers = [buffer.clone() for buffer in objective.model.buffers()]
        optimizer.eval()
        refresh_statistics(objective, ready.batches.stream(0), _REFRESHED)

        def back() -> None:
            optimizer.train()
            for buffer, old in zip(objective.model.buffers(), buffers, strict=True):
                buffer.copy_(old)

        return back

    return train(ready, 0.0025, optimizer=make, multiplier=lambda _: 1.0, before_scoring=average)


METHODS: dict[str, tuple[str, Callable[[Ready], Trained]]] = {
    "prodigy": ("adamw", prodigy),
    "schedule_free": ("adamw", schedule_free),
    "dadapt_adam": ("adamw", dadapt_adam),
    "dadapt_sgd": ("momentum", dadapt_sgd),
}
"""By name: the optimizer in whose cell it is scored, and its run."""


def run_method(name: str, ready: Ready) -> Trained:
    """The run of a whole optimizer; one that breaks down counts as a run that came to nothing."""
    with _silence():
        try:
            return METHODS[name][1](ready)
        except TROUBLE:
            return Trained(1.0, float("inf"), [], 0.0, 0.0, 0)
