"""Tasks that searches are tried on, where other processes can import them; run as a program, a search to be killed."""

from __future__ import annotations

import sys

import torch
from torch import nn

import fogline


def line_task(columns: int = 3) -> fogline.Task:
    """A straight line through noise; its arguments are read by a search."""
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(240, 3, generator=generator)
    targets = inputs.sum(1, keepdim=True) + 0.1 * torch.randn(240, 1, generator=generator)
    inputs = inputs[:, :columns]
    torch.manual_seed(1)
    return fogline.Task(
        nn.Linear(columns, 1), nn.MSELoss(), (inputs[:160], targets[:160]), (inputs[160:], targets[160:]), name="line"
    )


SPACE = {"lr": fogline.log(1e-4, 1.0), "batch_size": [16, 32], "weight_decay": fogline.log(1e-5, 1e-1)}
RECIPE = fogline.Recipe(optimizer="adamw", duration="45st", seed=4, device="cpu", step="eager", watch=0.0)


if __name__ == "__main__":
    fogline.tune(line_task(), SPACE, recipe=RECIPE, trials=5, runs=sys.argv[1], together=False, progress=False)
