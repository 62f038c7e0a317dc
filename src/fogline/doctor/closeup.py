"""Closer looks that several causes share: more rows than a batch, the size of first weights, what bends where."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fogline.data.source import Batch, leaves, taken
from fogline.descent.copies import copied
from fogline.doctor.anatomy import (
    BENDS,
    LINEAR,
    Anatomy,
    Layer,
    dissect,
    factors,
    has_weight,
    inputs_of,
    operation,
    own_product,
    rms,
)
from fogline.doctor.examination import Examination
from fogline.doctor.scaling import NORMS
from fogline.doctor.surgery import with_dropout

_ROWS, _NUMBERS = 512, 2_000_000
DEFAULT_GAIN, HE_GAIN = 1 / math.sqrt(3), math.sqrt(2)
"""What a layer of PyTorch's own first weights, and one of He's, multiplies the root mean square of its input by."""
_STEPS, _STEP = 2, 0.01
_MOST_SPECTRAL = 4_000_000
_MOST_NODES = 20_000


def wide(exam: Examination) -> Anatomy:
    """The program with first weights on as many rows as tell something of single units, not just a batch."""
    return _cached(exam, "wide", lambda: exam.program.new_model(exam.case.recipe.seed))


def undropped(exam: Examination) -> Anatomy:
    """The same where no dropout tells units from one another."""
    return _cached(exam, "undropped", lambda: with_dropout(exam.program.new_model(exam.case.recipe.seed), 0.0))


def stepped(exam: Examination, first: Anatomy) -> Anatomy:
    """The program with first weights after a few steps against its gradient, each as long as the others."""

    def model() -> nn.Module:
        anatomy, moved = first, copied(first.model)
        for _ in range(_STEPS):
            with torch.no_grad():
                for name, parameter in moved.named_parameters():
                    slope = anatomy.gradients.get(name)
                    if slope is not None:
                        slope = slope.to_dense()
                        parameter.sub_(_STEP * (slope / slope.abs().max().clamp_min(1e-30)))
            anatomy = dissect(copied(moved), exam.program.loss, some_rows(exam))
        return moved

    return _cached(exam, "stepped", model)


def wide_trained(exam: Examination) -> Anatomy | None:
    """The same with the weights that the observed descent ended with."""
    begun = None if exam.observed is None else exam.observed.start
    return None if begun is None else _cached(exam, "wide_trained", lambda: copied(begun.objective.model).cpu())


def _cached(exam: Examination, key: str, model: Callable[[], nn.Module]) -> Anatomy:
    if key not in exam.notes:
        exam.notes[key] = dissect(model(), exam.program.loss, some_rows(exam))
    found = exam.notes[key]
    assert isinstance(found, Anatomy)
    return found


def some_rows(exam: Examination, most: int = _ROWS) -> Batch:
    """Training rows drawn at random, fewer where a row is large."""
    train, size = exam.program.train, exam.program.rows
    numbers = sum(leaf[:1].numel() for leaf in leaves(train))
    least = min(exam.case.batch_size, most)
    count = min(size, max(least, min(most, _NUMBERS // max(1, numbers))))
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))[:count]
    return taken(train, order)


def hidden(anatomy: Anatomy) -> list[Layer]:
    """Linear and convolution layers but the last one."""
    return anatomy.weighted[:-1]


def matrix(weight: Tensor) -> Tensor:
    """A weight as (outputs, everything else), float64."""
    return weight.detach().double().flatten(1)


def gain(weight: Tensor) -> float:
    """By how much a layer multiplies the root mean square of its input, judged by its largest singular value s.

    Independent weights of deviation d have s = d (sqrt(m) + sqrt(n)) for m outputs and n inputs and multiply by
    d sqrt(n) = s / (1 + sqrt(m / n)). Weights with a mean other than zero, or otherwise aligned, have a larger s.
    """
    values = matrix(weight)
    rows, columns = values.shape
    if values.numel() > _MOST_SPECTRAL:
        return float(values.square().mean().sqrt()) * math.sqrt(columns)
    return float(torch.linalg.matrix_norm(values, 2)) / (1 + math.sqrt(rows / columns))


@dataclass(frozen=True)
class Spread:
    """How far the weights of a layer are from what keeps a signal in size.

    Attributes:
        name, gain: of the layer.
        excess: natural logarithm of the factor by which it is above He's gain (positive) or below PyTorch's own
            (negative); 0 in between.
    """

    name: str
    gain: float
    excess: float


def spreads(anatomy: Anatomy) -> list[Spread]:
    """Of every layer whose size of weights matters: not of those that a normalisation follows."""
    found = []
    layers = anatomy.layers
    last = anatomy.weighted[-1].module if anatomy.weighted else None
    for k, layer in enumerate(layers):
        follower = layers[k + 1].module if k + 1 < len(layers) else None
        if isinstance(follower, NORMS):
            continue
        for weight, may_be_small in _weights_of(layer.module, layer.module is last):
            factor = gain(weight)
            found.append(Spread(layer.name, factor, _excess(factor, may_be_small)))
    for name, module in anatomy.named_modules():  # whose layers are not called
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            gains = [gain(weight) for weight in (module.in_proj_weight, module.out_proj.weight)]
            found += [Spread(name, factor, _excess(factor, may_be_small=True)) for factor in gains]
    return found


def loose_matrices(anatomy: Anatomy) -> dict[str, nn.Parameter]:
    """Parameters of two dimensions that belong to no layer of PyTorch's, by name."""
    owned = {id(p) for m in anatomy.model.modules() if _is_layer(m) for p in m.parameters(recurse=False)}
    return {name: p for name, p in anatomy.named_parameters() if p.ndim == 2 and id(p) not in owned}


