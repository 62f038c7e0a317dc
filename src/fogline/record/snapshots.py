"""The way through the space of weights: snapshots of them, a bounded number however long the run grows.

Kept is the first moment of every slot of ``stride`` steps, a power of two that leaves room where the length of the run
is known. Where there would be too many the stride doubles and every second one goes, so that the snapshots of a run
depend on its steps alone and a resumed run has the same. They lie in ``path.safetensors`` of the run folder, written
before every checkpoint. Taking one counts as watching; writing them belongs to the checkpoint.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fogline.record.probes import Budget

FILE = "path.safetensors"
MOST = 64
LARGEST = 2**24
"""Numbers in all snapshots together: 64 MB in float32."""
_FEWEST = 8


@dataclass(frozen=True)
class Snapshot:
    """The trained weights before a step, flat, shape (n,)."""

    step: int
    weights: Tensor


@dataclass(frozen=True)
class KeptPath:
    """What a run folder holds of its path.

    Attributes:
        names, shapes: of the trained parameters, one after the other in each row.
        steps: before which the snapshots were taken.
        weights: shape (snapshots, n).
        stride: steps a slot.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    steps: tuple[int, ...]
    weights: Tensor
    stride: int


class Snapshots:
    """Keeps snapshots of the trained weights while a run goes on.

    Args:
        folder: the run folder.
        names, parameters: the trained ones.
        budget: of watching.
        expected: steps that the run will have, as far as that is known.

    Attributes:
        following: the step from which on the next one is due.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        parameters: Sequence[nn.Parameter],
        budget: Budget,
        expected: int | None = None,
    ) -> None:
        self.folder, self.names, self.parameters, self.budget = folder, tuple(names), list(parameters), budget
        numbers = sum(p.numel() for p in self.parameters)
        self.most = min(MOST, LARGEST // max(1, numbers))
        self.stride, self.following = 1, 0
        while expected is not None and expected > self.stride * max(4, self.most // 2):
            self.stride *= 2
        self.kept: list[Snapshot] = []
        self._written: list[int] | None = None

    @property
    def wanted(self) -> bool:
        """Whether any are kept: not where nothing is watched, nor of models of more than 2,097,152 trained numbers."""
        real = bool(self.parameters) and all(p.dtype.is_floating_point for p in self.parameters)
        return bool(self.budget.share) and real and self.most >= _FEWEST

    def take(self, step: int) -> None:
        """Keep the weights as they are before a step; they stay on their device."""
        started = time.perf_counter()
        self.kept.append(Snapshot(step, torch.cat([p.detach().reshape(-1) for p in self.parameters])))
        if len(self.kept) > self.most:
            self._thin()
        self.following = (step // self.stride + 1) * self.stride
        self.budget.spent += time.perf_counter() - started

    def _thin(self) -> None:
        self.stride *= 2
        first = {kept.step // self.stride: kept for kept in reversed(self.kept)}
        self.kept = [first[slot] for slot in sorted(first)]

    def forget(self, step: int) -> None:
        """Drop those taken after ``step``: the run goes on from there."""
        self.kept = [kept for kept in self.kept if kept.step <= step]
        self.following = (self.kept[-1].step // self.stride + 1) * self.stride if self.kept else 0

    def save(self) -> None:
        """Write what is kept, beside and renamed, if it is not what was written last.

        Raises:
            OSError: the folder cannot be written; the file that was there is untouched.
        """
        steps = [kept.step for kept in self.kept]
        if not steps or steps == self._written:
            return
        place = self.folder / FILE
        beside = place.with_suffix(f".{os.getpid()}.tmp")
        shapes = [list(p.shape) for p in self.parameters]
        # One text, since several would come in any order, and a resumed run is to write the same bytes.
        words = {"path": json.dumps({"names": self.names, "shapes": shapes, "stride": self.stride})}
        tensors = {"steps": torch.tensor(steps), "weights": torch.stack([kept.weights for kept in self.kept]).cpu()}
        try:
            save_file(tensors, beside, metadata=words)
            with beside.open("rb") as file:
                os.fsync(file.fileno())
            beside.replace(place)
        except (OSError, SafetensorError) as error:
            beside.unlink(missing_ok=True)
            raise OSError(f"the path of the weights cannot be written to {place}: {error}") from error
        self._written = steps

    def restore(self, step: int) -> None:
        """Go on with what the folder holds up to a step."""
        found = read_path(self.folder)
        if found is not None and found.names == self.names:
            like = self.parameters[0]
            rows = zip(found.steps, found.weights.to(like.device), strict=True)
            self.kept, self.stride = [Snapshot(at, weights) for at, weights in rows], found.stride
        self.forget(step)


def read_path(folder: Path) -> KeptPath | None:
    """The snapshots that a run folder holds, also while the run goes on; None where there are none that can be read."""
    place = folder / FILE
    if not place.exists():
        return None
    try:
        with safe_open(place, framework="pt") as file:
            words, steps, weights = file.metadata()["path"], file.get_tensor("steps"), file.get_tensor("weights")
    except (OSError, SafetensorError):
        return None
    told = json.loads(words)
    shapes = tuple(tuple(shape) for shape in told["shapes"])
    return KeptPath(tuple(told["names"]), shapes, tuple(steps.tolist()), weights, told["stride"])
