"""What is said of a row depends on the rows beside it: an axis is taken for another."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fogline.data.source import rows_of, taken
from fogline.descent.copies import copied
from fogline.doctor.examination import Examination
from fogline.doctor.finding import BODY, Evidence, Remedy, Suspicion
from fogline.doctor.surgery import Wrapped, core
from fogline.doctor.uncut import DropsLess, Within, answers, softmax_dim

MANY = 5
"""Rows that are looked at."""


def mixes_rows(model: nn.Module, inputs: Any) -> bool:
    """Whether what is said of the first row, or of the last, changes with the rows beside it, in evaluation mode.

    Args:
        model: in evaluation mode.
        inputs: :data:`MANY` rows.
    """
    alone = answers(model, inputs, DropsLess())
    for kept, rows in ((0, [0, 2, 3, 1, 3]), (MANY - 1, [1, 2, 0, 1, MANY - 1])):
        beside = answers(model, taken(inputs, torch.tensor(rows)), DropsLess())
        for first, second in zip(alone or (), beside or (), strict=False):
            of_rows = isinstance(first, Tensor) and first.ndim > 0 and len(first) == MANY == len(second)
            if of_rows and not torch.allclose(first[kept], second[kept], 1e-3, 1e-6):
                return True
    return False


def rows_mixed(exam: Examination) -> Suspicion | None:
    """Sequences with the rows first in layers that take them second, or a softmax over the rows.

    PyTorch's recurrent layers and its attention take (time, rows, features) unless they are told ``batch_first=True``;
    with (rows, time, features) they go from row to row. Nothing fails: the shapes are right.
    """
    inputs = exam.anatomy.batch[0] if exam.case.supervised else None
    if inputs is None or exam.anatomy.stage == "forward" or rows_of(inputs) < MANY:
        return None
    model, some = copied(exam.anatomy.model).eval(), taken(inputs, torch.arange(MANY))
    if not _may_mix(model, some):
        return None
    if not mixes_rows(model, some):
        return _places_of_rows(model, some)
    names = _given_rows_first(model, some)
    if names and _keeps_apart(_rows_first, model, some):
        return _of_layers(model, names)
    return _of_softmax() if _keeps_apart(_softmax_within, model, some) else None


def _may_mix(model: nn.Module, inputs: Any) -> bool:
    """Whether there is anything in a model that takes rows second, shares out over rows, or may hold positions."""
    inside = core(model)
    if any(getattr(m, "batch_first", None) is False for m in inside.modules()) or _tables(inside):
        return True
    seen = SoftmaxWithinRows()
    return answers(model, inputs, seen) is not None and seen.calls > 0


def _tables(model: nn.Module) -> list[Tensor]:
    """What may be tables of positions, (positions, 1, features)."""
    return [t for t in (*model.buffers(), *model.parameters()) if t.ndim == 3 and t.shape[1] == 1]


def _keeps_apart(edit: Callable[[nn.Module], nn.Module], model: nn.Module, inputs: Any) -> bool:
    mended = edit(copied(model)).eval()
    return _shapes(mended, inputs) == _shapes(model, inputs) and not mixes_rows(mended, inputs)


def _shapes(model: nn.Module, inputs: Any) -> list[torch.Size] | None:
    found = answers(model, inputs, DropsLess())
    return None if found is None else [leaf.shape for leaf in found if isinstance(leaf, Tensor)]


def _given_rows_first(model: nn.Module, inputs: Any) -> list[str]:
    """Layers that take the time first and are given as many places first as there are rows, and others second."""
    seconds = {name: m for name, m in core(model).named_modules() if getattr(m, "batch_first", None) is False}
    found: dict[str, None] = {}

    def look(name: str, given: tuple[Any, ...]) -> None:
        first = given[0] if given else None
        if isinstance(first, Tensor) and first.ndim == 3 and first.shape[0] == MANY and first.shape[1] > 1:
            found[name] = None

    handles = [m.register_forward_pre_hook(lambda _, g, name=name: look(name, g)) for name, m in seconds.items()]
    answers(model, inputs, DropsLess())
    for handle in handles:
        handle.remove()
    return list(found)


def _rows_first(module: nn.Module) -> nn.Module:
    for inside in module.modules():
        if getattr(inside, "batch_first", None) is False:
            inside.batch_first = True  # type: ignore[assignment]
    return module


def _softmax_within(module: nn.Module) -> nn.Module:
    return Within(module, SoftmaxWithinRows)


class SoftmaxWithinRows(TorchFunctionMode):
    """Takes a softmax over the last axis with several numbers where it is over the first, wherever it stands.

    Attributes:
        calls: how often that was so.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        dim = softmax_dim(func, args, kwargs)
        if dim is None or dim % args[0].ndim or args[0].ndim < 2:
            return func(*args, **kwargs)
        self.calls += 1
        several = [k for k, size in enumerate(args[0].shape) if k and size > 1]
        return args[0].softmax(several[-1]) if several else func(*args, **kwargs)


