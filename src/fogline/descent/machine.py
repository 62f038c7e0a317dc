"""What takes the steps: model, optimizer and what goes with them, which a checkpoint keeps."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fogline.data.source import Batch
from fogline.descent.batches import rows_of, split
from fogline.descent.clipping import Clipping, memory_of
from fogline.descent.objective import Objective
from fogline.descent.optimizers import build, load_state_tensors, spec_of, state_scalars, state_tensors
from fogline.descent.recompute import Recomputing
from fogline.recipe import Recipe


@dataclass
class Machine:
    """What every step needs and a checkpoint keeps.

    Attributes:
        objective: model and loss.
        optimizer: its state lives with it.
        clipping: or None.
        scaler: of mixed precision with float16, or None.
        parts: micro-batches a step is made of.
        recompute: whether activations are computed again on the way back; None: once the memory does not suffice.
        summed: the loss adds over examples instead of averaging.
        events: what happened on the way, as (step, kind, message), for the loop to write down.
    """

    objective: Objective
    optimizer: torch.optim.Optimizer
    device: torch.device
    seed: int = 0
    clipping: Clipping | None = None
    scaler: torch.amp.GradScaler | None = None
    parts: int = 1
    recompute: bool | None = False
    summed: bool = False
    needs_closure: bool = False
    events: list[tuple[int, str, str]] = field(default_factory=list)
    parameters: list[nn.Parameter] = field(init=False)
    buffers: list[Tensor] = field(init=False)
    _recomputing: Recomputing | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        model = self.objective.model
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.buffers = list(model.buffers())

    @property
    def blocks(self) -> int:
        """How many blocks there are whose activations can be computed again."""
        return self._again().blocks

    def recomputing(self) -> AbstractContextManager[None]:
        """Within it the blocks keep their inputs only, where it is so set."""
        return self._again() if self.recompute else nullcontext()

    def _again(self) -> Recomputing:
        if self._recomputing is None:
            self._recomputing = Recomputing(self.objective.model)
        return self._recomputing

    def copied(self) -> Machine:
        """A machine of its own on copies of model, optimizer state and clipping: what it does leaves this one alone."""
        objective, optimizer = self.objective.copied(), self.optimizer
        pairs = zip(self.objective.model.parameters(), objective.model.parameters(), strict=True)
        partner = dict(pairs)
        twin = _with_attributes_of(optimizer, partner)
        twin.param_groups = [{**g, "params": [partner[p] for p in g["params"]]} for g in optimizer.param_groups]
        twin.state = type(optimizer.state)(dict)
        load_state_tensors(twin, state_tensors(optimizer), state_scalars(optimizer))
        clipping = copy.deepcopy(self.clipping)
        return replace(self, objective=objective, optimizer=twin, clipping=clipping, events=[])


def _with_attributes_of(
    optimizer: torch.optim.Optimizer, partner: Mapping[nn.Parameter, nn.Parameter]
) -> torch.optim.Optimizer:
    """An optimizer of its class with copies of what it keeps beside groups and state, which pickling leaves out."""
    twin = copy.copy(optimizer)
    memo: dict[int, Any] = {id(one): other for one, other in partner.items()}
    for name, value in vars(optimizer).items():
        if name not in vars(twin) and not callable(value):  # what was bound to the other one stays there
            vars(twin)[name] = copy.deepcopy(value, memo)
    return twin


def optimizer_of(
    model: nn.Module, recipe: Recipe, lr: float, implementation: str | None = None
) -> torch.optim.Optimizer:
    """The optimizer that a recipe says, at this rate."""
    return build(
        model,
        recipe.optimizer,
        lr,
        weight_decay=recipe.weight_decay,
        options=dict(recipe.options),
        lr_scale=recipe.lr_scale,
        implementation=implementation,
    )


def machine_of(objective: Objective, recipe: Recipe, optimizer: torch.optim.Optimizer, device: torch.device) -> Machine:
    """What takes the steps of a recipe, in full precision and without activations computed again."""
    like = next(p for p in objective.model.parameters() if p.requires_grad)
    return Machine(
        objective,
        optimizer,
        device,
        seed=recipe.seed,
        clipping=None if recipe.clip is None else Clipping(recipe.clip, like),
        parts=recipe.accumulate,
        needs_closure=spec_of(recipe.optimizer).needs_closure,
    )


Kept = list[tuple[Tensor, Tensor]]


def kept(machine: Machine) -> Kept:
    """Weights, buffers, optimizer state and clip memory: each live tensor, and a copy of it for :func:`put_back`."""
    state = [v for s in machine.optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
    live = [
        *(p.data for p in machine.objective.model.parameters()),
        *machine.buffers,
        *state,
        *memory_of(machine.clipping),
    ]
    return [(value, value.clone()) for value in live]


def put_back(before: Kept) -> None:
    """Everything as it was when it was kept."""
    for live, old in before:
        live.copy_(old)


def learned(machine: Machine, average: list[Tensor] | None) -> dict[str, Tensor]:
    """What goes with the weights, by name: optimizer state, the moving average of the weights, the clip memory."""
    found = {f"optimizer/{name}": value for name, value in state_tensors(machine.optimizer).items()}
    found |= {f"average/{k:06d}": value for k, value in enumerate(average or [])}
    for memory in memory_of(machine.clipping):
        found["clipping"] = memory
    return found


def load_learned(
    machine: Machine, average: list[Tensor] | None, tensors: dict[str, Tensor], scalars: dict[str, Any]
) -> None:
    """What :func:`learned` gave, put back; ``scalars`` are those of the optimizer."""
    load_state_tensors(machine.optimizer, below(tensors, "optimizer/"), scalars)
    for k, value in enumerate(average or []):
        value.copy_(tensors[f"average/{k:06d}"])
    for memory in memory_of(machine.clipping):
        if "clipping" in tensors:
            memory.copy_(tensors["clipping"])


def below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose name begins so, by the rest of it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def has_batch_statistics(model: nn.Module) -> bool:
    """Whether a layer computes with statistics of the batch, which micro-batches have of their own."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training for module in model.modules())


def is_summed(objective: Objective, batch: Batch) -> bool:
    """Whether the loss adds over examples: the loss of a batch against those of its halves."""
    if rows_of(batch) < 2:
        return getattr(objective.loss, "reduction", "mean") == "sum"
    reduction = getattr(objective.loss, "reduction", None)
    if reduction in ("sum", "mean"):
        return bool(reduction == "sum")
    half = rows_of(batch) // 2
    whole = objective.value(batch).item()
    parts = [(objective.value(piece).item(), rows_of(piece)) for piece in split(batch, half)]
    averaged = sum(loss * rows for loss, rows in parts) / sum(rows for _, rows in parts)
    return abs(whole - sum(loss for loss, _ in parts)) < abs(whole - averaged)
