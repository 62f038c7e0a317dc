"""A model spread over processes: each keeps a part of weights, gradients and optimizer state (PyTorch's FSDP2).

The engine sees the part of its process as plain tensors, in which every method that treats each number by itself takes
the step it would take on the whole. The model gathers its weights layer by layer while it computes.

Only process 0 ever holds the whole model, on the processor, as it is made; the others make it without memory and are
sent their parts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard

from fogline.data.source import Stream
from fogline.descent.group import World
from fogline.descent.machine import Machine
from fogline.descent.optimizers import spec_of
from fogline.descent.parallel import ParallelStep
from fogline.descent.replay import data_refusal
from fogline.descent.share import Share, share_of
from fogline.descent.step import Outcome
from fogline.recipe import Recipe

ELEMENTWISE = (
    "gd", "sgd", "momentum", "nesterov", "adam", "adamw", "nadam", "radam", "rmsprop", "adagrad", "adadelta", "adamax",
    "asgd", "rprop", "lion", "schedule_free",
)  # fmt: skip
"""Methods whose step on a part of the weights is that part of their step."""


def check_shardable(recipe: Recipe) -> None:
    """Refuse what does not work on parts.

    Raises:
        ValueError: the optimizer, the precision or the guard.
    """
    if recipe.optimizer not in ELEMENTWISE:
        raise ValueError(
            f"parallel='fsdp': expected an optimizer that treats each weight by itself ({', '.join(ELEMENTWISE)}), "
            f"received {recipe.optimizer!r}; take one of them, or parallel='ddp'"
        )
    if recipe.precision == "fp16":
        raise ValueError("parallel='fsdp': expected precision bf16, float32 or float64, received 'fp16'; take bf16")
    if recipe.guard is True:
        raise ValueError("parallel='fsdp': expected guard=False, received True; leave it out, or take parallel='ddp'")


class Sharded:
    """The parts of a model that this process keeps.

    Args:
        model: whole in process 0, without memory ("meta") in the others; becomes the sharded one.
        world: the processes.
        device: where it shall be.

    Attributes:
        trained: the trained weights by name, as tensors that know the whole.
        parts: of the same, what this process keeps, sharing its memory.
    """

    def __init__(self, model: nn.Module, world: World, device: torch.device) -> None:
        self.model, self.world = model, world
        self.mesh = init_device_mesh(device.type, (world.size,))
        whole = dict(model.named_parameters()) if world.first else {}
        values = {name: p.detach().cpu() for name, p in whole.items()}
        for unit in _units(model):
            fully_shard(unit, mesh=self.mesh)
        if not world.first:
            model.to_empty(device=device)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # the shares are weighed already
                module.set_force_sum_reduction_for_comms(True)  # gloo has no other for float32
        for name, parameter in model.named_parameters():
            self._scatter(parameter, values.pop(name, None))
        world.spread(list(model.buffers()))
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.trained: dict[str, Any] = dict(named)
        self.parts = [nn.Parameter(_part(p)) for _, p in named]

    def _scatter(self, parameter: Any, whole: Tensor | None) -> None:
        """Give every process its part of what process 0 has; parts are of equal length but for the last ones."""
        mine = _part(parameter)
        rows = -(-parameter.shape[0] // self.world.size)
        got = torch.zeros(rows, *parameter.shape[1:], dtype=mine.dtype)
        sent = None
        if whole is not None:
            padded = torch.zeros(rows * self.world.size, *whole.shape[1:], dtype=whole.dtype)
            padded[: len(whole)] = whole
            sent = list(torch.split(padded, rows))
        work = dist.scatter(got, sent, src=0, group=self.world.group, async_op=True)
        self.world.finish(work, "the spreading of the weights")
        mine.copy_(got[: len(mine)])

    def use(self, optimizer: torch.optim.Optimizer) -> None:
        """Let an optimizer that was made for the model step on the parts."""
        part_of = dict(zip(self.trained.values(), self.parts, strict=True))
        for group in optimizer.param_groups:
            group["params"] = [part_of[p] for p in group["params"]]

    def owner(self, path: str) -> Any:
        """The trained weights that a tensor of a checkpoint belongs to and is shaped like; None of others."""
        if path.startswith("average/"):
            return list(self.trained.values())[int(path.removeprefix("average/"))]
        name = path.removeprefix("optimizer/").rpartition("/")[0] if path.startswith("optimizer/") else path
        return self.trained.get(name.removeprefix("best/"))

    def known(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a checkpoint, those that are parts as tensors that know the whole."""
        return {path: self._knowing(path, value) for path, value in tensors.items()}

    def _knowing(self, path: str, value: Tensor) -> Tensor:
        owner = self.owner(path)
        if isinstance(value, DTensor) or owner is None or value.shape != _part(owner).shape or not value.ndim:
            return value
        return DTensor.from_local(
            value.detach(), self.mesh, (Shard(0),), run_check=False, shape=owner.shape, stride=owner.stride()
        )

    def room(self, path: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Memory for a tensor of a checkpoint: for the part of this process where it is one of parts."""
        owner = self.owner(path)
        held = dict(self.model.named_parameters()).get(path.removeprefix("best/")) if owner is None else owner
        if held is None or held.shape != shape:
            return torch.empty(shape, dtype=dtype)
        part = torch.empty_like(_part(held), dtype=dtype)
        return DTensor.from_local(part, self.mesh, (Shard(0),), run_check=False, shape=held.shape, stride=held.stride())


def parts_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What this process keeps of each."""
    return {path: _part(value) if isinstance(value, DTensor) else value for path, value in tensors.items()}


def _part(tensor: Any) -> Tensor:
    part: Tensor = tensor.detach().to_local()
    return part


def _units(model: nn.Module) -> list[nn.Module]:
    """What gathers its weights on its own, innermost first: the members of lists and sequences, and the whole.

    Weights that are used in two places cannot lie in two units: then the whole is one.
    """
    parameters = [p for _, p in model.named_parameters(remove_duplicate=False)]
    if len({id(p) for p in parameters}) < len(parameters):
        return [model]
    members = [
        child
        for module in model.modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
        for child in module.children()
        if any(True for _ in child.parameters()) and not isinstance(child, nn.ModuleList)
    ]
    return [*reversed(members), model]


class ShardedStep(ParallelStep):
    """:class:`ParallelStep` on parts: the gradients come summed, each process has those of its part.

    Every process goes through the model as often as any other, with rows that count for nothing where it has none.
    """

    def __init__(self, machine: Machine, sharded: Sharded, share: Share, *, deferred: bool | None = None) -> None:
        self.sharded = sharded
        super().__init__(machine, share, sharded.world, deferred=deferred)
        self._norm: Tensor = torch.zeros(())

    def _made_exchange(self) -> Any:
        return None

    def close(self) -> None:
        """Nothing hangs on the model but what FSDP made of it."""

    def _in_memory(self, step: int, batch: Any) -> Tensor:
        try:
            return self.backward(batch)
        except RuntimeError as error:  # of the messages that the model itself exchanges
            if "gloo" in str(error) or "NCCL" in str(error):
                raise self.world.lost(error, self._doing) from error
            raise

    def backward(self, batch: Any) -> Tensor:
        """Gradients of the parts into ``.grad``; returns the loss of all."""
        for parameter in self.sharded.trained.values():
            parameter.grad = None
        total = torch.zeros(2, dtype=torch.float64, device=self.machine.device)
        with self._together:
            for piece, counts in self._turns(batch):
                loss, weight = self.weighing.share(piece, self.portion.rows)
                loss.backward() if counts else (loss * 0.0).backward()  # type: ignore[no-untyped-call]
                if counts:
                    total[0] += loss.detach()
                    total[1] += weight
        for parameter, part in zip(self.sharded.trained.values(), self.machine.parameters, strict=True):
            part.grad = None if parameter.grad is None else parameter.grad.to_local()
        return self._summed(total)

    def _turns(self, batch: Any) -> list[tuple[Any, bool]]:
        """Micro-batches and whether they count, as many as the process with the most rows has."""
        own = share_of(self.portion.rows, self.world.rank, self.world.size)
        counts = own[1] > own[0]
        pieces = self._pieces(batch)
        size = -(-self.portion.rows // self.machine.parts)
        most = math.ceil(math.ceil(self.portion.rows / self.world.size) / size)
        return [(piece, counts) for piece in pieces] + [(pieces[-1], False)] * (most - len(pieces))

    def _summed(self, total: Tensor) -> Tensor:
        gradients = self.gradients
        norms = torch.stack(torch._foreach_norm(gradients)).double() if gradients else total.new_zeros(1)
        told = torch.cat([total, norms.square().sum()[None]])
        self.world.sum(told, self._doing)
        self.world.agree(self._doing)
        loss, weight, squares = told.unbind()
        weight = weight / self.portion.rows
        if self.weighing.count is not None:
            torch._foreach_div_(gradients, weight.to(gradients[0].dtype))
            loss, squares = loss / weight, squares / weight.square()
        self._norm = squares.sqrt()
        return loss

    def _update(self, loss: Tensor, norms: Any, gradients: list[Tensor]) -> Outcome:
        return super()._update(loss, [self._norm], gradients)

    def _deferred(self, loss: Tensor, norms: Any, gradients: list[Tensor]) -> Outcome:
        return super()._deferred(loss, [self._norm], gradients)

    def explained(self, step: int) -> dict[str, Any]:
        """What can be told of a refused step without going through the model again: whether it was the data."""
        rows = None if isinstance(self.batches.source, Stream) else self.share.at(step)[1]
        found = self.world.gather(data_refusal(self.batch, step, rows), f"the refusal of step {step}")
        return next((item for item in found if item["rows"]), found[0])


def implementation_on_parts(recipe: Recipe) -> str:
    """By rule, since measuring would be on parts of another size in every process."""
    return "foreach" if "foreach" in spec_of(recipe.optimizer).implementations else "forloop"
