"""One hand-written training loop, as people write it, with the habits of its author."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from faults.program import Habits, Pair, Setting, Watch

_OPTIMIZERS: dict[Any, Any] = {
    "sgd": torch.optim.SGD,
    "momentum": lambda p, lr, **options: torch.optim.SGD(p, lr, momentum=0.9, **options),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
}


def train(setting: Setting, seed: int, watch: Watch) -> Any:
    """Train for the epochs of the setting's recipe; returns the run, whose ``model`` is the trained one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _train(setting, setting.habits or Habits(), watch)


def _train(setting: Setting, habits: Habits, watch: Watch) -> Any:
    model, loss_fn = setting.model(), setting.loss
    optimizer = _optimizer(model, setting, habits)
    scheduler = habits.schedule(optimizer) if habits.schedule else None
    scaler = habits.scaler() if habits.scaler else None
    half = torch.autocast("cpu", torch.float16) if scaler else nullcontext()
    step = 0
    if habits.train_mode == "never":
        model.eval()
    with watch(model, optimizer, loss_fn=loss_fn, scheduler=scheduler) as run:
        for _ in range(int(float(str(setting.recipe.duration).removesuffix("ep")))):
            if habits.train_mode == "epoch":
                model.train()
            if habits.zero_grad == "epoch":
                optimizer.zero_grad()
            for inputs, targets in _batches(setting, habits):
                step += 1
                with half:
                    outputs = model(inputs)
                    loss = loss_fn(_cut(outputs, habits, step), targets)
                    loss = loss / habits.accumulate if habits.divide else loss
                if scaler:
                    scaler.scale(loss).backward()
                else:
                    loss.backward()
                run.log(loss * (habits.accumulate if habits.divide else 1))
                if step % habits.accumulate:
                    continue
                if scaler:
                    scaler.step(optimizer)
                    scaler.update()
                else:
                    optimizer.step()
                if habits.zero_grad == "step":
                    optimizer.zero_grad()
                if scheduler and habits.schedule_every == "step":
                    scheduler.step()
            if scheduler and habits.schedule_every == "epoch":
                scheduler.step()
            run.log(valid=_held_out(model, setting, habits))
    return run


def _optimizer(model: nn.Module, setting: Setting, habits: Habits) -> torch.optim.Optimizer:
    named = list(model.named_parameters())
    recipe = setting.recipe
    if habits.freeze:
        for _, parameter in named[:-2] if habits.freeze == "body" else named[:2]:
            parameter.requires_grad_(False)
    chosen = {"head": named[-2:], "body": named[:-2], "first": named[:2]}.get(habits.optimized, named)
    options = dict(recipe.options) | ({} if recipe.weight_decay is None else {"weight_decay": recipe.weight_decay})
    made: torch.optim.Optimizer = _OPTIMIZERS[recipe.optimizer]([p for _, p in chosen], lr=recipe.lr, **options)
    if habits.optimized == "stale":
        _new_head(model)
    return made


def _new_head(model: nn.Module) -> None:
    """Replace the last linear layer by a new one, as in fine-tuning."""
    name, old = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    owner = model.get_submodule(name.rpartition(".")[0])
    setattr(owner, name.rpartition(".")[2], nn.Linear(old.in_features, old.out_features))


def _batches(setting: Setting, habits: Habits) -> Iterator[Pair]:
    inputs, targets = setting.train
    size = setting.recipe.batch_size
    assert isinstance(size, int)
    rows = max(1, size // habits.accumulate)
    if habits.loader:
        yield from DataLoader(TensorDataset(inputs, targets), rows, shuffle=setting.recipe.shuffle)
        return
    order = torch.randperm(len(inputs)) if setting.recipe.shuffle else torch.arange(len(inputs))
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        yield inputs[chosen], targets[chosen]


def _cut(outputs: Tensor, habits: Habits, step: int) -> Tensor:
    """The outputs as the loss gets them: through NumPy and back, which is how people lose the graph."""
    if habits.detach == "loss" or (habits.detach == "often" and step % 16):
        return torch.tensor(outputs.detach().numpy(), requires_grad=True)
    return outputs


def _held_out(model: nn.Module, setting: Setting, habits: Habits) -> Tensor:
    if habits.eval_mode:
        model.eval()
    with torch.no_grad():
        value: Tensor = setting.loss(model(setting.valid[0]), setting.valid[1])
    return value
