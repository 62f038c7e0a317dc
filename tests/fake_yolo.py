"""The frame of Ultralytics' trainer around a small model: same callbacks in the same order, same steps, no detector."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

BATCH, IMAGES = 8, 24


class Detector(nn.Module):
    """Gives (loss, items) of a whole batch, the loss summed over the images, as theirs do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(batch)

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        error = (self.body(batch["img"]) - batch["goal"]).square().mean()
        return (error * len(batch["img"]))[None], {"box_loss": error.detach()}


def images(bad: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """Three batches of eight images; the bad ones hold NaN."""
    draws = torch.Generator().manual_seed(1)
    pixels = torch.randn(IMAGES, 3, 6, 6, generator=draws)
    for image in bad:
        pixels[image, 0, 0, 0] = torch.nan
    goals = torch.stack([pixels.nan_to_num().mean((1, 2, 3)), pixels.nan_to_num()[:, 0, 0, 0]], 1)
    names = [f"image-{k}.png" for k in range(IMAGES)]
    return [
        {
            "img": pixels[k : k + BATCH],
            "goal": goals[k : k + BATCH],
            "im_file": names[k : k + BATCH],
            # Boxes of all images, one after another: more rows than there are images.
            "batch_idx": torch.arange(BATCH).repeat_interleave(2).float(),
        }
        for k in range(0, IMAGES, BATCH)
    ]


class Loader(list[dict[str, Any]]):
    dataset = range(IMAGES)


class Trainer:
    """Trains for some epochs; the settings are named as theirs."""

    def __init__(self, callbacks: dict[str, list[Callable[[Any], None]]], given: dict[str, Any]) -> None:
        defaults = {"lr0": 0.01, "optimizer": "auto", "nbs": BATCH, "task": "detect", "compile": False, "warmup": 0}
        self.args = SimpleNamespace(**(defaults | {k: v for k, v in given.items() if k in defaults}))
        self.callbacks, self.epochs, self.batch_size = callbacks, given.get("epochs", 2), BATCH
        self.start_epoch, self.resume, self.ddp = 0, given.get("resume", False), given.get("ddp", False)
        self.run_callbacks("on_pretrain_routine_start")
        torch.manual_seed(0)
        self.model = Detector()
        self.train_loader = Loader(given.get("batches") or images())
        self.raises, self.taken_at = given.get("raises"), list[float]()
        rates = (3e-2, 1e-2) if given.get("two_rates") else (1e-2, 1e-2)
        body = self.model.body
        self.optimizer = torch.optim.SGD(
            [{"params": body[0].parameters(), "lr": rates[0]}, {"params": [*body[1:].parameters()], "lr": rates[1]}],
            momentum=0.9,
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda _: 1.0)
        self.accumulate = max(1, round(self.args.nbs / BATCH))
        self.scaler = torch.amp.GradScaler("cuda", enabled=False)
        self.ema, self.metrics, self.stop = SimpleNamespace(ema=self.model), dict[str, float](), False
        self.loss: Tensor | None = None
        self.tloss: dict[str, Tensor] | None = None
        self.run_callbacks("on_pretrain_routine_end")

    def run_callbacks(self, event: str) -> None:
        for callback in self.callbacks[event]:
            callback(self)

    def _get_warmup_iterations(self, batches: int) -> int:
        return int(self.args.warmup)

    def optimizer_step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_norm=10.0)
        self.taken_at.append(self.optimizer.param_groups[1]["lr"])
        self.optimizer.step()
        self.optimizer.zero_grad()

    def train(self) -> None:
        try:
            if not self.ddp:
                self._train()
        finally:
            self.run_callbacks("teardown")

    def _train(self) -> None:
        self.run_callbacks("on_train_start")
        last, count, full = -1, 0, self.accumulate
        for epoch in range(self.epochs):
            self.epoch = epoch
            self.run_callbacks("on_train_epoch_start")
            for batch in self.train_loader:
                if count <= self.args.warmup and self.args.warmup:
                    self.accumulate = max(1, round(1 + (full - 1) * count / self.args.warmup))
                self._batch(batch)
                if count - last >= self.accumulate:
                    self.optimizer_step()
                    last = count
                count += 1
                self.run_callbacks("on_train_batch_end")
                if self.stop:
                    break
            self.run_callbacks("on_train_epoch_end")
            self.metrics = {"metrics/mAP50(B)": 0.5, "val/box_loss": 1.0, "val/cls_loss": 2.0}
            self.run_callbacks("on_fit_epoch_end")
            if self.stop:
                break
        self.metrics = {"metrics/mAP50(B)": 0.9}
        self.run_callbacks("on_fit_epoch_end")  # of the best weights, once more
        self.run_callbacks("on_train_end")

    def _batch(self, batch: dict[str, Any]) -> None:
        if self.raises is not None:
            raise self.raises
        loss, items = self.model(batch)
        self.loss = loss.sum()
        self.tloss = items
        self.scaler.scale(self.loss).backward()


class Yolo:
    """What is handed to ``watch``."""

    def __init__(self) -> None:
        self.callbacks: dict[str, list[Callable[[Any], None]]] = defaultdict(list)
        self.trainer: Any = None

    def add_callback(self, event: str, callback: Callable[[Any], None]) -> None:
        self.callbacks[event].append(callback)

    def train(self, **given: Any) -> None:
        self.trainer = Trainer(self.callbacks, given)
        self.trainer.train()
