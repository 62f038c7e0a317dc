"""The step of all members of a population as one graph: traced and compiled as that of one member, see ``graph.py``."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fogline.data.source import Batch
from fogline.descent.clipping import Clipping, along, member_norms, memory_of
from fogline.descent.graph import Program, compile_steps
from fogline.descent.optimizers import init_state
from fogline.descent.recorded import CannotCompileError, StandIn, rebuilt, record

Losses = Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Batch], Tensor]
"""Of all members, shape (size,), from the stacks of their weights, of what is not trained, and a batch."""


def compile_members(
    losses: Losses,
    trained: Mapping[str, nn.Parameter],
    held: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    clipping: Clipping | None,
    batch: Batch,
) -> Program:
    """A program that takes a step of every member; it takes a learning rate for each, and its signals are their losses.

    Args:
        losses: what is minimised.
        trained: stacks of weights, with the members in front.
        held: stacks of buffers and frozen weights.
        optimizer: of the stacks of weights; steps at the rate 1.
        clipping: with a limit for each member.
        batch: of the shapes that the program takes.

    Raises:
        CannotCompileError: the model, the loss or the optimizer cannot be recorded, or Inductor refuses.
    """
    if not init_state(optimizer):
        raise CannotCompileError(f"the state of {type(optimizer).__name__} cannot be made before its first step")
    return compile_steps(record(_Members(losses, trained, held, optimizer, clipping, batch), batch), batch)


class _Members:
    """The step as a function of flat tensors."""

    def __init__(
        self,
        losses: Losses,
        trained: Mapping[str, nn.Parameter],
        held: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        clipping: Clipping | None,
        batch: Batch,
    ) -> None:
        self.losses, self.clipping, self.batch = losses, clipping, batch
        self.names, self.held = list(trained), list(held)
        self.optimizer = StandIn(optimizer, list(trained.values()))
        weights = [weight.detach() for weight in trained.values()]
        self.state: list[Tensor] = [*weights, *held.values(), *self.optimizer.slots, *memory_of(clipping)]
        self.trained, self.rates = len(weights), weights[0].shape[0]

    def __call__(self, *arguments: Tensor) -> list[Tensor]:
        taken = iter(arguments)
        weights = [next(taken) for _ in self.names]
        held = {name: next(taken) for name in self.held}
        slots = [next(taken) for _ in self.optimizer.slots]
        memory = next(taken) if memory_of(self.clipping) else None
        batch = rebuilt(self.batch, taken)
        rates = next(taken)
        leaf_weights = [weight.detach().requires_grad_() for weight in weights]
        with torch.enable_grad():
            losses = self.losses(dict(zip(self.names, leaf_weights, strict=True)), held, batch)
            gradients = torch.autograd.grad(losses.sum(), leaf_weights, allow_unused=True)
        with torch.no_grad():
            used = [gradient for gradient in gradients if gradient is not None]
            if self.clipping is not None:
                norm = member_norms(used)
                used = self.clipping.functional(used, norm, memory, torch.isfinite(norm))
            clipped = iter(used)
            # Nesterov's foreach step writes into the gradients it is given.
            given = [None if gradient is None else next(clipped).clone() for gradient in gradients]
            before = [weight.clone() for weight in weights]
            self.optimizer.step(weights, slots, given, 1.0)
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(torch.lerp(old, weight, along(rates, weight)))
        return [losses.detach()]
