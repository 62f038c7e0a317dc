"""Checkpoints: folders of safetensors and JSON, written beside, synced, checksummed, renamed.

``checkpoints/step-00000120/`` holds ``model.safetensors``, ``optimizer.safetensors``, ``state.json`` and
``manifest.json`` with the SHA-256 of the other three. The latest is computed, never pointed to: the highest that
verifies. Nothing is ever unpickled.

A model that is spread over processes is written by all of them, each its parts into a file of its own
(``shard-*.safetensors``, see :mod:`fogline.descent.parts`) in the place of the first two; it is read by any number.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fogline.record.store import sync_file, write_json

_FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
_ENGINE = ("optimizer/", "average/", "guard/", "clipping")
BEST = "best/"
_BUFFER = "buffer/"
SHARD = "shard-"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        step: optimizer steps done.
        model: parameters and buffers by name; the best held-out ones under ``best/``.
        optimizer: tensors of the optimizer and of the engine.
        state: everything else, JSON.
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint below a run folder, then prune older ones.

    The folder is written beside its place and renamed when everything is on the disk; older checkpoints are pruned
    only after the new one was read back and verified.

    Raises:
        OSError: it cannot be written (disk full); what was there before is untouched.
    """
    beside = made_beside(folder, checkpoint.step)
    try:
        _save_tensors(checkpoint.model, beside / "model.safetensors")
        _save_tensors(checkpoint.optimizer, beside / "optimizer.safetensors")
        write_json(beside / "state.json", {"step": checkpoint.step, **checkpoint.state})
        for name in _FILES[:2]:
            sync_file(beside / name)
        digests = {name: digest(beside / name) for name in _FILES}
        place = put_in_place(beside, digests)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        root = beside.parent
        raise OSError(f"the checkpoint of step {checkpoint.step} cannot be written to {root}: {error}") from error
    prune(place, keep)
    return place


def made_beside(folder: Path, step: int) -> Path:
    """A folder to write a checkpoint into, beside its place."""
    root = folder / "checkpoints"
    root.mkdir(exist_ok=True)
    _remove_leftovers(root)
    beside = root / f".step-{step:08d}.{os.getpid()}.tmp"
    try:
        beside.mkdir()
    except OSError as error:
        raise OSError(f"the checkpoint of step {step} cannot be written to {root}: {error}") from error
    return beside


def put_in_place(beside: Path, digests: Mapping[str, str]) -> Path:
    """Give a written folder its manifest, with the SHA-256 of each file, and its name; returns where it is."""
    root = beside.parent
    place = root / beside.name.split(".")[1]
    write_json(beside / "manifest.json", {"files": dict(digests)})
    sync_file(beside)
    replaced = place.with_name(f"{place.name}.old")  # still found should this be the end
    if place.exists():
        _remove(replaced)
        place.rename(replaced)
    beside.rename(place)
    sync_file(root)
    _remove(replaced)
    return place


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; under ``buffer/`` those that the module leaves out of its ``state_dict``."""
    state = model.state_dict()
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return tensors | {_BUFFER + name: value for name, value in model.named_buffers() if name not in state}


def load_model_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what :func:`model_tensors` gave; the best held-out weights beside them are passed over."""
    model.load_state_dict({n: v for n, v in tensors.items() if not n.startswith((BEST, _BUFFER))}, strict=False)
    for name, value in model.named_buffers():
        if _BUFFER + name in tensors:
            value.copy_(tensors[_BUFFER + name])


def latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The highest checkpoint that verifies, and why each higher one was skipped."""
    place, skipped = latest_place(folder)
    return None if place is None else _load(place), skipped


def latest_place(folder: Path) -> tuple[Path | None, list[str]]:
    """Where :func:`latest` lies, and why each higher one was skipped."""
    skipped: list[str] = []
    for place in _places(folder / "checkpoints"):
        reason = problem(place)
        if reason is None:
            return place, skipped
        skipped.append(f"{place.name} skipped: {reason}")
    return None, skipped


def problem(place: Path) -> str | None:
    """Why a checkpoint folder cannot be trusted, or None if it can."""
    manifest = place / "manifest.json"
    if not manifest.exists():
        return "manifest.json is missing"
    try:
        files: Mapping[str, str] = json.loads(manifest.read_text())["files"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        return "manifest.json cannot be read"
    in_parts = any(name.startswith(SHARD) for name in files)
    for name in sorted(files) if in_parts else _FILES:
        path = place / name
        if not path.exists():
            return f"{name} is missing"
        if files.get(name) != digest(path):
            return f"{name} does not match its checksum"
    return None


def kept_weights(folder: Path) -> dict[str, Tensor]:
    """The weights a finished run keeps: the best held-out ones where there are any, else the last.

    Raises:
        FileNotFoundError: no checkpoint verifies.
    """
    checkpoint, skipped = latest(folder)
    if checkpoint is None:
        raise FileNotFoundError("; ".join([f"expected a checkpoint in {folder}, found none that verifies", *skipped]))
    best = {name.removeprefix(BEST): value for name, value in checkpoint.model.items() if name.startswith(BEST)}
    last = {name: value for name, value in checkpoint.model.items() if not name.startswith(BEST)}
    return {**last, **best}


def _load(place: Path) -> Checkpoint:
    state = read_state(place)
    if (place / _FILES[0]).exists():
        model, optimizer = (load_file(place / name) for name in _FILES[:2])
    else:
        from fogline.descent.parts import read_whole  # it brings torch.distributed.checkpoint

        model, optimizer = split_names(read_whole(place))
    return Checkpoint(state.pop("step"), model, optimizer, state)


def read_state(place: Path) -> dict[str, Any]:
    """What a checkpoint holds besides tensors, its step among it."""
    state: dict[str, Any] = json.loads((place / "state.json").read_text())
    return state


def split_names(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the model, and those of the optimizer and the engine, of a checkpoint in parts."""
    engine = {name: value for name, value in tensors.items() if name.startswith(_ENGINE)}
    return {name: value for name, value in tensors.items() if name not in engine}, engine


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    # safetensors refuses views of one storage (tied weights, slices): each gets memory of its own.
    owned = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    seen: set[int] = set()
    for name, value in owned.items():
        storage = value.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != value.nbytes:
            owned[name] = value.clone()
        seen.add(storage.data_ptr())
    save_file(owned, path)


def _places(root: Path) -> Iterator[Path]:
    found = [path for path in root.glob("step-*") if path.is_dir()] if root.exists() else []
    return iter(sorted(found, reverse=True))


def prune(newest: Path, keep: int) -> None:
    """Remove the older checkpoints but for the last ones, if the newest verifies."""
    older = [place for place in _places(newest.parent) if place != newest]
    if len(older) < keep or problem(newest) is not None:
        return
    for place in older[max(0, keep - 1) :]:
        _remove(place)


def _remove(place: Path) -> None:
    """Take the name away first: half a checkpoint is never seen under the name of a whole one."""
    if place.exists():
        unnamed = place.with_name(f".{place.name}.{os.getpid()}.tmp")
        place.rename(unnamed)
        shutil.rmtree(unnamed)


def _remove_leftovers(root: Path) -> None:
    for path in root.glob(".step-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
