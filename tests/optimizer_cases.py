"""The small network and the steps that the tests of optimizers share."""

from typing import Any

import torch
from torch import Tensor, nn

from fogline.descent.optimizers import OPTIMIZERS, build, set_lr, spec_of

Model = nn.Module


def make_model(dtype: torch.dtype = torch.float32) -> Model:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 8), nn.Tanh(), nn.Linear(8, 2)
    ).to(dtype)


def train(model: Model, optimizer: torch.optim.Optimizer, steps: range, lr: float | None = None) -> None:
    """Steps on batches that are a function of the step's number."""
    first = next(model.parameters())
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(4, 1, 6, 6, generator=generator).to(first.dtype)
        y = torch.randn(4, 2, generator=generator).to(first.dtype)

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = ((model(x) - y) ** 2).mean()
            loss.backward()
            return loss

        if lr is not None:
            set_lr(optimizer, lr * (1 + step))
        if spec_of(type(optimizer)).needs_closure:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()


def make(name: str, model: Model, **keywords: Any) -> torch.optim.Optimizer:
    return build(model, name, OPTIMIZERS[name].lr, **keywords)


def assert_same_bits(one: Model, other: Model) -> None:
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert bits(a) == bits(b), name


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()
