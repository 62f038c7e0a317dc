"""Checkpoints of a model that is spread over processes: every process writes and reads its own parts.

``torch.distributed.checkpoint`` plans who writes what and how parts are read by another number of processes. Of its
formats the one of safetensors files is taken, in which each file says in JSON where its parts belong; the usual one
keeps its index in a pickle. Between the processes of a run the plans do travel pickled; no file holds any.
The folder must be one that all processes see.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from fogline.descent import checkpoint
from fogline.descent.checkpoint import SHARD, Checkpoint
from fogline.descent.sharded import Sharded, parts_of
from fogline.record.store import sync_file, write_json


def save(folder: Path, written: Checkpoint, keep: int, sharded: Sharded) -> None:
    """:func:`fogline.descent.checkpoint.save` by all processes together.

    Raises:
        OSError: a process cannot write; older checkpoints are untouched.
    """
    world, doing = sharded.world, f"the checkpoint of step {written.step}"
    beside = Path(world.by_first(lambda: str(checkpoint.made_beside(folder, written.step)), doing))
    tensors = sharded.known(written.model | written.optimizer)
    try:
        writer = HuggingFaceStorageWriter(str(beside), save_distributed=True)
        state_dict_saver.save(tensors, storage_writer=writer, process_group=world.group)
        mine = list(beside.glob(f"{SHARD}{world.rank + 1:05d}-*.safetensors"))
        for path in mine:
            sync_file(path)
        digests = {path.name: checkpoint.digest(path) for path in mine}
        for found in world.gather(digests, doing):
            digests |= found
        if world.first:
            _finish(beside, written, digests, keep)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise OSError(f"{doing} cannot be written to {beside.parent}: {error}") from error


def _finish(beside: Path, written: Checkpoint, digests: dict[str, str], keep: int) -> None:
    write_json(beside / "state.json", {"step": written.step, **written.state})
    digests["state.json"] = checkpoint.digest(beside / "state.json")
    checkpoint.prune(checkpoint.put_in_place(beside, digests), keep)


def latest(folder: Path, sharded: Sharded) -> tuple[Checkpoint | None, list[str]]:
    """The latest checkpoint of a run, in the parts of this process, however many processes wrote it."""
    world = sharded.world

    def find() -> Any:
        place, skipped = checkpoint.latest_place(folder)
        return [None if place is None else str(place), skipped]

    place, skipped = world.by_first(find, "the latest checkpoint")
    skipped = skipped if world.first else []
    if place is None:
        return None, skipped
    state = checkpoint.read_state(Path(place))
    tensors = {path: sharded.room(path, *kind) for path, kind in _kinds(place).items()}
    state_dict_loader.load(tensors, storage_reader=HuggingFaceStorageReader(place), process_group=world.group)
    model, engine = checkpoint.split_names(tensors)
    return Checkpoint(state.pop("step"), model, parts_of(engine), state), skipped


def read_whole(place: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint in parts, put together by one process."""
    tensors = {path: torch.empty(shape, dtype=dtype) for path, (shape, dtype) in _kinds(str(place)).items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # which is what is asked for
        state_dict_loader.load(tensors, storage_reader=HuggingFaceStorageReader(str(place)), no_dist=True)
    return tensors


def _kinds(place: str) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shapes and types of the whole tensors by name."""
    found = HuggingFaceStorageReader(place).read_metadata().state_dict_metadata
    return {path: (kind.size, kind.properties.dtype) for path, kind in found.items()}  # type: ignore[union-attr]
