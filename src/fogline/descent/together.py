"""Members of a population in one program: a forward pass mapped over stacks of weights, one optimizer for all."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.utils.stateless import _reparametrize_module  # functional_call without its signature

from fogline.data.source import Batch, leaves, map_tree
from fogline.descent.batches import same_shape
from fogline.descent.clipping import Clipping, along, member_norms, memory_of
from fogline.descent.copies import copied
from fogline.descent.graph import Program
from fogline.descent.groups import ParameterRole, groups_of, parameter_roles, scaled_roles
from fogline.descent.member_decay import MemberDecay
from fogline.descent.objective import Objective
from fogline.descent.optimizers import (
    build_on,
    init_state,
    load_state_tensors,
    set_lr,
    spec_of,
    state_scalars,
    state_tensors,
)
from fogline.descent.population_graph import compile_members
from fogline.descent.randomness import TRAIN, seed_step
from fogline.descent.scoring import normalisation_layers
from fogline.descent.shortcuts import bare_step
from fogline.recipe import Recipe

_NARROW = 16  # products with fewer columns are slower than their transposes


@dataclass(frozen=True)
class Each:
    """A batch for each member: the tensors of ``batches`` have one more dimension in front, that of the members."""

    batches: Batch

    @classmethod
    def of(cls, batches: Sequence[Batch], copies: int) -> Each:
        """The first batch for the first ``copies`` members, the second for the next, and so on; all of one shape.

        >>> Each.of([torch.zeros(4, 2), torch.ones(4, 2)], copies=3).batches.shape
        torch.Size([6, 4, 2])
        """
        parts = zip(*(leaves(batch) for batch in batches), strict=True)
        stacked = iter([torch.stack(part).repeat_interleave(copies, 0) for part in parts])
        return cls(map_tree(lambda _: next(stacked), batches[0]))

    def of_member(self, k: int) -> Batch:
        """The batch of one member."""
        return map_tree(lambda leaf: leaf[k], self.batches)


class Together:
    """Members in one program.

    What the model draws in training, such as the mask of a dropout, is the same for all of them.
    """

    def __init__(
        self,
        objective: Objective,
        recipe: Recipe,
        size: int,
        decays: Sequence[float] | None = None,
    ) -> None:
        spec = spec_of(recipe.optimizer)
        if decays is not None:
            recipe = recipe.replace(weight_decay=0.0)  # not the optimizer's, then: each member has its own
        if not spec.proportional:
            raise ValueError(
                f"expected an optimizer whose update is proportional to the learning rate, received {spec.name!r}; "
                "its members take turns"
            )
        self.size = size
        self._objective = objective.copied()
        model = self._objective.model.train()
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        stacks = {name: torch.stack([value] * size) for name, value in _values(model).items()}
        self._turned = _turned(model) if spec.grouping is groups_of else set()  # others look at rows and columns
        shown = {n: stacks.pop(n) for n in trained}
        self._trained = {n: nn.Parameter(v.mT.contiguous() if n in self._turned else v) for n, v in shown.items()}
        self._held = stacks
        known = scaled_roles(parameter_roles(model), recipe.lr_scale)
        roles = [_stacked_role(role, self._trained[role.name], size) for role in known]
        self._decay = None if decays is None else MemberDecay.of(spec.name, decays, roles)
        self._optimizer = _one_optimizer(roles, recipe)
        self._update = bare_step(self._optimizer)
        self._before = [torch.empty_like(weight) for weight in self._trained.values()]
        self._silent: dict[bool, bool] = {}  # by mode: whether mapping goes without a warning
        self._seed, self._device = recipe.seed, next(iter(self._trained.values())).device
        like = next(iter(self._trained.values()))
        self._clipping = None if recipe.clip is None else Clipping(recipe.clip, like, (size,))
        self._program: Program | None = None
        self._like: Batch = None  # a batch of the shape that the program takes

    @property
    def compiled(self) -> bool:
        """Whether the step is a compiled program."""
        return self._program is not None

    def compile(self, batch: Batch) -> None:
        """Compile the step for batches of this shape; those of other shapes are learned from as before.

        Raises:
            CannotCompileError: it cannot be compiled; nothing is changed.
        """
        self._program = compile_members(self._mapped, self._trained, self._held, self._optimizer, self._clipping, batch)
        self._like = batch

    def step(self, number: int, batch: Batch | Each, rates: Sequence[float]) -> list[float]:
        seed_step(self._seed, number, TRAIN, self._device)
        program = self._program
        if program is not None and not isinstance(batch, Each) and same_shape(batch, self._like):
            found, _ = program(batch, torch.tensor(rates, dtype=program.rate_type, device=self._device))
            compiled: list[float] = found.tolist()
            return compiled
        weights = list(self._trained.values())
        with torch.enable_grad():
            losses = self._mapped(self._trained, self._held, batch)
            gradients = torch.autograd.grad(losses.sum(), weights, allow_unused=True)
        with torch.no_grad():
            self._move(weights, gradients, torch.tensor(rates, dtype=weights[0].dtype.to_real(), device=self._device))
        values: list[float] = losses.detach().tolist()
        return values

    def losses(self, batch: Batch) -> list[float]:
        with judging(self._objective):
            values: list[float] = self._mapped(self._trained, self._held, batch).tolist()
        return values

    def member(self, k: int) -> nn.Module:
        values = {**self._shown(self._trained), **self._held}
        return bare_copy(self._objective.model, {name: value.detach()[k] for name, value in values.items()}).eval()

    def _shown(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The stacks as the model knows its weights."""
        return {name: weight.mT if name in self._turned else weight for name, weight in weights.items()}

    def keep(self, members: Sequence[int]) -> None:
        """Go on with some of the members only, in this order; what the others have learned is lost."""
        tensors, scalars = state_tensors(self._optimizer), state_scalars(self._optimizer)
        index, size = torch.tensor(members, device=self._device), self.size

        def chosen(value: Tensor) -> Tensor:
            return value[index] if value.ndim and value.shape[0] == size else value.clone()

        kept = {name: chosen(value) for name, value in tensors.items()}
        for weight in self._trained.values():
            weight.data = weight.detach()[index]
        self._held = {name: value[index] for name, value in self._held.items()}
        self._before = [torch.empty_like(weight) for weight in self._trained.values()]
        self._optimizer.state.clear()
        init_state(self._optimizer)
        load_state_tensors(self._optimizer, kept, scalars)
        self._update = bare_step(self._optimizer)
        if self._clipping is not None and self._clipping.memory is not None:
            self._clipping.memory = self._clipping.memory[..., index]
        if self._decay is not None:
            self._decay = replace(self._decay, rates=self._decay.rates[index])
        self.size, self._program = len(members), None

    @contextmanager
    def on_trial(self) -> Iterator[None]:
        """What is learned within is forgotten on leaving."""
        init_state(self._optimizer)  # so that there is one to go back to
        values = [
            *(weight.detach() for weight in self._trained.values()),
            *self._held.values(),
            *memory_of(self._clipping),
        ]
        before = [value.clone() for value in values]
        tensors = {name: value.clone() for name, value in state_tensors(self._optimizer).items()}
        scalars = state_scalars(self._optimizer)
        try:
            yield
        finally:
            torch._foreach_copy_(values, before)
            load_state_tensors(self._optimizer, tensors, scalars)

    def _mapped(self, weights: Mapping[str, Tensor], held: Mapping[str, Tensor], batch: Batch | Each) -> Tensor:
        """The loss of every member, shape (size,), from the stacks of their weights and what is not trained."""

        def one(values: dict[str, Tensor], rows: Batch) -> Tensor:
            with _reparametrize_module(self._objective.model, values, tie_weights=True):
                return self._objective(rows)

        rows, dimension = (batch.batches, 0) if isinstance(batch, Each) else (batch, None)
        mapped = torch.func.vmap(one, in_dims=(0, dimension), randomness="same")
        values, training = {**self._shown(weights), **held}, self._objective.model.training
        if self._silent.get(training):
            losses: Tensor = mapped(values, rows)
            return losses
        with warnings.catch_warnings(record=True) as heard:  # that an operation is mapped slowly: that is measured
            warnings.simplefilter("always")
            losses = mapped(values, rows)
        self._silent[training] = not heard
        return losses

    def _move(self, weights: list[nn.Parameter], gradients: Sequence[Tensor | None], rates: Tensor) -> None:
        self._clip([gradient for gradient in gradients if gradient is not None])
        torch._foreach_copy_(self._before, list[Tensor](weights))
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = None if gradient is None else _lying_like(weight, gradient)
        if self._decay is not None:
            self._decay.into_gradients(weights)
        self._update()
        for weight, old in zip(weights, self._before, strict=True):
            moved = weight.detach()
            torch.lerp(old, moved, along(rates, moved), out=moved)
            weight.grad = None
        if self._decay is not None:
            self._decay.of_weights(weights, self._before, rates)

    def _clip(self, gradients: list[Tensor]) -> None:
        clipping = self._clipping
        if clipping is None:
            return
        scale = clipping.scale(member_norms(gradients))
        for gradient in gradients:
            gradient.mul_(along(scale, gradient))


