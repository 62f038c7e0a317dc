"""Other trainers on the problems of the overhead benchmark, each at its best on data in memory.

All of them are given the batches of the raw loop, already cut (with PyTorch's DataLoader over a TensorDataset they are
several times slower), the fastest optimizer implementation, and no progress bar, logger, checkpoint or validation.
What is timed is each trainer's own ``fit``, parked between steps, so that set-up and compiling are not in the figures.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import timing
from overhead_parts.problems import BATCHES, Problem


class Tick(Protocol):
    """To be called after optimizer steps; comes back when the trainer is to go on."""

    def __call__(self, steps: int = 1) -> None: ...


FOREVER = 10**9


class Parked:
    """A trainer running in a thread of its own that stands still between slices, and so does its clock.

    ``train(tick)`` must call ``tick()`` after every optimizer step, or ``tick(n)`` after n of them. Only one of the two
    threads ever runs.
    """

    def __init__(self, train: Callable[[Tick], None]) -> None:
        self._train = train
        self._wanted = self._taken = 0
        self._clock = timing.StandingClock()
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._clock.start()
        begin = time.perf_counter()
        threading.Thread(target=self._work, daemon=True).start()
        self._wait()
        self.setup_seconds = time.perf_counter() - begin

    def run(self, steps: int) -> int:
        """Let the trainer take so many steps, and go on to where it ticks next."""
        self._wanted, self._taken = steps, 0
        self._clock.come()
        self._go.release()
        self._wait()
        return self._taken

    def _wait(self) -> None:
        self._done.acquire()
        self._clock.leave()
        if self._error is not None:
            raise RuntimeError(f"{type(self._error).__name__}: {self._error}") from self._error

    def _work(self) -> None:
        torch.set_num_threads(1)
        try:
            self._train(self._tick)
            raise RuntimeError("the trainer came to its end before the benchmark did")
        except BaseException as error:  # noqa: BLE001  whatever ends a peer is its row in the table
            self._error = error
            self._done.release()

    def _tick(self, steps: int = 1) -> None:
        self._taken += steps
        if self._taken >= self._wanted:
            self._done.release()
            self._go.acquire()


def parked(train: Callable[[Tick], None], note: str = "") -> timing.Contender:
    trainer = Parked(train)
    return timing.Contender(trainer.run, setup_seconds=trainer.setup_seconds, note=note)


class Sliced:
    """The batches of the raw loop as an iterable with a length, one epoch at a time.

    ``dataset`` and ``batch_size`` are there for trainers that look at a loader's attributes.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.dataset = torch.utils.data.TensorDataset(problem.inputs, problem.targets)
        self.batch_size = problem.batch_size
        self._source = BATCHES["rows gathered by epoch"](problem)

    def __len__(self) -> int:
        return self.problem.steps_per_epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(len(self)):
            yield next(self._source)


def make_torchvision_importable() -> None:
    """Some trainers import torchvision, whose binary needs CUDA; on a CPU build two of its operators lack a schema."""
    if importlib.util.find_spec("torchvision") is None or torch.version.cuda is not None:
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT_ALIVE.append(library)


_KEPT_ALIVE: list[Any] = []


def _fused(problem: Problem) -> dict[str, bool]:
    """SGD without momentum is fastest as a loop over one tensor or two, everything else fused."""
    return {"foreach": False} if problem.optimizer == "sgd" else {"fused": True}


