"""Activations computed again on the way back: the same bits from less memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fogline
from fogline.descent.recompute import Recomputing


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.drop, self.outer = nn.Linear(width, 4 * width), nn.Dropout(0.3), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        out: Tensor = x + scale * self.outer(self.drop(torch.tanh(self.inner(x))))
        return out


class Stack(nn.Module):
    """Blocks in a list, called with a named argument."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(Block(6) for _ in range(6)), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, scale=0.5)
        out: Tensor = self.head(x)
        return out


def plain() -> nn.Module:
    layers = [part for _ in range(6) for part in (nn.Linear(6, 6), nn.Tanh(), nn.Dropout(0.2))]
    return nn.Sequential(*layers, nn.Linear(6, 1))


def residual() -> nn.Module:
    def block() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.1))

    return nn.Sequential(
        nn.Linear(6, 6), nn.Sequential(*(block() for _ in range(3))), nn.Sequential(block(), block()), nn.Linear(6, 1)
    )


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True)
    return nn.Sequential(nn.Unflatten(1, (1, 6)), nn.TransformerEncoder(layer, 3), nn.Flatten(), nn.Linear(6, 1))


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "list of blocks": (Stack, 6), "plain": (plain, 3), "residual": (residual, 5), "transformer": (transformer, 3),
}  # fmt: skip


def _gradients(model: nn.Module, around: Any, kept: list[int]) -> list[Tensor]:
    torch.manual_seed(5)
    x = torch.linspace(-1, 1, 16 * 6).reshape(16, 6)

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.nbytes)
        return tensor

    with torch.random.fork_rng(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), around:
        loss = model(x).square().mean()
    found = torch.autograd.grad(loss, list(model.parameters()))
    return [*found, *model.buffers()]


@pytest.mark.parametrize("name", MODELS)
def test_gradients_and_buffers_have_the_same_bits_and_less_is_kept(name: str) -> None:
    make, blocks = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().train()
    twin = copy.deepcopy(model)
    recomputing = Recomputing(twin)
    assert recomputing.blocks == blocks
    whole: list[int] = []
    less: list[int] = []
    with torch.random.fork_rng():
        expected = _gradients(model, torch.enable_grad(), whole)
        found = _gradients(twin, recomputing, less)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert sum(less) < 0.6 * sum(whole)
    assert not any("forward" in vars(module) for module in twin.modules())


def test_a_run_with_it_is_the_run_without_it(tmp_path: Path) -> None:
    x = torch.linspace(-1, 1, 64 * 6).reshape(64, 6)
    data = x, x.sum(1, keepdim=True)
    recipe = fogline.Recipe(lr=0.01, batch_size=16, duration="20st", watch=0.0, optimizer="momentum", step="eager")
    runs = {}
    for choice in (False, True):
        task = fogline.Task(residual, nn.MSELoss(), data, data)
        chosen = recipe.replace(checkpoint_activations=choice)
        runs[choice] = fogline.fit(task, chosen, runs=tmp_path, name=str(choice))
    states = [run.model.state_dict() for run in runs.values()]
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))
    assert list(runs[True].steps["loss"]) == list(runs[False].steps["loss"])


class Tight(nn.Module):
    """Blocks on a machine whose memory holds so many bytes of activations at a time."""

    def __init__(self, body: nn.Module, most: int) -> None:
        super().__init__()
        self.body, self.most, self.full = body, most, 0

    def forward(self, x: Tensor) -> Tensor:
        kept = 0

        def keep(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.nbytes
            if self.full and kept > self.most and not isinstance(tensor, nn.Parameter):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out: Tensor = self.body(x)
        return out


def _tight(body: Callable[[], nn.Module], most: int, runs: Path, **fields: Any) -> fogline.Run:
    x = torch.linspace(-1, 1, 32 * 6).reshape(32, 6)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Tight(body(), most)
    task = fogline.Task(model, nn.MSELoss(), (x, x.sum(1, keepdim=True)))
    recipe = fogline.Recipe(
        lr=0.01, batch_size=32, duration="6st", watch=0.0, optimizer="sgd", step="eager", guard=False, **fields
    )
    run = None
    for step in fogline.descend(task, recipe, runs=runs):
        run = step.run
        if step.number == 2:
            run.model.full = 1  # from now on somebody else has the rest of the memory
    assert run is not None
    return run


def test_statistics_of_the_batch_are_kept_by_computing_again(tmp_path: Path) -> None:
    """Micro-batches would have statistics of their own; with less memory still they are said to."""
    run = _tight(residual, 12_000, tmp_path)
    said = [
        text for kind, text in zip(run.events["kind"], run.events["message"], strict=True) if kind == "out_of_memory"
    ]
    assert said == ["out of memory: the activations of 5 blocks are now computed again on the way back"]
    whole = _tight(residual, 10**9, tmp_path)
    states = [r.model.state_dict() for r in (run, whole)]
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))


def test_a_model_without_blocks_is_refused(tmp_path: Path) -> None:
    x = torch.ones(8, 6)
    with pytest.raises(ValueError, match=r"expected a model with blocks .* received Linear without any"):
        fogline.fit(
            nn.Linear(6, 1), (x, x[:, :1]), loss=nn.MSELoss(), lr=0.1, checkpoint_activations=True, runs=tmp_path
        )


def test_what_is_no_choice_is_refused() -> None:
    with pytest.raises(TypeError, match="checkpoint_activations: expected True, False or 'auto', received 'yes'"):
        fogline.Recipe(checkpoint_activations="yes")  # type: ignore[arg-type]