def _is_layer(module: nn.Module) -> bool:
    lists = isinstance(module, (nn.ParameterList, nn.ParameterDict))
    return type(module).__module__.startswith("torch.") and not lists


def summed_over(anatomy: Anatomy) -> dict[str, int]:
    """Of those that something is multiplied with, by name: the dimension that is summed over then."""
    found = factors(anatomy.outputs)
    return {name: found[id(p)][0] for name, p in loose_matrices(anatomy).items() if id(p) in found}


def loose_spreads(anatomy: Anatomy) -> list[Spread]:
    """Of the matrices that an author's own layers multiply with, by the names of the parameters.

    One that is used again and again multiplies the signal each time, as that of a recurrence does.
    """
    used, found = factors(anatomy.outputs), []
    for name, matrix in loose_matrices(anatomy).items():
        over, times = used.get(id(matrix), (0, 0))
        if times and matrix.shape[over] > 1:
            factor = rms(matrix) * math.sqrt(matrix.shape[over])
            found.append(Spread(name, factor, times * _excess(factor, may_be_small=True)))
    return found


def _weights_of(module: nn.Module, is_last: bool) -> Iterator[tuple[Tensor, bool]]:
    """Weights to judge and whether small ones are no matter: of the head, and of a handful of numbers."""
    if isinstance(module, nn.Linear) or (isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd)):
        yield module.weight, is_last or module.weight.numel() < 16
    elif isinstance(module, nn.Embedding):
        yield module.weight, True
    elif isinstance(module, nn.RNNBase):
        gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
        for name, parameter in module.named_parameters():
            if name.startswith("weight_ih"):
                yield from ((block, True) for block in parameter.chunk(gates))
            elif name.startswith("weight_hh"):
                yield from ((block, False) for block in parameter.chunk(gates))


def _excess(factor: float, may_be_small: bool) -> float:
    if factor > HE_GAIN:
        return math.log(factor / HE_GAIN) if math.isfinite(factor) else 100.0
    if factor < DEFAULT_GAIN and not may_be_small:
        return math.log(max(factor, 1e-40) / DEFAULT_GAIN)
    return 0.0


def bend_before(layer: Layer) -> str:
    """The operation that bends last on the way to a layer with weights, by the field's name; "" where there is none."""
    if layer.node is None:
        return ""
    product = own_product(layer.node)
    before = [] if product is None else inputs_of(product)
    node = before[0] if before else None
    for _ in range(30):
        if node is None or (operation(node) in LINEAR and has_weight(node)):
            return ""
        if operation(node) in BENDS:
            return BENDS[operation(node)]
        following = inputs_of(node)
        node = following[0] if following else None
    return ""


def times_used(anatomy: Anatomy, layer: Layer) -> int:
    """How many operations read the output of a layer, as far as the model's output shows it."""
    start = anatomy.outputs.grad_fn if isinstance(anatomy.outputs, Tensor) else None
    queue, seen, count = [start] if start is not None else [], {start}, 0
    while queue and len(seen) < _MOST_NODES:
        for before, _ in queue.pop().next_functions:
            count += before is not None and before is layer.node
            if before is not None and before not in seen:
                seen.add(before)
                queue.append(before)
    return count


def by_unit(value: Tensor) -> Tensor:
    """(cases, units): rows, and positions of images and sequences, become cases; a convolution's channels are units."""
    if value.ndim <= 2:
        return value.reshape(len(value), -1)
    return value.reshape(-1, value.shape[-1])


def units_of(layer: Layer, value: Tensor) -> Tensor:
    """:func:`by_unit` of something with the shape of a layer's output."""
    if isinstance(layer.module, _ConvNd) and value.ndim > 2:
        return value.transpose(1, -1).reshape(-1, value.shape[1])
    return by_unit(value)


def path_of(name: str) -> str:
    """How a module is reached in code: "net.0.fc" is model.net[0].fc."""
    return "model" + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in name.split(".") if part)


def listed(names: Sequence[str], most: int = 4) -> str:
    """The first few names."""
    unique = list(dict.fromkeys(names))
    return ", ".join(unique[:most]) + (", ..." if len(unique) > most else "")
