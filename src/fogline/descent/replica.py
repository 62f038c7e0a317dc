"""What processes that each hold the whole model owe each other: the same weights, and one that writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fogline.descent import checkpoint
from fogline.descent.checkpoint import Checkpoint
from fogline.descent.group import World
from fogline.descent.machine import Machine
from fogline.descent.scoring import normalisation_layers
from fogline.errors import LostError

_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def check_alike(world: World, machine: Machine, step: int) -> int:
    """See to it that all processes hold the same weights, bit for bit.

    Returns:
        The micro-batches of a step, the most that any of them needs.

    Raises:
        LostError: they differ, as where a model draws its structure or steps from something of its own.
    """
    found = world.gather([checksum(machine.parameters), machine.parts], f"the checkpoint of step {step}")
    odd = [rank for rank, (sum_, _) in enumerate(found) if sum_ != found[0][0]]
    if odd:
        raise LostError(
            f"expected the same weights on all processes at step {step}, found others on process "
            f"{', '.join(map(str, odd))} than on process 0: the machines compute differently, or the model does "
            "something that depends on the process; the checkpoints before are intact"
        )
    most: int = max(parts for _, parts in found)
    return most


def checksum(tensors: Iterable[Tensor]) -> int:
    """A number of the bits of tensors, the same wherever it is computed.

    >>> checksum([torch.tensor([1.0, 2.0])]) == checksum([torch.tensor([2.0, 1.0])])
    False
    """
    sums = [torch.zeros((), dtype=torch.int64)]
    for k, tensor in enumerate(tensors):
        flat = tensor.detach().contiguous().reshape(-1)
        flat = torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat
        words = flat.view(_WORDS[flat.element_size()]).long()
        places = torch.arange(1, len(words) + 1, device=words.device)
        sums.append(((words * places).sum() * (2 * k + 1)).cpu())  # whole numbers wrap around: any order gives the same
    return int(torch.stack(sums).sum())


def own_buffers(model: nn.Module) -> list[Tensor]:
    """Buffers that the model itself moves while it trains: every process moves its own, by its share of the rows.

    The running statistics of a batch normalisation are not among them; they are those of the whole batch.
    """
    shared = {id(buffer) for layer in normalisation_layers(model) for buffer in layer.buffers(recurse=False)}
    return [buffer for buffer in model.buffers() if id(buffer) not in shared]


def latest_of_all(world: World, folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The latest checkpoint as process 0 finds it on its disk, for all."""
    held: list[Checkpoint | None] = [None]

    def read() -> dict[str, Any]:
        held[0], skipped = checkpoint.latest(folder)
        found = held[0]
        kinds = None if found is None else [_kinds(found.model), _kinds(found.optimizer)]
        return {
            "kinds": kinds,
            "step": None if found is None else found.step,
            "state": None if found is None else found.state,
            "skipped": skipped,
        }

    told = world.by_first(read, "the latest checkpoint")
    if told["kinds"] is None:
        return None, told["skipped"] if world.first else []
    if held[0] is None:
        model, optimizer = (_empty(kinds) for kinds in told["kinds"])
        held[0] = Checkpoint(told["step"], model, optimizer, told["state"])
    found = held[0]
    assert found is not None
    world.spread([*found.model.values(), *found.optimizer.values()])
    return found, told["skipped"] if world.first else []


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: [list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in tensors.items()}


def _empty(kinds: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, dtype=getattr(torch, dtype)) for name, (shape, dtype) in kinds.items()}
