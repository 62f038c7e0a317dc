"""What stands between a model's outputs and its loss, read from autograd's graph alone: nothing is run again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fogline.doctor.anatomy import BENDS, LINEAR, SHAPING, has_weight, inputs_of, nodes_between, operation, until_linear
from fogline.doctor.finding import Evidence, Severity

_ELEMENTWISE = ("Sub", "Rsub", "Add", "Mul", "Div", "MseLoss", "L1Loss", "SmoothL1Loss", "HuberLoss", "Expand")
_RESHAPING = ("View", "UnsafeView", "ReshapeAlias", "Transpose", "Permute", "Squeeze", "Unsqueeze", "ToCopy", "Alias")
_TURNING = ("Transpose", "Permute", "View", "UnsafeView", "ReshapeAlias")
_JOINING = (*_RESHAPING, "Cat", "Stack", "Select", "Slice", "Clone")
_LOSSES: dict[str, Any] = {
    "MseLoss": nn.MSELoss, "SmoothL1Loss": nn.SmoothL1Loss, "HuberLoss": nn.HuberLoss,
    "BinaryCrossEntropy": nn.BCELoss, "BinaryCrossEntropyWithLogits": nn.BCEWithLogitsLoss,
}  # fmt: skip
_SLACK = 2e-3
_MOST_NODES = 500
_LOGARITHMS = {"log_softmax", "log", "log_sigmoid", "Logsumexp"}
_RANGES = {"relu": (0.0, None), "sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "softmax": (0.0, 1.0)}


@dataclass(frozen=True)
class Pairing:
    """A fault of outputs and loss together."""

    cause: str
    confidence: float
    evidence: Evidence
    explanation: str
    title: str
    patch: str
    severity: Severity = "serious"
    operation: str = ""  # at the end of the model, which is the line to change


def read_pairing(loss: Tensor, outputs: Tensor, targets: Tensor | None) -> Iterator[Pairing]:
    """The faults that the graph shows.

    Args:
        loss: with its graph, before or after ``backward()``.
        outputs: what the model gave for it, with its graph.
        targets: what they were compared with, where that is known.
    """
    way = [] if outputs.grad_fn is None or loss.grad_fn is None else on_the_way(loss, outputs)
    if not way or any(operation(node) in LINEAR and has_weight(node) for node in way):
        return  # the loss is of other outputs, or another network's
    head, in_loss = until_linear(outputs), operations_between(loss, outputs)
    last = _last(outputs)
    values = outputs.detach()
    shape = broadcast(loss, outputs)
    if shape is not None:
        yield _broadcast(outputs, targets, shape)
    if any(name.startswith("NllLoss") for name in in_loss):
        if any(across_rows(node, outputs) for node in (outputs.grad_fn, *way)):
            yield _ACROSS
            return
        if not any(operation(node) in _TURNING for node in way) and _across_places(outputs):
            yield _ACROSS_PLACES
            return
    if any(over_one(node) for node in (*way, *joined(outputs))) or (
        values.numel() and last in ("softmax", "log_softmax") and bool((values == (last == "softmax")).all())
    ):
        yield _SINGLE
        return
    if (last == "softmax" and "log_softmax" in in_loss) or any(_of_a_softmax(node) for node in way):
        yield _DOUBLE
    elif last == "sigmoid" and "BinaryCrossEntropyWithLogits" in in_loss:
        yield _TWICE
    elif last == "relu" and ("log_softmax" in in_loss or "BinaryCrossEntropyWithLogits" in in_loss):
        yield _CUT
    elif "NllLoss" in in_loss and not {*in_loss, *head[:3]} & _LOGARITHMS:
        yield _NO_LOG
    elif targets is not None and _differences(in_loss) and last in _RANGES and targets.is_floating_point():
        yield from _out_of_reach(last, targets)


def _last(outputs: Tensor) -> str:
    """The bend that outputs end in; "" where they are joined of several, as those of experts under a gate are."""
    node: Any = outputs.grad_fn
    while node is not None and operation(node) not in BENDS:
        before = inputs_of(node)
        if len(before) != 1 or operation(node) not in SHAPING:
            return ""
        node = before[0]
    return "" if node is None else BENDS[operation(node)]


def operations_between(loss: Tensor, outputs: Tensor) -> tuple[str, ...]:
    """Names of the operations between outputs and loss."""
    way = [] if outputs.grad_fn is None or loss.grad_fn is None else on_the_way(loss, outputs)
    return tuple(BENDS.get(operation(node), operation(node)) for node in way)


def loss_on(loss: Tensor, outputs: Tensor) -> tuple[nn.Module, bool] | None:
    """The loss that compares outputs number by number, as the graph names it.

    Returns:
        The loss as a module, and whether it is all there is; else the loop adds terms that do not depend on these
        outputs. None where it is another loss, weighs its rows, or is multiplied by something.
    """
    way = [] if outputs.grad_fn is None or loss.grad_fn is None else on_the_way(loss, outputs)
    while way and (operation(way[-1]) in _RESHAPING or _picks_all(way[-1], outputs)):
        way.pop()
    total = len(way)
    while way and operation(way[0]) in ("Add", "Sub") and shape_of(way[0]) == ():
        if operation(way[0]) == "Sub" and (len(way) < 2 or way[0].next_functions[0][0] is not way[1]):
            return None
        way.pop(0)
    found = _plain_loss(way)
    of_all = found is not None and math.prod(shape_of(way[-1]) or (1,)) in (1, outputs.numel())
    return (found, len(way) == total) if found is not None and of_all else None


def divergence_of_probabilities(
    loss: Tensor, outputs: Tensor, gradient: Tensor, in_sight: Callable[[], Iterable[Tensor]]
) -> bool:
    """Whether the loss is PyTorch's divergence of targets at hand from probabilities, which asks for logarithms.

    That is proven by value and gradient: the entropy of the targets, a part of it, is in no other loss without a
    logarithm of the outputs.
    """
    way = operations_between(loss, outputs)
    if not {"Sub", "Mul"} <= set(way) or set(way) - {"Sub", "Mul", "Div", "Sum", "Mean", "softmax", *_RESHAPING}:
        return False
    given = outputs.detach().double().cpu().requires_grad_()
    wanted, slope = float(loss.detach()), gradient.detach().double().cpu()
    if given.ndim < 2 or given.shape[-1] < 2 or loss.numel() != 1 or not math.isfinite(wanted):
        return False
    with torch.enable_grad():
        answers = given.softmax(-1) if "softmax" in way else given
        if bool((answers < 0).any()) or bool(((answers.sum(-1) - 1).abs() > _SLACK).any()):
            return False
        for targets in (t.detach().double().cpu() for t in in_sight() if t.shape == outputs.shape):
            each = torch.special.xlogy(targets, targets) - targets * answers
            for value in (each.sum() / len(given), each.mean(), each.sum()) if bool((targets >= 0).all()) else ():
                (found,) = torch.autograd.grad(value, given, retain_graph=True)
                alike = float((found - slope).norm()) <= _SLACK * float(slope.norm())
                if alike and abs(float(value.detach()) - wanted) <= _SLACK * abs(wanted):
                    return True
    return False


def _picks_all(node: Any, outputs: Tensor) -> bool:
    """Whether it picks the one column there is."""
    return operation(node) in ("Select", "Slice") and math.prod(shape_of(node)) == outputs.numel()


def _plain_loss(way: Sequence[Any]) -> nn.Module | None:
    """The loss that these operations are, the last first."""
    names = [operation(node) for node in way]
    if names in (["Mean", "Abs", "Sub"], ["Sum", "Abs", "Sub"]):
        return nn.L1Loss(reduction=names[0].lower())
    if len(names) != 1 or names[0] not in _LOSSES or way[0]._saved_reduction not in (1, 2):
        return None
    saved = {option: getattr(way[0], f"_saved_{option}", None) for option in ("beta", "delta")}
    try:
        weighs = any(getattr(way[0], f"_saved_{name}", None) is not None for name in ("weight", "pos_weight"))
    except RuntimeError:  # it does, and backward() has let the weights go
        weighs = True
    if weighs:
        return None
    options = {option: value for option, value in saved.items() if value is not None}
    made: nn.Module = _LOSSES[names[0]](reduction=("mean", "sum")[way[0]._saved_reduction - 1], **options)
    return made


def linear_layers(outputs: Tensor) -> int:
    """Layers with weights behind outputs that are a straight function of the inputs; 0 where anything bends."""
    if outputs.grad_fn is None:
        return 0
    queue, seen, layers = [outputs.grad_fn], {outputs.grad_fn}, 0
    while queue:
        node = queue.pop()
        before = inputs_of(node)
        product = operation(node) in LINEAR and has_weight(node)
        bends = not product and (
            operation(node) not in SHAPING or (operation(node) in ("Mul", "Div") and len(before) > 1)
        )
        if bends or (product and len(before) > 1) or len(seen) > _MOST_NODES:
            return 0
        layers += product
        queue += [found for found in before if found not in seen]
        seen.update(before)
    return layers


def _differences(in_loss: Sequence[str]) -> bool:
    """Whether what outputs differ by from something is punished, by its square or its size."""
    known = {"MseLoss", "L1Loss", "SmoothL1Loss", "HuberLoss"} & set(in_loss)
    return bool(known) or ("Sub" in in_loss and bool({"pow", "abs"} & set(in_loss)))


def over_one(node: Any) -> bool:
    """Whether it is a softmax of single numbers."""
    shape = shape_of(node) if operation(node) in ("Softmax", "LogSoftmax") else ()
    return bool(shape) and shape[dimension_of(node)] == 1


def joined(outputs: Tensor) -> Iterator[Any]:
    """The operations that made the parts which outputs are put together from, each the last that calculates."""
    queue, seen = [outputs.grad_fn], 0
    while queue and seen < _MOST_NODES:
        node, seen = queue.pop(), seen + 1
        if node is not None and operation(node) in _JOINING:
            queue += inputs_of(node)
        elif node is not None:
            yield node


def _of_a_softmax(node: Any) -> bool:
    """Whether it is the softmax of a cross-entropy that is given probabilities, which another one made."""
    before = inputs_of(node) if operation(node) == "LogSoftmax" else []
    while len(before) == 1 and operation(before[0]) in _RESHAPING:
        before = inputs_of(before[0])
    return len(before) == 1 and operation(before[0]) == "Softmax"


def dimension_of(node: Any) -> int:
    return (int(node._saved_dim) + 2**63) % 2**64 - 2**63  # negative ones are kept without their sign


def on_the_way(loss: Tensor, outputs: Tensor) -> list[Any]:
    """The operations that lie between outputs and loss, those next to the loss first; none where it is not theirs."""
    found = list(nodes_between(loss.grad_fn, outputs.grad_fn))
    leads, size = {outputs.grad_fn}, 0
    while size < len(leads):
        size = len(leads)
        leads.update(node for node in found if any(before in leads for before, _ in node.next_functions))
    return [node for node in found if node in leads]


def across_rows(node: Any, outputs: Tensor) -> bool:
    """Whether it is a softmax of scores of classes that is taken over the rows of the batch."""
    if operation(node) not in ("Softmax", "LogSoftmax") or outputs.ndim != 2 or outputs.shape[1] < 2:
        return False
    return shape_of(node) == tuple(outputs.shape) and dimension_of(node) in (0, -2)


def _across_places(outputs: Tensor) -> bool:
    """Whether outputs (b, classes, ...) are a softmax that is taken over places, and not over classes."""
    node = outputs.grad_fn
    if outputs.ndim < 3 or outputs.shape[1] < 2 or operation(node) not in ("Softmax", "LogSoftmax"):
        return False
    return dimension_of(node) % outputs.ndim != 1


def broadcast(loss: Tensor, outputs: Tensor) -> tuple[int, ...] | None:
    """The shape (n, n) that n outputs were blown up to by meeting n targets of another shape; None if they were not.

    So are (n, k, 1) outputs by (n, 1, k) targets, to (n, k, k). The outputs are all that the model gives for n rows, or
    one number a row picked out of it.

    It is found where an operation with a single input of the graph gives (n, n) from n numbers: what two inputs of the
    graph give is somebody's comparison of pairs.
    """
    size = len(outputs) if outputs.ndim else 0
    if size < 2:
        return None
    for node in nodes_between(loss.grad_fn, outputs.grad_fn):
        before = inputs_of(node)
        if operation(node) not in _ELEMENTWISE or len(before) != 1:
            continue
        given, made = shape_of(before[0]), shape_of(node)
        if made == (size, size) and given in ((size, 1), (size,)) and _is_output(before[0], outputs.grad_fn):
            return made
        if _across_an_axis(given, made) and given[0] == size and math.prod(given) == outputs.numel():
            return made
    return None


def _across_an_axis(given: tuple[int, ...], made: tuple[int, ...]) -> bool:
    """Whether (n, k, 1) or (n, 1, k) became (n, k, k)."""
    places = max(given[1:], default=0) if len(given) == 3 and min(given[1:]) == 1 else 0
    return places > 1 and made == (given[0], places, places)


def shape_of(node: Any) -> tuple[int, ...]:
    """Shape of what an operation gave; it can be asked also after ``backward()``."""
    metadata = getattr(node, "_input_metadata", None)
    return tuple(metadata[0].shape) if metadata else ()


def _is_output(node: Any, end: Any) -> bool:
    for _ in range(8):
        if node is end:
            return True
        if operation(node) not in (*SHAPING, "Gather") or operation(node) in (
            "Sub",
            "Add",
            "Mul",
            "Div",
            "Sum",
            "Mean",
        ):
            return False
        before = inputs_of(node)
        if len(before) != 1:
            return False
        node = before[0]
    return False


def _broadcast(outputs: Tensor, targets: Tensor | None, shape: tuple[int, ...]) -> Pairing:
    given = "" if targets is None else f" and targets {tuple(targets.shape)}"
    return Pairing(
        "shape_broadcast",
        0.98,
        Evidence("shape in which the loss compares", str(shape), str(tuple(outputs.shape))),
        f"Outputs {tuple(outputs.shape)}{given} are compared each with each, {shape[-2]} x {shape[-1]}, instead of one "
        "by one: the best the model can do is the mean of all targets.",
        "give targets the shape of the outputs",
        "y = y.reshape(outputs.shape)",
        "fatal",
    )


def _out_of_reach(last: str, targets: Tensor) -> Iterator[Pairing]:
    low, high = _RANGES[last]
    least, most = float(targets.min()), float(targets.max())
    below, above = least < low, high is not None and most > high
    if not (below or above):
        return
    share = float(((targets < low) | (targets > (high if high is not None else torch.inf))).float().mean())
    yield Pairing(
        "output_activation",
        0.95,
        Evidence("share of the targets that the outputs cannot reach", share, 0.0),
        f"The model ends in a {last}, whose values go from {low:g} to {'infinity' if high is None else f'{high:g}'}, "
        f"and the targets go from {least:.3g} to {most:.3g}.",
        f"take the {last} at the end away",
        "end the model in a linear layer",
        "serious" if share < 0.5 else "fatal",
        last,
    )


_SINGLE = Pairing(
    "softmax_single_unit",
    0.98,
    Evidence("outputs that differ from the constant", 0, "most"),
    "A softmax over a single unit is the constant 1 whatever goes in: its gradient is zero and nothing is learned.",
    "replace the softmax by a sigmoid",
    "nn.Sigmoid() with nn.BCELoss(), or no activation with nn.BCEWithLogitsLoss()",
    "fatal",
    "softmax",
)
_ACROSS = Pairing(
    "output_activation",
    0.97,
    Evidence("dimension of the softmax", 0, 1),
    "The softmax is taken over the rows of the batch, not over the classes: what an example gets depends on the others "
    "beside it, and its scores are not compared with one another.",
    "take the softmax over the classes",
    "dim=1, or nn.CrossEntropyLoss() on the scores themselves",
    operation="softmax",
)
_ACROSS_PLACES = Pairing(
    "output_activation",
    0.97,
    Evidence("what the softmax is taken over", "places", "classes, dimension 1"),
    "The softmax is taken over places, such as the pixels of a line, and not over the classes: the scores of a place "
    "are not compared with one another, and the places compete.",
    "take the softmax over the classes",
    "dim=1, or nn.CrossEntropyLoss() on the scores themselves",
    operation="softmax",
)
_DOUBLE = Pairing(
    "double_softmax",
    0.97,
    Evidence("last operation of the model", "softmax", "logits, because the loss applies its own softmax"),
    "The model ends in a softmax and the loss applies another one: no output can become confident, and the gradient is "
    "many times too small.",
    "remove the softmax at the end of the model",
    "nn.CrossEntropyLoss takes logits: end the model in nn.Linear",
    operation="softmax",
)
_TWICE = Pairing(
    "output_activation",
    0.97,
    Evidence("last operation of the model", "sigmoid", "logits, because the loss applies its own sigmoid"),
    "The model ends in a sigmoid and the loss applies another one: the second sees numbers between 0 and 1 only, so no "
    "probability can fall below one half.",
    "remove the sigmoid, or use nn.BCELoss",
    "loss_fn = nn.BCELoss()",
    operation="sigmoid",
)
_CUT = Pairing(
    "output_activation",
    0.85,
    Evidence("last operation of the model", "relu", "logits of either sign"),
    "The model ends in a ReLU and the loss takes logits: none can be negative, and where one is cut off there is no "
    "gradient that would bring it back.",
    "remove the activation at the end of the model",
    "end the model in nn.Linear",
    operation="relu",
)
_NO_LOG = Pairing(
    "loss_mismatch",
    0.9,
    Evidence("last operation of the model", "no log_softmax", "log_softmax, which nn.NLLLoss takes for granted"),
    "nn.NLLLoss takes log-probabilities. Without a log-softmax before it the loss is no likelihood: it has no bound.",
    "use nn.CrossEntropyLoss on logits",
    "loss_fn = nn.CrossEntropyLoss()",
)
