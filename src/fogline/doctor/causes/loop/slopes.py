"""A derivative inside the loss that is taken without its graph: what it is there for has no gradient.

Equations that a network is to fulfil and penalties on the slope of a critic hold derivatives of its outputs.
``torch.autograd.grad`` gives bare numbers unless ``create_graph=True`` asks for more: the loss is the same to the last
digit, and the weights are trained by its other terms alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fogline.descent.copies import copied
from fogline.descent.objective import Objective
from fogline.descent.randomness import PROBE, private_randomness, seed_step
from fogline.doctor.anatomy import CPU, operation
from fogline.doctor.case import FAILURES
from fogline.doctor.causes.loop.cut import loss_within, without_cuts
from fogline.doctor.examination import Examination
from fogline.doctor.finding import Evidence, Suspicion
from fogline.doctor.surgery import bare
from fogline.doctor.uncut import WithGraph, forgets_graph

_ADDING = ("Add", "Sub", "Rsub", "Stack", "Cat")
_COMPARING = (*_ADDING, "MseLoss", "L1Loss", "SmoothL1Loss", "HuberLoss")
_SCALING = (
    "Mul", "Div", "Neg", "Sum", "Mean", "View", "UnsafeView", "ReshapeAlias", "Expand", "Squeeze", "Unsqueeze", "Clone",
    "Alias", "ToCopy", "Select", "Slice", "Index", "Transpose", "Permute",
)  # fmt: skip
"""Operations that leave a sum of terms one: behind anything else terms are no longer apart."""
_MOST_NODES = 20_000
_FREED = "backward through the graph a second time"


def slopes_without_graph(exam: Examination) -> Suspicion | None:
    """Derivatives without a graph that are a term of the loss, or are added to what else an equation is made of.

    Such numbers may be meant to stay numbers: the step towards an adversarial example, the weight of a term, a first
    order of what is learned to learn. All those go through weights again, are multiplied with what is learned, or are
    derivatives with respect to weights. But a term without any gradient is none: nobody adds a constant to a loss. And
    where a part of an equation is given its graph, the rest of it is meant to have one.
    """
    anatomy = exam.anatomy
    freed = _FREED in anatomy.error  # such derivatives free the graph behind them, which the loss may need as well
    if (anatomy.stage and not freed) or not (freed or any(map(_nonzero, anatomy.gradients.values()))):
        return None
    model, in_model = copied(anatomy.model), exam.case.supervised
    with_graph, seen, again = WithGraph(), _Numbers(), _Numbers()
    mended = _loss(exam, model, with_graph)
    if mended is None or not with_graph.cuts or not _changes(exam, mended, model):
        return None
    loss = _loss(exam, model, seen)
    if loss is None or len(seen.calls) != len(with_graph.graphs):
        return None
    ways = [_Way(loss, call.leaves) for call in seen.calls]
    alone = any(way.is_term() for way in ways)
    if not alone:
        if _loss(exam, _moved(model), again) is None or len(again.calls) != len(seen.calls):
            return None
        calls = zip(ways, seen.calls, again.calls, with_graph.graphs, strict=True)
        if not any(_is_data(call, other) and way.is_added_to_its_like(nodes) for way, call, other, nodes in calls):
            return None
    where = "model" if in_model else "loss"
    return Suspicion(
        "detached_graph",
        0.9 if alone or seen.keeps else 0.5,
        (Evidence(f"derivatives in the {where} that have no graph", len(seen.calls), 0),),
        f"Derivatives inside the {where} are taken by torch.autograd.grad without create_graph=True: they are numbers "
        "without a graph, and what the loss asks of them has no gradient. "
        + (
            "They also free the graph that the rest of the loss needs."
            if freed
            else "The weights are trained by the rest of the loss alone."
        ),
        (without_cuts(WithGraph, tuple(with_graph.cuts), in_model=in_model, in_loss=not in_model),),
        proof=alone or seen.keeps,
        blocks=freed,
        severity="fatal" if freed else "serious",
    )


@dataclass(frozen=True)
class _Call:
    """Derivatives that were taken without a graph.

    Attributes:
        inputs: what they are with respect to.
        leaves: the derivatives, each the beginning of a graph of its own.
    """

    inputs: tuple[Tensor, ...]
    leaves: tuple[Tensor, ...]


class _Numbers(TorchFunctionMode):
    """Follows derivatives that have no graph to where they go.

    Attributes:
        calls: that gave them.
        keeps: whether others are given their graph.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self.keeps = False

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        forgets = forgets_graph(func, kwargs)
        found = func(*args, **kwargs | ({"retain_graph": True} if forgets else {}))
        self.keeps |= func is torch.autograd.grad and bool(kwargs.get("create_graph"))
        if not forgets:
            return found
        leaves = [None if slope is None else slope.detach().requires_grad_() for slope in found]
        inputs = tuple(given for given in args[1] if isinstance(given, Tensor))
        self.calls.append(_Call(inputs, tuple(leaf for leaf in leaves if leaf is not None)))
        return tuple(None if leaf is None else leaf.clone() for leaf in leaves)


