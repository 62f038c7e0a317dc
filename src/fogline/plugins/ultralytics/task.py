"""YOLO trained by our own engine: its model, loss, augmentation and validator as a Task and a Recipe.

What Ultralytics carries along from step to step is here a function of the epoch, so that a run resumes bit for bit:

- the partners of a mosaic are drawn from all images, and not from those that were read lately;
- mosaics end so many epochs before the last, whichever epoch the run goes on from;
- the weight of the one-to-many branch of an end-to-end model is computed from the epoch that comes with the batch.

An image's boxes come padded to the most there are in the batch, so that every tensor has a row for each image: then the
engine can divide a batch into parts, and name the images of a bad one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import fogline
from fogline.plugins.ultralytics.device import deployment, judged
from fogline.plugins.ultralytics.session import CLIP, SUMMED, base_rate
from fogline.plugins.ultralytics.setting import Setting, setting, undisturbed
from fogline.task import OnBatch

Example = dict[str, Any]
ONLY_LAST = 1 << 30
"""The epoch that held-out images come with: the last one, whatever their number."""


def task(yolo: Any, *, data: Any, **settings: Any) -> fogline.Task:
    """What a YOLO is to learn, for :func:`fogline.fit` and every other verb.

    Args:
        yolo: ``ultralytics.YOLO`` of the tasks detect, segment or classify. Its loaded weights are the start; without
            any they are drawn with the seed of the recipe.
        data: as in ``yolo.train``: the path of the YAML file, or of the folder of images by class.
        **settings: of ``yolo.train``, such as ``imgsz=640``, ``epochs=100``, ``mosaic=0.5``. Those that are about
            optimization are read by :func:`recipe` alone.

    Returns:
        A task whose loss is Ultralytics' own, for an image on average; its gradient is that of theirs, which is summed,
        so that rates, clip and decay mean what they mean there.

    Raises:
        TypeError, ValueError: it is no YOLO, or a setting is not known here.
        RuntimeError: Ultralytics does not find the data.

    Example::

        run = fogline.fit(task(yolo, data="signs.yaml", epochs=50), recipe(yolo, data="signs.yaml", epochs=50))
        print(run.verdict, evaluate(yolo, run.model, data="signs.yaml"))
    """
    found = setting(yolo, data, settings)
    batch = int(found.args.batch)

    def as_at_the_end() -> DataLoader[Example]:
        with undisturbed():
            return _loader(_images(found, "train", last=True), batch, shuffle=True)

    with undisturbed():
        train, valid = (_images(found, part) for part in ("train", "val"))
    loss = ImageLoss(int(found.args.epochs), found.args.task in SUMMED, found.accumulate, found)
    return fogline.Task(
        model=found.model,
        loss=OnBatch(loss, deployment(found, as_at_the_end)),
        train=_loader(train, batch, shuffle=True),
        valid=_loader(valid, batch, shuffle=False),
        name=Path(str(found.args.model)).stem,
    )


def recipe(yolo: Any, *, data: Any, **settings: Any) -> fogline.Recipe:
    """How Ultralytics would descend, as a recipe: its optimizer, groups, clip, decay and length.

    The learning rate is left to be measured; the batch is that of an update, ``batch`` times what it accumulates.

    Args:
        yolo, data, **settings: as in :func:`task`.

    Raises:
        ValueError: an optimizer other than AdamW, SGD and MuSGD.
    """
    found = setting(yolo, data, settings)
    args = found.args
    model, optimizer = found.beginning()
    groups = optimizer.param_groups
    lowest, names = base_rate(groups), {id(p): name for name, p in model.named_parameters()}
    scales = {names[id(p)]: g["lr"] / lowest for g in groups for p in g["params"] if g["lr"] > lowest}
    kind, options = _named(optimizer)
    return fogline.Recipe(
        optimizer=kind,
        options=options,
        lr_scale=scales,
        weight_decay=max(float(group["weight_decay"]) for group in groups),
        clip=CLIP,
        batch_size=int(args.batch) * found.accumulate,
        accumulate=found.accumulate,
        duration=f"{int(args.epochs)}ep",
        schedule="linear",
        seed=int(args.seed),
        step="eager",
    )


def _named(optimizer: torch.optim.Optimizer) -> tuple[str, dict[str, Any]]:
    kind, group = type(optimizer).__name__, optimizer.param_groups[0]
    if kind == "AdamW":
        return "adamw", {"betas": tuple(group["betas"])}
    if kind in ("SGD", "MuSGD"):
        return {"SGD": "nesterov", "MuSGD": "musgd"}[kind], {"momentum": float(group["momentum"])}
    raise ValueError(
        f'expected AdamW, SGD or MuSGD, received {kind}; pass optimizer="AdamW", or another of them, as yolo.train '
        "takes it"
    )


@dataclass(frozen=True)
class ImageLoss:
    """Ultralytics' loss of a batch: its value is that of an image, its gradient theirs of an update.

    Attributes:
        epochs: of the whole run.
        summed: whether their loss is the mean over images times their number.
        accumulate: batches whose gradients they add up for an update, where the engine takes the mean.
        setting: of the training, for a model that is not theirs any more, such as the graph that is fine-tuned.
    """

    epochs: int
    summed: bool
    accumulate: int = 1
    setting: Setting | None = None

    def __call__(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        theirs = as_theirs(batch)
        outputs = model(theirs["img"])
        # It is made anew for each batch: nothing of it is carried along.
        loss, _ = self.criterion(model, batch["epoch"][0])(outputs, theirs)
        total: Tensor = loss.sum()
        value = total.detach() / len(batch["img"]) if self.summed else total.detach()
        return value + self.accumulate * (total - total.detach())

    def criterion(self, model: Any, epoch: Tensor) -> Any:
        """Their loss, with the weights of its two branches as they are in this epoch."""
        if not hasattr(model, "init_criterion"):
            assert self.setting is not None
            model = self.setting.stand_in.to(epoch.device)
        criterion = model.init_criterion()
        if hasattr(criterion, "final_o2m"):
            left = (1 - epoch.double() / max(self.epochs - 1, 1)).clamp(min=0.0).float()
            criterion.o2m = left * (criterion.o2m_copy - criterion.final_o2m) + criterion.final_o2m
            criterion.o2o = criterion.total - criterion.o2m
        return criterion


def as_theirs(batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """A batch as Ultralytics' losses take it: pixels from 0 to 1, and the boxes of all images one after another.

    >>> boxes = torch.tensor([[[1, 0.5, 0.5, 0.2, 0.2]], [[0, 0, 0, 0, 0]]])
    >>> batch = {"img": torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "boxes": boxes, "count": torch.tensor([1, 0])}
    >>> as_theirs(batch)["cls"].tolist(), as_theirs(batch)["batch_idx"].tolist()
    ([[1.0]], [0.0])
    """
    images = batch["img"]
    found: dict[str, Any] = {"img": images.float() / 255 if images.dtype == torch.uint8 else images}
    if "cls" in batch:
        return found | {"cls": batch["cls"]}
    boxes, count = batch["boxes"], batch["count"]
    held = torch.arange(boxes.shape[1], device=boxes.device) < count[:, None]
    owners, _ = held.nonzero(as_tuple=True)
    found |= {"batch_idx": owners.to(boxes.dtype), "cls": boxes[held][:, :1], "bboxes": boxes[held][:, 1:]}
    return found | {name: batch[name] for name in ("masks", "sem_masks") if name in batch}


class Images(Dataset[Example]):
    """Ultralytics' data set, an example for each image.

    Args:
        theirs: with its own augmentation.
        args: the settings of the training.
        train: whether it is augmented.
        last: whether it is read as in the last epoch whichever it is.
    """

    def __init__(self, theirs: Any, args: Any, *, train: bool, last: bool = False) -> None:
        self.theirs, self.train = theirs, train
        self.epoch = 0 if train else ONLY_LAST
        self._closes_at = int(args.epochs) - int(args.close_mosaic) if args.close_mosaic else ONLY_LAST
        self._open: Any = None
        if train and hasattr(theirs, "close_mosaic"):
            self._open = theirs.transforms
            theirs.close_mosaic(hyp=copy.copy(args))
            self._closed = theirs.transforms
            for transforms in (self._open, self._closed):
                _partners_from_all(transforms)
            theirs.transforms = self._open
        elif hasattr(theirs, "rect") and theirs.rect:
            theirs.rect = False
            theirs.transforms = theirs.build_transforms(copy.copy(args))
        if last:
            self.set_epoch(int(args.epochs) - 1)
            self.train, self.epoch = False, ONLY_LAST

    def set_epoch(self, epoch: int) -> None:
        """Read for this pass over the data."""
        if self.train:
            self.epoch = epoch
            if self._open is not None:
                self.theirs.transforms = self._open if epoch < self._closes_at else self._closed

    def __len__(self) -> int:
        return len(self.theirs)

    def __getitem__(self, index: int) -> Example:
        found = self.theirs[index]
        if "bboxes" not in found:
            return {"img": found["img"], "cls": torch.as_tensor(found["cls"]), "epoch": torch.tensor(self.epoch)}
        boxes = torch.cat([found["cls"].reshape(-1, 1).float(), found["bboxes"].float()], 1)
        example = {"img": found["img"], "boxes": boxes, "epoch": torch.tensor(self.epoch)}
        masks = {name: found[name][0] for name in ("masks",) if name in found}
        return example | masks | {name: found[name] for name in ("sem_masks",) if name in found}


def collate(examples: list[Example]) -> dict[str, Tensor]:
    """A batch, with the boxes of each image padded to the most of any.

    >>> one = {"img": torch.zeros(3, 8, 8), "boxes": torch.ones(2, 5), "epoch": torch.tensor(0)}
    >>> batch = collate([one, one | {"boxes": torch.ones(1, 5)}])
    >>> tuple(batch["boxes"].shape), batch["count"].tolist()
    ((2, 2, 5), [2, 1])
    """
    batch = {name: torch.stack([example[name] for example in examples]) for name in examples[0] if name != "boxes"}
    if "boxes" in examples[0]:
        boxes = [example["boxes"] for example in examples]
        batch["count"] = torch.tensor([len(own) for own in boxes])
        # One row at least: a tensor without any would have no values to be sliced.
        most = max(1, int(batch["count"].max()))
        batch["boxes"] = torch.stack([nn.functional.pad(own, (0, 0, 0, most - len(own))) for own in boxes])
    return batch


def evaluate(yolo: Any, model: nn.Module, *, data: Any, **settings: Any) -> dict[str, float]:
    """The scores of Ultralytics' own validator, such as ``mAP50(B)``, for a model of that YOLO.

    Args:
        yolo, data, **settings: as in :func:`task`.
        model: such as ``run.model``; it is left as it is.
    """
    found = setting(yolo, data, settings)
    theirs: Any = copy.deepcopy(model)
    theirs.args, theirs.names = found.args, found.trainer.data["names"]
    return judged(found, theirs.eval())


def _images(found: Setting, part: str, *, last: bool = False) -> Images:
    trainer = found.trainer
    trainer.model = found.yolo.model  # it is asked for its stride
    theirs = trainer.build_dataset(trainer.data[part], mode=part, batch=int(found.args.batch))
    return Images(theirs, found.args, train=part == "train", last=last)


def _loader(images: Images, batch: int, *, shuffle: bool) -> DataLoader[Example]:
    return DataLoader(images, batch_size=batch, shuffle=shuffle, collate_fn=collate)


def _partners_from_all(transforms: Any) -> None:
    """Let mosaics draw from all images: which were read lately depends on where a run began."""
    for transform in getattr(transforms, "transforms", [transforms]):
        inner = getattr(transform, "pre_transform", None)
        if inner is not None:
            _partners_from_all(inner)
        if getattr(transform, "transforms", None):
            _partners_from_all(transform)
        if hasattr(transform, "buffer_enabled"):
            transform.buffer_enabled = False
