"""Fogline inside the Trainer of Hugging Face transformers: the signals, findings and examples of it, and its rate.

::

    from fogline.plugins.transformers import FoglineCallback
    trainer.add_callback(FoglineCallback(trainer))
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fogline.descent.randomness import private_randomness
from fogline.doctor import loop_findings
from fogline.errors import needed
from fogline.plugins.following import Followed, Following, unwrapped
from fogline.plugins.numbering import Numbers, can_be_numbered
from fogline.plugins.recipes import recipe_of
from fogline.progress import ProgressFunction
from fogline.rate.find import Rate
from fogline.rate.find import find_lr as measured
from fogline.recipe import Recipe
from fogline.task import Task, on_batch

transformers: Any = needed("transformers", "transformers")

_Base: Any = transformers.TrainerCallback
_NO_SCORES = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "jit_compilation_time")
_COMPARED = 3
"""Batches whose loss is compared with the mean over its examples."""
_CONSTANT = ("constant", "constant_with_warmup")


class FoglineCallback(Followed, _Base):  # type: ignore[misc]
    """Watches what ``Trainer.train`` does, as :func:`fogline.watch` watches a loop of your own.

    A run begins with every training and ends with it, also by an exception. The loss of a step is the one that its
    gradient is of, whatever the batches it was accumulated over; held-out scores are the metrics of an evaluation,
    ``eval_loss`` as ``loss``. Where a model for classification gives ``logits`` of one row an example and the batch has
    ``labels``, what every example does is recorded by its number in the training data.

    Args:
        trainer: that the callback is added to; it is needed for the losses, which callbacks are not told.
        examples: whether to record the examples where that is possible.
        runs, name, share, progress: as in :func:`fogline.watch`.

    Example::

        callback = FoglineCallback(trainer)
        trainer.add_callback(callback)
        trainer.train()
        print(callback.run.verdict)
    """

    def __init__(
        self,
        trainer: Any,
        *,
        examples: bool = True,
        runs: str | Path = "runs",
        name: str | None = None,
        share: float = 0.02,
        progress: bool | ProgressFunction | None = None,
    ) -> None:
        self._trainer, self._examples = trainer, examples
        self._following = Following(runs, name, share, progress)
        self._numbers: Numbers | None = None
        self._loss_fn = nn.CrossEntropyLoss()  # of which only the arguments are looked at
        self._logits: Tensor | None = None
        self._hook: Any = None
        self._compared = self._whole = 0
        trainer.train = self._ending(trainer.train)
        trainer.training_step = self._logging(trainer.training_step)

    # -- what the trainer calls ------------------------------------------------------------------------------------

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **given: Any
    ) -> None:
        """Open a run."""
        if not state.is_world_process_zero:
            return
        self._release()
        scheduler = given.get("lr_scheduler")
        schedulers = [getattr(scheduler, "scheduler", scheduler)]  # the one that Accelerate stands around
        self._following.begin(model, [optimizer], loss_fn=self._loss_fn, schedulers=schedulers)
        if state.global_step:
            self._following.resumed(state.global_step)
        if self._examples:
            self._begin_examples(model, given.get("train_dataloader"), resumed=state.global_step > 0)

    def _begin_examples(self, model: nn.Module, loader: Any, *, resumed: bool) -> None:
        # A resumed training passes over batches that it does not train on: the numbers would be those of others.
        if can_be_numbered(loader) and not resumed:
            self._numbers = Numbers(loader)
            self._hook = model.register_forward_hook(self._after_forward)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Stop where somebody asked for it."""
        if self._following.stopping:
            control.should_training_stop = True
        return control

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, Any] | None = None, **_: Any
    ) -> None:
        """Log what an evaluation found."""
        found = {name: value for name, value in (metrics or {}).items() if not name.endswith(_NO_SCORES)}
        found.pop("epoch", None)
        self._following.score(found)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the run."""
        self._release()
        self._following.end()

    # -- what stands around the trainer's methods ------------------------------------------------------------------

    def _ending(self, train: Callable[..., Any]) -> Callable[..., Any]:
        """``train`` that closes the run also where it raises, which callbacks are not told."""

        @wraps(train)
        def trained(*args: Any, **kwargs: Any) -> Any:
            with self:
                return train(*args, **kwargs)

        return trained

    def _logging(self, training_step: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """``training_step`` that logs the loss it gives."""

        @wraps(training_step)
        def stepped(model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
            labels = inputs.get("labels") if self._numbers is not None else None
            loss = training_step(model, inputs, *args, **kwargs)
            if self._following.open:
                self._log(loss, labels)
            return loss

        return stepped

    def _log(self, loss: Tensor, labels: Any) -> None:
        # Each of the accumulated batches gives its share of the loss of the step; a run takes their mean.
        shares = getattr(self._trainer, "current_gradient_accumulation_steps", None)
        value = loss.detach() * (shares or self._trainer.args.gradient_accumulation_steps)
        logits, self._logits = self._logits, None
        numbers = None if self._numbers is None else self._numbers.next()
        if numbers is not None and _are_classes(logits, labels, len(numbers)):
            assert logits is not None
            mean = self._loss_fn(logits, labels.to(logits.device))  # shows the run outputs and targets
            self._following.run.log(value, examples=numbers)
            self._compare(loss, mean, shares or 1)
        else:
            self._following.run.log(value)

    def _compare(self, loss: Tensor, mean: Tensor, batches: int) -> None:
        """Whether the loss of an accumulated batch enters whole: models that ignore ``num_items_in_batch`` do that."""
        if batches < 2 or self._compared >= _COMPARED:
            return
        self._compared += 1
        self._whole += int(torch.isclose(loss.float(), mean.float(), rtol=1e-3))
        if self._whole == _COMPARED:
            self._say_undivided(batches)

    def _say_undivided(self, batches: int) -> None:
        run = self._following.run
        if type(unwrapped(self._trainer.optimizer)).__name__ == "SGD":
            run.found(loop_findings.undivided(0, batches, ""))
        run.note(
            f"the losses of {batches} accumulated batches are added and not divided by {batches}, since the model "
            "takes num_items_in_batch and does not use it: loss and gradient are as many times too large, which "
            "clipping, epsilon and SGD feel; set trainer.model_accepts_loss_kwargs = False",
            batches=batches,
        )

    def _after_forward(self, _: nn.Module, __: object, output: Any) -> None:
        if torch.is_grad_enabled():
            logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
            self._logits = logits.detach().float() if isinstance(logits, Tensor) else None

    def _release(self) -> None:
        if self._numbers is not None:
            self._numbers.release()
        if self._hook is not None:
            self._hook.remove()
        self._numbers, self._hook, self._logits = None, None, None
        self._compared = self._whole = 0


def find_lr(trainer: Any, **recipe_fields: Any) -> Rate:
    """Measure the learning rate of a Trainer, as :func:`fogline.find_lr` does; nothing is disturbed.

    Model, data, collator, loss, optimizer (with what its groups' rates are to each other), length, accumulation,
    clipping and precision are the trainer's:

        trainer.args.learning_rate = find_lr(trainer).value

    Args:
        trainer: before it trains.
        recipe_fields: fields of the recipe that are to be others.

    Raises:
        ValueError, TypeError: the data is a stream or has no rows; else what :func:`fogline.find_lr` says.
    """
    device = next(trainer.model.parameters()).device
    with private_randomness(device):
        train = _plain_loader(trainer.get_train_dataloader(), trainer.args.train_batch_size)
        held_out = trainer.eval_dataset
        if isinstance(held_out, dict):  # several by name
            held_out = next(iter(held_out.values()), None)
        rows = trainer.args.eval_batch_size
        valid = None if held_out is None else _plain_loader(trainer.get_eval_dataloader(held_out), rows)
    model = trainer.model

    def loss(module: nn.Module, batch: dict[str, Any]) -> Tensor:
        value: Tensor = trainer.compute_loss(module, dict(batch))
        return value

    task = Task(model=lambda: copy.deepcopy(model), loss=on_batch(loss), train=train, valid=valid)
    return measured(task, _recipe(trainer, device, recipe_fields))


def _plain_loader(loader: DataLoader[Any], batch_size: int) -> DataLoader[Any]:
    """The data of a prepared loader, whose batches are plain dicts."""
    collate = loader.collate_fn
    return DataLoader(loader.dataset, batch_size, collate_fn=lambda rows: dict(collate(rows)))


def _recipe(trainer: Any, device: torch.device, fields: Mapping[str, Any]) -> Recipe:
    args = trainer.args
    steady = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)) in _CONSTANT
    found: dict[str, Any] = {
        "duration": f"{args.max_steps}st" if args.max_steps > 0 else f"{args.num_train_epochs:g}ep",
        "accumulate": args.gradient_accumulation_steps,
        "clip": args.max_grad_norm or None,
        "schedule": "constant" if steady else "linear",
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "float32",
        "seed": args.seed,
        "device": str(device),
    }
    before = trainer.optimizer
    optimizer = before if before is not None else trainer.create_optimizer()
    trainer.optimizer = before  # the training makes its own, with the rate that is set by then
    return recipe_of(optimizer, trainer.model, **found | dict(fields))


def _are_classes(logits: Any, labels: Any, rows: int) -> bool:
    """Whether they are one row of logits and one label for each example."""
    tensors = isinstance(logits, Tensor) and isinstance(labels, Tensor)
    return (
        tensors
        and logits.ndim == 2
        and logits.shape[1] > 1
        and labels.shape == (rows,)
        and len(logits) == rows
        and not labels.is_floating_point()
    )
