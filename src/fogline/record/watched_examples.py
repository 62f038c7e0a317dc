"""What each example does in somebody else's loop, whose examples have the numbers that the loop gives them.

Outputs and targets are seen by a hook on the loss, what goes into the last linear layer by one on that layer; both are
taken away again when the loop logs a loss without saying whose it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fogline.record import example_files
from fogline.record.columns import Columns, Shown, is_compiled, planned
from fogline.record.example_writer import Epoch, ExampleWriter
from fogline.record.examples import has_file
from fogline.record.hook import Hook
from fogline.record.waiting import Waiting


class WatchedExamples:
    """Records the examples of a watched loop.

    Args:
        run: the run folder.
        model: that is trained.
        loss_fn: of the loop; only a module shows outputs and targets.
        begun: called with what ``run.json`` says of the examples, whenever that is known better.
    """

    def __init__(self, run: Path, model: nn.Module, loss_fn: object, begun: Callable[[dict[str, Any]], None]) -> None:
        self.run, self.model, self.loss_fn, self.begun = run, model, loss_fn, begun
        self.columns: Columns | None = None
        self.writer: ExampleWriter | None = None
        self.epoch, self.step = 0, 0
        self._seen: NDArray[np.bool_] = np.zeros(0, np.bool_)
        self._ids: list[NDArray[np.int64]] = []
        self._values: list[Tensor] = []
        self._waiting = Waiting()
        self._calls: list[tuple[nn.Linear, Tensor]] = []
        self._latest: tuple[Tensor, Tensor, Tensor] | None = None
        self._hooks: list[RemovableHandle] = []
        self._broken = False
        if isinstance(loss_fn, nn.Module):
            self._hooks.append(loss_fn.register_forward_hook(Hook(self._after_loss)))
            linear = [] if is_compiled(model) else [m for m in model.modules() if isinstance(m, nn.Linear)]
            self._hooks += [module.register_forward_pre_hook(Hook(self._before_linear)) for module in linear]

    # -- what passes by --------------------------------------------------------------------------------------------

    def _before_linear(self, module: nn.Linear, given: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled() and given and isinstance(given[0], Tensor):
            self._calls.append((module, given[0].detach()))

    def _after_loss(self, _: nn.Module, given: tuple[Any, ...], value: object) -> None:
        if not torch.is_grad_enabled() or len(given) != 2 or not isinstance(value, Tensor):
            return
        outputs, targets = given
        if isinstance(outputs, Tensor) and isinstance(targets, Tensor) and outputs.ndim and targets.ndim:
            self._latest = outputs.detach(), targets.detach(), value.detach()

    def forget(self) -> None:
        """A loss was logged without saying whose it is: nothing is recorded, and nothing looked at any more."""
        self._calls, self._latest = [], None
        if self.columns is None:
            self.remove()

    def remove(self) -> None:
        """Take every hook away."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    # -- what the loop says ----------------------------------------------------------------------------------------

    def log(self, loss: object, examples: Any, epoch: int | None, step: int) -> Tensor | object:
        """Keep what the latest forward pass showed of these examples.

        Args:
            loss: of the batch, or of each example.
            examples: their numbers, in the order of the rows.
            epoch: which one this is; by default another begins when an example comes again.
            step: of the optimizer.

        Returns:
            The loss of the batch.

        Raises:
            TypeError, ValueError: the examples are no numbers from 0 on, or not as many as there are rows.
        """
        ids = _numbers(examples)
        if self._broken:
            return loss.detach().mean() if isinstance(loss, Tensor) else loss
        losses = loss.detach() if isinstance(loss, Tensor) and loss.ndim else None
        shown = self._shown(ids, losses)
        if self.columns is None:
            self._begin(losses)
        assert self.columns is not None
        self._turn(ids, epoch)
        self.step = step
        if has_file(self.epoch) and self.columns.fits(shown):
            self._wait(ids, shown)
        self._calls, self._latest = [], None
        return loss if losses is None else losses.mean()

    def _shown(self, ids: NDArray[np.int64], losses: Tensor | None) -> Shown:
        rows = None if losses is None else tuple(losses.shape)
        seen = self._latest
        if rows is None and seen is None:
            raise ValueError(
                "run.log: expected the loss of each example beside examples=, received the loss of the batch; pass "
                'losses = F.cross_entropy(outputs, targets, reduction="none"), or give watch a loss_fn that is a '
                "module, whose outputs and targets are seen"
            )
        if (rows is not None and rows != (len(ids),)) or (
            rows is None and seen is not None and len(seen[0]) != len(ids)
        ):
            received = rows[0] if rows is not None else len(seen[0]) if seen is not None else 0
            raise ValueError(f"run.log: expected a number for each example, received {len(ids)} for {received} rows")
        if seen is None or len(seen[0]) != len(ids):
            return Shown(losses=losses)
        hidden = self._hidden()
        norm = None if hidden is None else torch.linalg.vector_norm(hidden.float(), dim=-1)
        # Loops may fill the same tensors again.
        return Shown(seen[0].clone(), seen[1].clone(), losses, norm)

    def _hidden(self) -> Tensor | None:
        head = None if self.columns is None else self.columns.head
        found = [hidden for module, hidden in self._calls if module is head or self.columns is None]
        return found[-1] if found else None

    def _begin(self, losses: Tensor | None) -> None:
        """Decide what is recorded, by the first batch."""
        found: Columns | str = Columns("loss", "loss")
        if self._latest is not None:
            outputs, targets, value = self._latest
            found = planned(self.loss_fn, outputs, targets, value, self._calls)
        columns = Columns("loss", "loss") if isinstance(found, str) else found.with_targets()
        if columns.form == "loss" and losses is None and columns.each is None:
            raise ValueError(f"run.log: the examples cannot be recorded: {found}; log the loss of each example")
        self.columns = columns
        self.writer = ExampleWriter(self.run, columns, 0, lambda _: np.zeros(0, np.int64))
        self._unhook_all_but(columns)

    def _unhook_all_but(self, columns: Columns) -> None:
        """From now on only what is recorded is looked at."""
        self.remove()
        if isinstance(self.loss_fn, nn.Module) and (columns.form != "loss" or columns.each is not None):
            self._hooks.append(self.loss_fn.register_forward_hook(Hook(self._after_loss)))
        if columns.head is not None:
            self._hooks.append(columns.head.register_forward_pre_hook(Hook(self._before_linear)))

    def _turn(self, ids: NDArray[np.int64], epoch: int | None) -> None:
        """Begin another epoch where this is one."""
        if len(self._seen) <= ids.max(initial=-1):
            self._seen = np.pad(self._seen, (0, int(ids.max()) + 1 - len(self._seen)))
        if epoch is None:
            epoch = self.epoch + int(self._seen[ids].any())
        if epoch != self.epoch:
            self._close()
            self.epoch = epoch
            self._seen[:] = False
        self._seen[ids] = True

    def _wait(self, ids: NDArray[np.int64], shown: Shown) -> None:
        self._ids.append(ids)
        self._waiting.add(shown)
        if self._waiting.full:
            self._compute()

    def _compute(self) -> None:
        waiting, self._waiting = self._waiting, Waiting()
        if self.columns is not None:
            with torch.no_grad():
                self._values += [self.columns(shown) for shown in waiting.parts()]

    def _close(self) -> None:
        """Write the epoch that is over."""
        self._compute()
        if self.writer is None or self.columns is None or not self._ids:
            return
        ids, values = np.concatenate(self._ids), torch.cat(self._values, 1)
        self._ids, self._values = [], []
        if len(self._seen) > self.writer.count:
            self.writer.count = len(self._seen)
            self.begun({"kind": self.columns.kind, "count": self.writer.count, "classes": None})
        with self._unbroken():
            self.writer.write([Epoch(self.epoch, values, self.step, ids)])

    def finish(self) -> None:
        """Write what is left, and bring all files to the same length."""
        self.remove()
        self._close()
        if self.writer is None:
            return
        with self._unbroken():
            self.writer.drain()
            example_files.lengthen(self.run, self.writer.count)
        self.writer.close()

    @contextmanager
    def _unbroken(self) -> Iterator[None]:
        """A folder that cannot be written ends the recording, and not the loop."""
        try:
            yield
        except OSError as error:
            self._broken = True
            warnings.warn(f"what the examples do is no longer recorded: {error}", RuntimeWarning, stacklevel=6)


def _numbers(examples: Any) -> NDArray[np.int64]:
    found = examples.detach().cpu().numpy() if isinstance(examples, Tensor) else np.asarray(examples)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise TypeError(
            "run.log: expected `examples` to be one whole number an example, its position in the data, received "
            f"{found.dtype} of shape {found.shape}"
        )
    if found.size and found.min() < 0:
        raise ValueError(f"run.log: expected `examples` from 0 on, received {found.min()}")
    return found.astype(np.int64)
