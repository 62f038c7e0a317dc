"""Frames of the same traffic sign on both sides of a random split: are they found, and what is the honest score?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import fogline
from labels_parts.problems import DATA, network, seeded

EPOCHS = 15
_WIDE = 1.15  # of the usual distance: beyond what is near


def frames() -> dict[str, np.ndarray] | None:
    """The pictures, or None where the file is not there."""
    path = DATA / "gtsrb_10.npz"
    return dict(np.load(path)) if path.exists() else None


def leak(data: dict[str, np.ndarray], seed: int, runs: Path) -> dict[str, Any]:
    """Split at random, train, look for the leak, split by the groups that were found, train again."""
    pictures = torch.from_numpy(data["x_train"].astype(np.float32) / 255).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(data["y_train"].astype(np.int64))
    track = data["track_train"]
    test = (
        torch.from_numpy(data["x_test"].astype(np.float32) / 255).permute(0, 3, 1, 2).contiguous(),
        torch.from_numpy(data["y_test"].astype(np.int64)),
    )
    order = np.random.default_rng(seed).permutation(len(labels))
    held = np.zeros(len(labels), dtype=bool)
    held[order[: len(order) // 5]] = True
    task, run = _trained(pictures, labels, held, seed, runs)
    examples = fogline.examples(run, task)
    inside, outside = np.flatnonzero(~held), np.flatnonzero(held)
    total = int((track[inside][:, None] == track[outside][None]).sum())
    found = examples.leaks(within=_WIDE, series=True)
    right = track[inside[found["train"]]] == track[outside[found["valid"]]]
    nearest = np.sort(np.unique(found["valid"], return_index=True)[1])  # of each held-out frame, its nearest pair
    with_a_copy = int((track[inside][:, None] == track[outside][None]).any(0).sum())
    default = examples.leaks(series=True)
    sure = track[inside[default["train"]]] == track[outside[default["valid"]]]
    of_train, of_valid = examples.groups(series=True)
    group = np.empty(len(labels), dtype=np.int64)
    group[inside], group[outside] = of_train, of_valid
    joined = of_train[:, None] == of_valid[None]
    same = track[inside][:, None] == track[outside][None]
    by_group, by_track = _hold_out(group, seed), _hold_out(np.unique(track, return_inverse=True)[1], seed)
    return {
        "seed": seed,
        "pairs": total,
        "recall_at_90": _recall(right, total),
        "frames": with_a_copy,
        "frames_recall_at_90": _recall(right[nearest], with_a_copy),
        "default_pairs": len(default),
        "default_precision": float(sure.mean()) if len(sure) else 1.0,
        "default_recall": float(sure.sum() / total),
        "held_out_with_a_copy": float(len(np.unique(default["valid"])) / held.sum()),
        "group_precision": float((joined & same).sum() / joined.sum()),
        "group_recall": float((joined & same).sum() / total),
        "groups": int(group.max()) + 1,
        "tracks": len(np.unique(track)),
        "random": _accuracy(run.model, pictures[held], labels[held]),
        "by_group": _split_again(pictures, labels, by_group, seed, runs),
        "by_track": _split_again(pictures, labels, by_track, seed, runs),
        "test": _accuracy(run.model, *test),
    }


def _recall(right: np.ndarray, total: int) -> float:
    """The share of ``total`` that is found as far down a ranking as nine in ten are right."""
    sound = np.cumsum(right) >= 0.9 * np.arange(1, len(right) + 1)
    return float(np.cumsum(right)[sound].max() / total) if sound.any() else 0.0


def _trained(
    pictures: torch.Tensor, labels: torch.Tensor, held: np.ndarray, seed: int, runs: Path
) -> tuple[fogline.Task, fogline.Run]:
    task = fogline.Task(
        model=lambda: seeded(lambda: network(3, 32, 10), seed),
        loss=nn.CrossEntropyLoss(),
        train=(pictures[~held], labels[~held]),
        valid=(pictures[held], labels[held]),
    )
    recipe = fogline.Recipe(duration=f"{EPOCHS}ep", batch_size=64, lr=2e-3, seed=seed, device="cpu")
    return task, fogline.fit(task, recipe, runs=runs, progress=False)


def _split_again(pictures: torch.Tensor, labels: torch.Tensor, held: np.ndarray, seed: int, runs: Path) -> float:
    _, run = _trained(pictures, labels, held, seed, runs)
    return _accuracy(run.model, pictures[held], labels[held])


def _hold_out(group: np.ndarray, seed: int) -> np.ndarray:
    """About a fifth, in whole groups."""
    order = np.random.default_rng(seed).permutation(group.max() + 1)
    sizes = np.bincount(group)[order].cumsum()
    chosen = order[: int(np.searchsorted(sizes, len(group) / 5)) + 1]
    return np.isin(group, chosen)


def _accuracy(model: nn.Module, pictures: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        return float((model(pictures).argmax(1) == labels).float().mean())