def _of_layers(model: nn.Module, names: list[str]) -> Suspicion:
    whole = [name.removesuffix(".self_attn").removesuffix(".multihead_attn") for name in names]
    kinds = dict.fromkeys(type(core(model).get_submodule(name)).__name__ for name in whole)
    remedy = Remedy(
        "let " + ", ".join(dict.fromkeys(name or "the model" for name in whole)) + " take the rows first",
        "; ".join(f"nn.{kind}(..., batch_first=True)" for kind in kinds),
        on_model=_rows_first,
        place="axes",
        order=BODY,
    )
    return _mixed(
        "Layers that take sequences with the time first are given the rows first, and go from row to row.",
        remedy,
        proof=True,
    )


def _of_softmax() -> Suspicion:
    remedy = Remedy(
        "take the softmax inside the model over its last axis",
        "scores.softmax(-1)  # not softmax(0), which is over the rows",
        on_model=_softmax_within,
        place="axes",
        order=BODY,
    )
    return _mixed("A softmax inside it is taken over the rows of the batch.", remedy)


def _mixed(how: str, remedy: Remedy, *, proof: bool = False) -> Suspicion:
    return Suspicion(
        "shape_broadcast",
        0.9,
        (Evidence("the answer to a row, when there are other rows beside it", "changes", "does not change"),),
        "Shapes are right, and an axis is taken for another: what the model says of a row depends on the rows beside "
        f"it, in evaluation mode, too. {how}",
        (remedy,),
        proof=proof,
        severity="fatal",
        otherwise=("shuffled_labels", "What a row is told is made of the inputs of others."),
    )


def _places_of_rows(model: nn.Module, inputs: Any) -> Suspicion | None:
    """A table of positions that is cut to the number of rows, and added to them in the place of their steps."""
    if not _tells_places(model, inputs) or not isinstance(inputs, Tensor) or inputs.ndim < 2:
        return None
    edit = partial(ByStep, steps=inputs.shape[1])
    mended = edit(copied(model)).eval()
    if _shapes(mended, inputs) != _shapes(model, inputs) or _tells_places(mended, inputs):
        return None
    return Suspicion(
        "shape_broadcast",
        0.9,
        (Evidence("the answer to a row, in another place of the batch", "changes", "does not change"),),
        "What the model says of a row depends on its place in the batch: a table of positions is cut to the number of "
        "rows and added along them, so that a row gets the position it has in the batch, and its steps get none.",
        (
            Remedy(
                "add positions along the steps, not along the rows",
                "x + self.pe[: x.size(1)].transpose(0, 1)  # of x (rows, steps, features), not self.pe[: x.size(0)]",
                on_model=edit,
                place="positions",
                order=BODY,
            ),
        ),
        proof=True,
        severity="fatal",
    )


def _tells_places(model: nn.Module, inputs: Any) -> bool:
    """Whether rows that change places get other answers than their own, in evaluation mode."""
    turned = torch.arange(MANY).flip(0)
    once, again = (answers(model, given, DropsLess()) for given in (inputs, taken(inputs, turned)))
    return any(
        isinstance(a, Tensor)
        and a.ndim > 0
        and len(a) == MANY == len(b)
        and not torch.allclose(a[turned], b, 1e-3, 1e-6)
        for a, b in zip(once or (), again or (), strict=False)
    )


class ByStep(Wrapped):
    """A model whose tables of positions are added along the steps.

    Args:
        model: is run.
        steps: of a row.
    """

    def __init__(self, model: nn.Module, steps: int) -> None:
        super().__init__(model)
        self._steps = steps

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        inside = self.wrapped_model
        with PositionsOfSteps(self._steps, frozenset(map(id, _tables(inside)))):
            return inside(*args, **kwargs)


class PositionsOfSteps(TorchFunctionMode):
    """Takes a table's entries (1, steps, features) where entries (rows, 1, features) are cut out of it.

    Args:
        steps: of a row.
        tables: identities of the tensors that may be such tables, (positions, 1, features).
    """

    def __init__(self, steps: int, tables: frozenset[int]) -> None:
        super().__init__()
        self._steps, self._tables = steps, tables

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__ and id(args[0]) in self._tables:
            first = args[1][0] if isinstance(args[1], tuple) and args[1] else args[1]
            if isinstance(first, slice) and first.start in (None, 0) and first.step in (None, 1):
                return args[0][: self._steps].transpose(0, 1)
        return func(*args, **(kwargs or {}))