def _loss(exam: Examination, model: nn.Module, mode: TorchFunctionMode) -> Tensor | None:
    """The loss of the batch within a mode; None where it fails."""
    objective, in_model = Objective(model, exam.program.loss), exam.case.supervised
    with private_randomness(CPU), torch.enable_grad():
        seed_step(0, 0, PROBE, CPU)  # as the anatomy has it
        try:
            return loss_within(objective, exam.anatomy.batch, mode, in_model=in_model, in_loss=not in_model)
        except FAILURES:
            return None


def _moved(model: nn.Module) -> nn.Module:
    """A copy with other weights."""
    moved = copied(model)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.mul_(1.1).add_(0.01)
    return moved


def _nonzero(gradient: Tensor | None) -> bool:
    return gradient is not None and bool((gradient != 0).any())


def _changes(exam: Examination, loss: Tensor, model: nn.Module) -> bool:
    """Whether a gradient of this loss is another one than the program has, beyond rounding."""
    named = [(bare(name), p) for name, p in model.named_parameters() if p.requires_grad]
    try:
        slopes = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    except FAILURES:
        return False
    for (name, _), slope in zip(named, slopes, strict=True):
        before = exam.anatomy.gradients.get(name)
        if slope is not None:
            before = torch.zeros_like(slope) if before is None else before
            if not torch.allclose(slope, before, 1e-3, 1e-9):
                return True
    return False


def _is_data(call: _Call, moved: _Call) -> bool:
    """Whether derivatives are with respect to data: what other weights leave as it is, with a graph or without."""
    return all(
        not isinstance(given, nn.Parameter) and not _weights(given.grad_fn) and torch.equal(given, other)
        for given, other in zip(call.inputs, moved.inputs, strict=True)
    )


class _Way:
    """How derivatives go into a loss, read from autograd's graph.

    Args:
        loss: has the graph.
        leaves: the derivatives.
    """

    def __init__(self, loss: Tensor, leaves: tuple[Tensor, ...]) -> None:
        self._root = loss.grad_fn
        self._learned, self._derived = set[Any](), set[Any]()  # operations on weights, and on the derivatives
        numbers = {id(leaf) for leaf in leaves}
        for node in _in_order(self._root):
            variable = getattr(node, "variable", None)
            before = [earlier for earlier, _ in node.next_functions]
            if isinstance(variable, nn.Parameter) or any(earlier in self._learned for earlier in before):
                self._learned.add(node)
            if id(variable) in numbers or any(earlier in self._derived for earlier in before):
                self._derived.add(node)

    def _operands(self, node: Any) -> list[Any]:
        return [n for n, _ in node.next_functions if n in self._learned or n in self._derived]

    def is_term(self) -> bool:
        """Whether they are, with numbers alone, a term of the loss: one that has no gradient at all."""
        nodes = [self._root] if self._root in self._derived else []
        while nodes:
            node = nodes.pop()
            if node not in self._learned:
                return True
            operands, name = self._operands(node), operation(node)
            if name in _ADDING or (name in _SCALING and len(operands) == 1):
                nodes += [operand for operand in operands if operand in self._derived]
        return False

    def is_added_to_its_like(self, graph: list[Any]) -> bool:
        """Whether they are added to, or compared with, what the weights give that they are themselves made of.

        Args:
            graph: nodes of the same derivatives where they have a graph.
        """
        own = {id(weight) for node in graph for weight in _weights(node)}
        nodes = [self._root] if self._root in self._derived else []
        while nodes:
            node = nodes.pop()
            operands = set(self._operands(node))
            if not operands:
                return True
            others = [operand for operand in operands if operand not in self._derived]
            alike = all(any(id(weight) in own for weight in _weights(other)) for other in others)
            if len(operands) == 1 or (operation(node) in _COMPARING and alike):
                nodes += [operand for operand in operands if operand in self._derived]
        return False


def _weights(node: Any) -> list[nn.Parameter]:
    """The parameters that an operation is computed from."""
    found = (getattr(earlier, "variable", None) for earlier in _in_order(node))
    return [weight for weight in found if isinstance(weight, nn.Parameter)]


def _in_order(root: Any) -> list[Any]:
    """The operations behind one, those that come first first; none where they are too many to be read."""
    nodes, seen, ordered = [(root, False)] if root is not None else [], set[Any](), list[Any]()
    while nodes:
        node, done = nodes.pop()
        if done:
            ordered.append(node)
        elif node not in seen:
            seen.add(node)
            nodes.append((node, True))
            nodes += [(earlier, False) for earlier, _ in node.next_functions if earlier is not None]
        if len(seen) > _MOST_NODES:
            return []
    return ordered
