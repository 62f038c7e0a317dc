"""Fogline inside Lightning's Trainer: the signals, findings and examples of a fit, and its learning rate.

::

    from fogline.plugins.lightning import FoglineCallback
    trainer = Trainer(max_epochs=20, callbacks=[FoglineCallback()])
"""

from __future__ import annotations

import copy
import inspect
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from fogline.errors import misfit, needed
from fogline.plugins.following import Followed, Following, is_number
from fogline.plugins.numbering import Numbers
from fogline.plugins.recipes import recipe_of
from fogline.progress import ProgressFunction
from fogline.rate.find import Rate
from fogline.rate.find import find_lr as measured
from fogline.recipe import Recipe
from fogline.task import Task, on_batch

pytorch: Any = needed("lightning.pytorch", "lightning")

_PRECISIONS = {"16-mixed": "fp16", "bf16-mixed": "bf16", "32-true": "float32", "64-true": "float64"}
_Base: Any = pytorch.Callback
_MOST_WAITING = 256


class FoglineCallback(Followed, _Base):  # type: ignore[misc]
    """Watches what ``Trainer.fit`` does, as :func:`fogline.watch` watches a loop of your own.

    A run begins with the training, after a checkpoint was loaded and the sanity check was made, and ends with it, also
    by an exception. Losses are those of ``training_step``, averaged over accumulated batches; held-out scores are the
    metrics that validation logs, ``val_loss`` as ``loss``. With manual optimization every optimizer has a run of its
    own, and a loss belongs to the optimizer that steps next.

    Args:
        examples: the numbers of a batch's examples: a function of the batch, or the key or place at which the batch
            holds them. See :meth:`numbered` for data that does not bring them.
        losses: the key under which ``training_step`` returns the loss of each example, where its loss function is no
            module.
        loss_fn: the loss module of the ``training_step``; by default the only one of PyTorch's that the module has.
        runs, name, share, progress: as in :func:`fogline.watch`.

    Example::

        callback = FoglineCallback()
        Trainer(max_epochs=20, callbacks=[callback]).fit(model, loader)
        print(callback.run.verdict)
    """

    def __init__(
        self,
        *,
        examples: Callable[[Any], Any] | str | int | None = None,
        losses: str | None = None,
        loss_fn: nn.Module | None = None,
        runs: str | Path = "runs",
        name: str | None = None,
        share: float = 0.02,
        progress: bool | ProgressFunction | None = None,
    ) -> None:
        super().__init__()
        self._following = Following(runs, name, share, progress)
        self._examples, self._losses, self._loss_fn = examples, losses, loss_fn
        self._numbers: Numbers | None = None
        self._batch: Any = None
        self._waiting: deque[Tensor] = deque(maxlen=_MOST_WAITING)  # of manual optimization, before a step on them
        self._announced: set[int] = set()
        self._hooks: list[Any] = []
        self._before: dict[str, Tensor] = {}
        self._held_out: set[str] = set()

    def numbered(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        """Let the callback know which examples the loader's batches are made of; gives the same loader.

        For one process and one training loader:

            trainer.fit(model, callback.numbered(loader))

        Raises:
            TypeError, ValueError: the loader does not draw numbered examples.
        """
        self._numbers = Numbers(loader)
        return loader

    # -- training --------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Open a run for each optimizer."""
        if not trainer.is_global_zero:
            return
        loss_fn = self._loss_fn if self._loss_fn is not None else _loss_module(pl_module)
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        if not pl_module.automatic_optimization:  # before the hooks of the runs: a loss must be there when they look
            self._hooks = [
                optimizer.register_step_pre_hook(self._before_manual_step(place))
                for place, optimizer in enumerate(trainer.optimizers)
            ]
        self._following.begin(_called(pl_module), trainer.optimizers, loss_fn=loss_fn, schedulers=schedulers)
        if trainer.global_step:
            self._following.resumed(trainer.global_step)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """A batch goes forward; the LightningModule's own forward may not be called on it."""
        self._batch = batch
        self._announced = set(range(len(self._following.open)))
        for run in self._following.open:
            run.forward(batch)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Keep the losses of manual optimization until somebody takes a step on them."""
        if self._following.open and not pl_module.automatic_optimization:
            self._waiting.append(loss.detach())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the loss of the batch, and stop where somebody asked for it."""
        numbers = None if self._numbers is None else self._numbers.next()
        if self._following.open and pl_module.automatic_optimization:
            self._log(outputs, self._numbers_of(batch, numbers), trainer.accumulate_grad_batches)
        if self._following.stopping:
            trainer.should_stop = True

    def _log(self, outputs: Any, numbers: Any, batches: int) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, Tensor):
            return  # training_step returned None: the batch was passed over
        run, loss = self._following.open[0], loss.detach() * batches
        if numbers is None:
            run.log(loss)
        elif self._losses is None:
            run.log(loss, examples=numbers)
        else:
            run.log(outputs[self._losses].detach(), examples=numbers)

    def _numbers_of(self, batch: Any, numbers: Any) -> Any:
        if self._examples is None:
            return numbers
        return self._examples(batch) if callable(self._examples) else batch[self._examples]

    def _before_manual_step(self, place: int) -> Callable[[Optimizer, Any, Any], None]:
        """What is done before a step of the optimizer at a place: the losses since the last step are its own."""

        def log(_: Optimizer, __: Any, ___: Any) -> None:
            if place >= len(self._following.open):
                return
            run, waiting = self._following.open[place], list(self._waiting)
            self._waiting.clear()
            if place not in self._announced:  # another step on the same batch
                run.forward(self._batch)
            self._announced.discard(place)
            for loss in waiting:
                run.log(loss)

        return log

    # -- validation ------------------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Remember what was logged before."""
        self._before = dict(trainer.callback_metrics)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Log what validation logged: what is new in the trainer's metrics or another number than before."""
        if trainer.sanity_checking or not self._following.open:
            return
        metrics, before = {n: v for n, v in trainer.callback_metrics.items() if is_number(v)}, self._before
        self._held_out |= {n for n, v in metrics.items() if n not in before or not _same(before[n], v)}
        self._following.score({name: metrics[name] for name in sorted(self._held_out & set(metrics))})

    # -- the end ---------------------------------------------------------------------------------------------------

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the runs."""
        self._end(None)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close the runs, and say what ended them."""
        self._end(exception)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Close what is still open."""
        self._end(None)

    def _end(self, error: BaseException | None) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._batch = [], None
        self._waiting.clear()
        self._following.end(error)


def find_lr(
    trainer: Any,
    model: Any,
    train_dataloaders: Any = None,
    val_dataloaders: Any = None,
    datamodule: Any = None,
    **recipe_fields: Any,
) -> Rate:
    """Measure the learning rate of a LightningModule, as :func:`fogline.find_lr` does; nothing is disturbed.

    The optimizer is the one of ``configure_optimizers``, with what its groups' rates are to each other; length,
    accumulation, clipping and precision are the trainer's. Set the rate where your module reads it:

        model.lr = find_lr(trainer, model, loader).value

    Args:
        trainer: that will fit the module.
        model: the LightningModule.
        train_dataloaders, val_dataloaders, datamodule: as in ``Trainer.fit``; one loader each.
        recipe_fields: fields of the recipe that are to be others; with ``optimizer`` the module's is not asked for.

    Raises:
        TypeError, ValueError: the module optimizes manually, has several optimizers or several loaders, or what
            :func:`fogline.find_lr` says.
    """
    if not model.automatic_optimization:
        received, remedy = "manual optimization", "call fogline.find_lr with a task of your own"
        raise misfit("a LightningModule with automatic optimization", received, remedy, "find_lr")
    train, valid = _loaders(model, train_dataloaders, val_dataloaders, datamodule)
    takes_number = len(inspect.signature(model.training_step).parameters) > 1

    def loss(module: Any, batch: Any) -> Tensor:
        output = module.training_step(batch, 0) if takes_number else module.training_step(batch)
        value: Tensor = output["loss"] if isinstance(output, Mapping) else output
        return value

    task = Task(model=lambda: _quiet(copy.deepcopy(model)), loss=on_batch(loss), train=train, valid=valid)
    return measured(task, _recipe(trainer, model, recipe_fields))


def _recipe(trainer: Any, model: Any, fields: Mapping[str, Any]) -> Recipe:
    found: dict[str, Any] = {"accumulate": trainer.accumulate_grad_batches, "schedule": "constant"}
    if trainer.max_steps > 0:
        found["duration"] = f"{trainer.max_steps}st"
    elif trainer.max_epochs is not None and trainer.max_epochs > 0:
        found["duration"] = f"{trainer.max_epochs}ep"
    if trainer.gradient_clip_val and str(trainer.gradient_clip_algorithm or "norm") in (
        "norm",
        "GradClipAlgorithmType.NORM",
    ):
        found["clip"] = trainer.gradient_clip_val
    found["precision"] = _PRECISIONS.get(str(trainer.precision), "auto")
    if "optimizer" in fields:
        return Recipe().replace(**found | dict(fields))
    optimizer, scheduled = _optimizer(model)
    if scheduled:
        found["schedule"] = "linear"
    return recipe_of(optimizer, model, **found | dict(fields))


def _optimizer(model: Any) -> tuple[Optimizer, bool]:
    """The optimizer that the module configures, and whether a schedule goes with it."""
    configured = model.configure_optimizers()
    scheduled = isinstance(configured, Mapping) and "lr_scheduler" in configured
    if isinstance(configured, Mapping):
        configured = configured["optimizer"]
    if isinstance(configured, tuple | list):
        lists = len(configured) == 2 and isinstance(configured[0], list | tuple)
        scheduled = lists and bool(configured[1])
        configured = configured[0] if lists else configured
        configured = configured[0] if len(configured) == 1 else configured
    if not isinstance(configured, Optimizer):
        received = "several" if isinstance(configured, tuple | list) else type(configured).__name__
        raise misfit(
            "one optimizer of configure_optimizers", received, "name one: optimizer='adamw'", "find_lr", TypeError
        )
    return configured, scheduled


def _loaders(model: Any, train: Any, valid: Any, datamodule: Any) -> tuple[Any, Any]:
    """The training and held-out loader, of whoever has them."""
    source = datamodule if datamodule is not None else train if hasattr(train, "train_dataloader") else None
    if source is not None:
        source.prepare_data()
        source.setup("fit")
        train, valid = source.train_dataloader(), source.val_dataloader()
    train = model.train_dataloader() if train is None else train
    if isinstance(valid, list | tuple):
        valid = valid[0] if valid else None
    for what, loader in (("train", train), ("val", valid)):
        if not isinstance(loader, DataLoader) and (what == "train" or loader is not None):
            remedy = "pass one torch DataLoader"
            raise misfit("a DataLoader", type(loader).__name__, remedy, f"find_lr: {what}_dataloaders", TypeError)
    return train, valid


def _quiet(module: Any) -> Any:
    """A copy that is not logged: it has no trainer."""
    module.log = module.log_dict = _nothing
    return module


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _called(module: Any) -> nn.Module:
    """What is called: the LightningModule, or where it has no forward of its own the only part that has parameters."""
    parts = [part for part in module.children() if any(True for _ in part.parameters())]
    own = any(True for _ in module.parameters(recurse=False))
    alone = type(module).forward is pytorch.LightningModule.forward and len(parts) == 1 and not own
    found: nn.Module = parts[0] if alone else module
    return found


def _loss_module(module: Any) -> nn.Module | None:
    """The module's only loss, where it is one of PyTorch's."""
    found = [part for part in module.modules() if isinstance(part, _Loss)]
    return found[0] if len(found) == 1 else None


def _same(a: Any, b: Any) -> bool:
    return a is b or bool(torch.as_tensor(a).cpu() == torch.as_tensor(b).cpu())
