"""A guard for the steps of Ultralytics' trainer: what is not finite does not reach weights or running statistics.

The trainer looks for NaN once an epoch, at the loss of the last batch; in its first epoch it goes on with it. Here each
batch is looked at::

    before the forward pass    the buffers (running statistics) are copied
    after it                   a loss that is not finite becomes a zero without a graph: nothing is back-propagated;
                               the buffers are put back
    before the update          a gradient that is not finite is dropped, the buffers of its first batch are put back

A batch that is left out takes no part in the update its gradient was meant for; the others of it do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fogline.descent.randomness import private_randomness
from fogline.record.hook import Hook

PATIENCE = 10
"""Bad batches in a row after which nothing good is expected any more."""


class Guard:
    """Leaves out the bad batches of a trainer.

    Args:
        model: that is called with whole batches and gives (loss, items).
        bad: called with a batch that was left out, and whether its data are to blame.

    Attributes:
        skipped: batches that were left out.
        in_a_row: of them, the latest without a good one between.
        now: whether the latest batch was left out.
    """

    def __init__(self, model: nn.Module, bad: Callable[[dict[str, Any]], None]) -> None:
        self.model, self.bad = model, bad
        self.skipped = self.in_a_row = 0
        self.now = False
        self._buffers = list(model.buffers())
        self._before = [buffer.clone() for buffer in self._buffers]
        self._window = [buffer.clone() for buffer in self._buffers]
        self._new_window = True
        self._items: Any = None
        self._hooks: list[RemovableHandle] = [
            model.register_forward_pre_hook(Hook(self._keep)),
            model.register_forward_hook(Hook(self._look)),
        ]

    def remove(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def allows(self, norm: Tensor) -> bool:
        """Whether an update may be taken with a gradient of this norm; puts the buffers back where not."""
        self._new_window = True
        if bool(torch.isfinite(norm)):
            return True
        self._count()
        self._put_back(self._window)
        return False

    def _keep(self, _: nn.Module, given: tuple[Any, ...]) -> None:
        if not (torch.is_grad_enabled() and given and isinstance(given[0], dict)):
            return
        self.now = False
        _copy(self._before, self._buffers)
        if self._new_window:
            _copy(self._window, self._buffers)
            self._new_window = False

    def _look(self, _: nn.Module, given: tuple[Any, ...], output: Any) -> Any:
        if not (torch.is_grad_enabled() and given and isinstance(given[0], dict)):
            return None
        loss, items = output
        if bool(torch.isfinite(loss.detach()).all()):
            self.in_a_row, self._items = 0, items
            return None
        self._put_back(self._before)
        self._count()
        self.bad(given[0])
        # The trainer averages what it shows: an item that repeats an earlier one leaves no NaN in it.
        calm = self._items or {name: torch.zeros_like(value) for name, value in items.items()}
        return torch.zeros_like(loss.detach()).requires_grad_(), calm

    def _count(self) -> None:
        self.now = True
        self.skipped += 1
        self.in_a_row += 1

    def _put_back(self, values: list[Tensor]) -> None:
        _copy(self._buffers, values)


def _copy(into: list[Tensor], values: list[Tensor]) -> None:
    if into:
        with torch.no_grad():
            torch._foreach_copy_(into, values)


def bad_images(model: Any, batch: dict[str, Any]) -> tuple[list[int], bool]:
    """The rows of a batch that are not finite, or whose loss alone is not; and whether it is the pixels.

    The model is left as it was: buffers are put back, and random numbers are drawn from a state of their own.
    """
    images: Tensor = batch["img"]
    pixels = torch.isfinite(images.flatten(1)).all(1)
    if not bool(pixels.all()):
        return (~pixels).nonzero().flatten().tolist(), True
    buffers = list(model.buffers())
    kept, found = [buffer.clone() for buffer in buffers], []
    with private_randomness(images.device), torch.no_grad():
        for row in range(len(images)):
            try:
                loss, _ = model.loss(one_image(batch, row))
            except ValueError:  # batch normalisation of a single value
                continue
            if not bool(torch.isfinite(loss).all()):
                found.append(row)
    _copy(buffers, kept)
    return found, False


def one_image(batch: dict[str, Any], row: int) -> dict[str, Any]:
    """The batch of one image alone: its rows of all that belongs to images, and its boxes of all that belongs to those.

    >>> batch = {"img": torch.zeros(2, 3, 8, 8), "batch_idx": torch.tensor([0.0, 1.0, 1.0]), "cls": torch.ones(3, 1)}
    >>> one = one_image(batch, 1)
    >>> tuple(one["img"].shape), one["batch_idx"].tolist(), len(one["cls"])
    ((1, 3, 8, 8), [0.0, 0.0], 2)
    """
    images, owners = len(batch["img"]), batch.get("batch_idx")
    if owners is None:
        return {name: value[row : row + 1] for name, value in batch.items()}
    mine = owners == row
    one = {}
    for name, value in batch.items():
        of_boxes = name in _OF_BOXES or (name == "masks" and len(value) != images)
        one[name] = value[mine] if of_boxes else value[row : row + 1]
    one["batch_idx"] = torch.zeros_like(owners[mine])
    return one


_OF_BOXES = ("batch_idx", "cls", "bboxes", "keypoints")
"""What has a row for each box; the rest has one for each image. Masks have either, by the setting ``overlap_mask``."""