def lightning(problem: Problem) -> timing.Contender:
    import lightning as L

    class Module(L.LightningModule):
        def __init__(self, tick: Tick) -> None:
            super().__init__()
            self.net, self.tick = problem.model(), tick

        def training_step(self, batch: tuple[Tensor, Tensor], _index: int) -> Tensor:
            return problem.loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return problem.make_optimizer(self.parameters(), **_fused(problem))

        def on_train_batch_end(self, *_: object) -> None:
            self.tick()

    def train(tick: Tick) -> None:
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        trainer = L.Trainer(
            max_epochs=-1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, barebones=False,
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(Module(tick), train_dataloaders=Sliced(problem))

    return parked(train)


def hugging_face(problem: Problem) -> timing.Contender:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = problem.model()

        def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"loss": problem.loss(self.net(inputs), labels)}

    class Loader(Sliced):
        def __iter__(self) -> Iterator[Any]:
            for inputs, labels in super().__iter__():
                yield {"inputs": inputs, "labels": labels}

    class Ticking(TrainerCallback):
        def __init__(self, tick: Tick) -> None:
            self.tick = tick

        def on_step_end(self, *_: object, **__: object) -> None:
            self.tick()

    class InMemory(Trainer):
        def get_train_dataloader(self) -> Any:
            return Loader(problem)

    def train(tick: Tick) -> None:
        model = Wrapped()
        arguments = TrainingArguments(
            output_dir=tempfile.mkdtemp(), max_steps=FOREVER, per_device_train_batch_size=problem.batch_size,
            logging_strategy="no", save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, max_grad_norm=0.0,
            logging_nan_inf_filter=False,
        )  # fmt: skip
        optimizer = problem.make_optimizer(model.parameters(), **_fused(problem))
        constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        InMemory(
            model, arguments, train_dataset=Loader(problem).dataset, optimizers=(optimizer, constant),
            callbacks=[Ticking(tick)],
        ).train()  # fmt: skip

    return parked(train)


def accelerate(problem: Problem) -> timing.Contender:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = problem.model()
    optimizer = problem.make_optimizer(model.parameters(), **_fused(problem))
    model, optimizer = accelerator.prepare(model, optimizer)
    source = BATCHES["rows gathered by epoch"](problem)

    def run(steps: int) -> int:
        for _ in range(steps):
            inputs, targets = next(source)
            with accelerator.accumulate(model):
                optimizer.zero_grad()
                accelerator.backward(problem.loss(model(inputs), targets))
                optimizer.step()
        return steps

    return timing.Contender(run)


def skorch(problem: Problem) -> timing.Contender:
    from skorch import NeuralNet
    from skorch.callbacks import Callback

    class Ticking(Callback):
        def __init__(self, tick: Tick) -> None:
            self.tick = tick

        def on_batch_end(self, *_: object, **__: object) -> None:
            self.tick()

    def train(tick: Tick) -> None:
        options = {f"optimizer__{name}": value for name, value in (problem.optimizer_options | _fused(problem)).items()}
        loader = Sliced(problem)
        net = NeuralNet(
            problem.model(), criterion=problem.loss, optimizer=problem.optimizer_class, max_epochs=FOREVER, verbose=0,
            train_split=None, batch_size=problem.batch_size, iterator_train=lambda *_, **__: loader,
            callbacks=[Ticking(tick)], callbacks__print_log=None, **options,
        )  # fmt: skip
        net.fit(problem.inputs, problem.targets)

    return parked(train, note="keeps a history of every batch")


def fastai(problem: Problem) -> timing.Contender:
    from fastai.callback.core import Callback
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner, Recorder
    from fastai.optimizer import OptimWrapper

    class Ticking(Callback):
        def __init__(self, tick: Tick) -> None:
            super().__init__()
            self.tick = tick

        def after_batch(self) -> None:
            self.tick()

    def train(tick: Tick) -> None:
        loader = Sliced(problem)

        def optimizer(parameters: Any, **_: object) -> OptimWrapper:
            return OptimWrapper(opt=problem.make_optimizer(parameters, **_fused(problem)))

        learner = Learner(
            DataLoaders(loader, []), problem.model(), loss_func=problem.loss, opt_func=optimizer, lr=problem.lr,
            train_bn=False, cbs=[Ticking(tick)],
        )  # fmt: skip
        learner.remove_cbs([callback for callback in learner.cbs if isinstance(callback, Recorder)])
        with learner.no_logging():
            learner.fit(FOREVER)

    return parked(train, note="without its Recorder")


def all_trainers() -> dict[str, Callable[[Problem], timing.Contender]]:
    """The trainers on PyTorch, by the name of their row."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with contextlib.suppress(RuntimeError):
        make_torchvision_importable()
    return {
        "Lightning": lightning,
        "Hugging Face Trainer": hugging_face,
        "Accelerate": accelerate,
        "skorch": skorch,
        "fastai": fastai,
    }