@contextmanager
def judging(objective: Objective) -> Iterator[None]:
    """Nothing is learned; evaluation mode, but for layers with running statistics."""
    layers = [layer for layer in normalisation_layers(objective.model) if layer.training]
    with objective.without_learning():
        for layer in layers:
            layer.training = True
        yield


def _values(model: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers; the first name of a shared one."""
    named = (*model.named_parameters(), *model.named_buffers())
    return {name: value.detach() for name, value in named}


def bare_copy(model: nn.Module, values: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A copy of the model without gradients, with these weights and buffers if they are given."""
    twin = copied(model)
    if values is not None:
        for name, value in _values(twin).items():
            value.copy_(values[name])
    twin.zero_grad(set_to_none=True)
    return twin


def _one_optimizer(roles: list[ParameterRole], recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer of all members, fused where it can be: their weights are few tensors, and large."""

    def built(implementation: str | None) -> torch.optim.Optimizer:
        optimizer = build_on(
            roles,
            recipe.optimizer,
            1.0,
            weight_decay=recipe.weight_decay,
            options=dict(recipe.options),
            implementation=implementation,
        )
        set_lr(optimizer, 1.0)  # times what each group multiplies it by
        return optimizer

    if "fused" in spec_of(recipe.optimizer).implementations:
        try:
            return built("fused")
        except RuntimeError:  # not for this device or type
            pass
    return built(None)


def _turned(model: nn.Module) -> set[str]:
    """Weights whose stacks are kept transposed, as the product that makes their gradients leaves those."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    linear = {id(layer.weight) for layer in layers if layer.out_features >= _NARROW}
    return {name for name, parameter in model.named_parameters() if id(parameter) in linear}


def _lying_like(weight: Tensor, gradient: Tensor) -> Tensor:
    """Fused kernels read a gradient as if it lay in memory as its weights do."""
    return gradient if gradient.stride() == weight.stride() else torch.empty_like(weight).copy_(gradient)


def _stacked_role(role: ParameterRole, weights: nn.Parameter, size: int) -> ParameterRole:
    """The same role for the stack; what was a stack of hidden matrices is a longer one."""
    hidden = None if role.hidden is None else (role.hidden[0] * size, *role.hidden[1:])
    return replace(role, parameter=weights, hidden=hidden)
