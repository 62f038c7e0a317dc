"""The problems of the search benchmark: those of the rate benchmark, and an attention small enough to search over."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fogline
from rate_parts import tasks
from rate_parts.models import Transformer
from rate_parts.tasks import Problem


def _next_token(model: nn.Module, rows: Tensor) -> Tensor:  # (B, T + 1) -> ()
    return F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


def _delayed(seed: int) -> fogline.Task:
    """Each token is the one three places earlier, one step up the alphabet; one in ten is drawn anew."""
    generator, rows, length, kinds = torch.Generator().manual_seed(2_000 + seed), 1600, 11, 6
    tokens = torch.randint(kinds, (rows, length), generator=generator)
    anew = torch.rand(rows, length, generator=generator) < 0.1
    for place in range(3, length):
        follows = (tokens[:, place - 3] + 1) % kinds
        tokens[:, place] = torch.where(anew[:, place], tokens[:, place], follows)
    data = tokens[:1300].clone(), tokens[1300:].clone()
    return tasks.alone(seed, lambda: Transformer(kinds, length - 1, 16, 1, causal=True), _next_token, data)


DELAYED = Problem("delayed", "causal transformer of one layer, tokens that come back", _delayed, 32, 500, 6)


def problem(name: str) -> Problem:
    """One of the problems by name."""
    known = {**tasks.problems("evaluation"), **tasks.problems("calibration"), DELAYED.name: DELAYED}
    return known[name]
