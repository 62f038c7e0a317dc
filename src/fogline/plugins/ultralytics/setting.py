"""What Ultralytics would train with: its trainer, made and set up, with nothing trained and nothing left behind."""

from __future__ import annotations

import copy
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from fogline.descent.randomness import private_randomness

TASKS = ("detect", "segment", "classify")
"""Tasks whose batches are known here."""


@dataclass(frozen=True)
class Setting:
    """A trainer of Ultralytics that was set up for a data set.

    Attributes:
        yolo: what it trains.
        trainer: with data and arguments; it holds no model.
        settings: as they were given.
    """

    yolo: Any
    trainer: Any
    settings: Mapping[str, Any]

    @property
    def args(self) -> Any:
        return self.trainer.args

    @cached_property
    def stand_in(self) -> Any:
        """A model of their class, for what is asked of it besides its outputs."""
        with undisturbed():
            return self.model()

    def model(self) -> nn.Module:
        """A model as the trainer would begin with: of the weights that were loaded, else drawn anew."""
        trainer, yolo = self.trainer, self.yolo
        loaded = yolo.model if getattr(yolo, "ckpt", None) else None
        trainer.model = trainer.get_model(cfg=copy.deepcopy(yolo.model.yaml), weights=loaded, verbose=False)
        trainer.set_model_attributes()
        model: nn.Module = trainer.model
        trainer.model = yolo.model  # a trainer that held on to each of them would keep all alive
        frozen = _frozen(self.args.freeze)
        for name, parameter in model.named_parameters():
            wanted = parameter.is_floating_point() and not any(part in name for part in frozen)
            parameter.requires_grad_(wanted)
        return model.float()

    def beginning(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        """A model and its optimizer, to be looked at; no random state is touched."""
        with undisturbed():
            model = self.model()
            return model, self.optimizer(model)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer that the trainer would take for this model and data."""
        args, batch = copy.copy(self.args), int(self.args.batch)
        images = len(self.trainer.build_dataset(self.trainer.data["train"], "train", batch))
        updates = -(-images // max(batch, int(args.nbs))) * int(args.epochs)
        try:
            found: torch.optim.Optimizer = self.trainer.build_optimizer(
                model=model,
                name=args.optimizer,
                lr=args.lr0,
                momentum=args.momentum,
                decay=args.weight_decay * batch * self.accumulate / args.nbs,
                iterations=updates,
            )
        finally:
            self.trainer.args = args  # "auto" writes its choice into them
        return found

    @property
    def accumulate(self) -> int:
        """Batches that the trainer makes an update of."""
        return max(1, round(float(self.args.nbs) / int(self.args.batch)))


def setting(yolo: Any, data: Any, settings: Mapping[str, Any]) -> Setting:
    """Make the trainer that ``yolo.train(data=..., **settings)`` would make.

    Random states and PyTorch's choice of deterministic algorithms are as before, and the folder it makes is gone.

    Raises:
        TypeError, ValueError: it is no YOLO, or its task or a setting is not one that is known here.
    """
    task = getattr(yolo, "task", None)
    if not callable(getattr(yolo, "train", None)) or task is None:
        raise TypeError(
            f"expected an ultralytics.YOLO, received {type(yolo).__name__}; make one with YOLO('yolo26n.yaml')"
        )
    if task not in TASKS:
        raise ValueError(
            f"expected a YOLO for one of {', '.join(TASKS)}, received one for {task!r}; train it by yolo.train and "
            "watch that with fogline.plugins.ultralytics.watch"
        )
    if not isinstance(settings.get("batch", 16), int) or settings.get("batch", 16) < 1:
        raise ValueError(f"expected a whole number of images as `batch`, received {settings['batch']!r}")
    for name, why in (("multi_scale", "batches of changing size"), ("cls_pw", "class weights"), ("rect", "rectangles")):
        if settings.get(name):
            raise ValueError(f"expected no {name}, received {settings[name]!r}: {why} are not known here; leave it out")
    with undisturbed(), tempfile.TemporaryDirectory() as folder:
        overrides = {
            **yolo.overrides,
            **settings,
            "data": data,
            "task": task,
            "mode": "train",
            "plots": False,
            "project": folder,
            "name": "setting",
            "exist_ok": True,
        }
        trainer = yolo._smart_load("trainer")(overrides=overrides, _callbacks=defaultdict(list, {"teardown": []}))
    trainer.stride = 32
    return Setting(yolo, trainer, dict(settings))


def _frozen(freeze: Any) -> list[str]:
    numbers = freeze if isinstance(freeze, list) else range(freeze) if isinstance(freeze, int) else []
    return [".dfl", *(f"model.{number}." for number in numbers)]


@contextmanager
def undisturbed() -> Iterator[None]:
    """Within it Ultralytics may draw random numbers and choose algorithms: both are as before afterwards."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    try:
        with private_randomness(device):
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=only_warns)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
