"""What a function of (model, batch) asks its model, and what it compares the answer with."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from inspect import signature
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fogline.data import losses
from fogline.data.source import leaves, map_tree, part, rows_of
from fogline.descent.objective import Objective
from fogline.doctor.surgery import Wrapped

_AT_ONCE = 2048
"""Rows that a function is given at a time, where what it asks has to be made of them."""
PLAIN = (bool, int, float, str, torch.dtype, torch.device)
"""What may be told of a model, and to it, besides tensors."""
SEVERAL = (tuple, list)
"""What holds several things; batches of a data set are lists."""
_MODULES = {
    F.cross_entropy: nn.CrossEntropyLoss,
    F.nll_loss: nn.NLLLoss,
    F.multi_margin_loss: nn.MultiMarginLoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    F.binary_cross_entropy: nn.BCELoss,
    F.mse_loss: nn.MSELoss,
    F.l1_loss: nn.L1Loss,
    F.smooth_l1_loss: nn.SmoothL1Loss,
    F.huber_loss: nn.HuberLoss,
}


class Stop(BaseException):
    """Ends a function of the user's where all that is wanted is known."""


class Answer:
    """Stands for a model whose outputs are known: it can be called, and says what plain numbers it has.

    Args:
        outputs: what it answers; None ends the function that asks.
        like: the model.
    """

    def __init__(self, outputs: Any, like: nn.Module | None = None) -> None:
        self._outputs, self._plain = outputs, plain(like)
        self.call: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def __call__(self, *given: Any, **named: Any) -> Any:
        self.call = given, named
        if self._outputs is None:
            raise Stop
        return self._outputs

    def parameters(self) -> Iterator[Tensor]:
        """One, which tells where the model is."""
        found = leaves(self._outputs)
        yield torch.zeros((), device=found[0].device if found else "cpu")

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_plain"][name]
        except KeyError:
            raise AttributeError(f"an answer has no {name!r}") from None


def plain(model: nn.Module | None) -> dict[str, Any]:
    """The plain attributes of a model, without the mode that it is in."""
    found = {} if model is None else vars(model)
    return {k: v for k, v in found.items() if isinstance(v, PLAIN) and not k.startswith("_") and k != "training"}


class Noting(nn.Module):
    """A model that notes what it is called with, and what it answers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.noted = model
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.outputs: Any = None

    def forward(self, *given: Any, **named: Any) -> Any:
        self.calls.append((given, named))
        self.outputs = self.noted(*given, **named)
        return self.outputs

    def __getattr__(self, name: str) -> Any:
        with suppress(AttributeError):
            return super().__getattr__(name)
        return plain(self.noted)[name] if name in plain(self.noted) else super().__getattr__(name)


class Spread(Wrapped):
    """A model that is called with several things, called with a tuple of the tensors among them, or a list.

    Args:
        call: places of the tensors and everything else that it is called with.
    """

    def __init__(self, model: nn.Module, call: Call) -> None:
        super().__init__(model)
        self.call = call

    def forward(self, *given: Any, **named: Any) -> Any:
        if len(given) == 1 and not named and type(given[0]) in SEVERAL:
            given, named = self.call.filled(tuple(given[0]))
        return self.wrapped_model(*given, **named)


class Call:
    """How a model is called.

    Args:
        given, named: what it was called with, once.
    """

    def __init__(self, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.width, self.names = len(given), tuple(named)
        self.others = tuple(None if isinstance(item, Tensor) else item for item in (*given, *named.values()))
        self.tensors = tuple(isinstance(item, Tensor) for item in (*given, *named.values()))

    @property
    def single(self) -> bool:
        """Whether it is called as the loop of ``fit`` calls a model."""
        return self.width == 1 and not self.names

    def inputs(self, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """What it is called with, as inputs: the only one of all, or the tensors of it as a tuple."""
        if self.single:
            return given[0]
        return tuple(item for item in (*given, *named.values()) if isinstance(item, Tensor))

    def filled(self, inputs: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call that these are the inputs of."""
        rest = iter(inputs)
        found = [next(rest) if told else other for told, other in zip(self.tensors, self.others, strict=True)]
        return tuple(found[: self.width]), dict(zip(self.names, found[self.width :], strict=True))


class Comparison(NamedTuple):
    """A call of one of PyTorch's losses: what was said and told, what else it was given, and what it gave."""

    function: Any
    said: Any
    told: Any
    rest: dict[str, Any]
    loss: Any


class Comparing(TorchFunctionMode):
    """Sees what one of PyTorch's losses is given; and gives it other targets, where there are some.

    Args:
        targets: (rows, ...) in the place of what the loss is told; None leaves it.
        stops: whether to end the function there.
        silent: whether all losses are zero.

    Attributes:
        found: the calls.
    """

    def __init__(self, targets: Tensor | None = None, *, stops: bool = False, silent: bool = False) -> None:
        super().__init__()
        self._targets, self._stops, self._silent = targets, stops, silent
        self.found: list[Comparison] = []

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if losses.family(func) == "unknown" or not (len(args) == 2 or (len(args) == 1 and "target" in kwargs)):
            return func(*args, **kwargs)
        rest = {name: value for name, value in kwargs.items() if name != "target"}
        said, told = args[0], args[1] if len(args) == 2 else kwargs["target"]
        if self._stops:
            self.found.append(Comparison(func, said, told, rest, None))
            raise Stop
        value = func(said, told if self._targets is None else self._targets.reshape(told.shape), **rest)
        self.found.append(Comparison(func, said, told, rest, value))
        return torch.zeros_like(value) if self._silent else value


def itself(func: Any, rest: dict[str, Any]) -> Any:
    """A loss of PyTorch with what else it is told, as the mean of its rows; None where it cannot be said."""
    usual = signature(func).parameters
    said = {name: value for name, value in rest.items() if not _is(value, usual[name].default)}
    if said.get("reduction") == "none":
        del said["reduction"]
    if not said:
        return func
    with suppress(TypeError):  # of what a module does not have
        return _MODULES[func](**said)
    return None


def _is(value: Any, usual: Any) -> bool:
    return value is usual or (not isinstance(value, Tensor) and value == usual)


def compares_several(objective: Objective, batch: Any) -> bool:
    """Whether a loss is a sum of PyTorch's losses alone, of several targets that vary.

    Raises:
        Exception: of the program's own.
    """
    with objective.without_learning():
        with Comparing() as seen:
            whole = objective(batch)
        with Comparing(silent=True):
            rest = objective(batch)
    told = {id(call.told): call.told for call in seen.found if all(isinstance(t, Tensor) for t in call[1:3])}
    varied = [t for t in told.values() if bool((t != t.reshape(-1)[:1]).any())]
    return len(varied) == len(seen.found) > 1 and float(whole.detach()) != 0 == float(rest.detach())


class Loss:
    """A function of (model, batch) as a loss of (outputs, targets).

    Args:
        function: of the user's.
        like: a batch on a few rows, for what is not read.
        model: that it is a loss of.
        told: which tensor of the batch the targets are; None where they are what a loss of PyTorch is told.
        asked: which tensors of the batch are inputs, and nothing is made of.
    """

    def __init__(
        self, function: Callable[[Any, Any], Tensor], like: Any, model: nn.Module, told: int | None, asked: set[int]
    ) -> None:
        self._function, self._like, self._told, self._asked = function, like, told, asked
        self._plain = nn.Module()
        vars(self._plain).update(plain(model))

    def __call__(self, outputs: Any, targets: Tensor) -> Tensor:
        given = {} if self._told is None else {self._told: targets}
        batch, answer = batch_with(self._like, given, targets, unread=self._asked), Answer(outputs, self._plain)
        if self._told is not None:
            return self._function(answer, batch).mean()
        with Comparing(targets):
            return self._function(answer, batch).mean()


def batch_with(like: Any, given: Mapping[int, Tensor], rows: Tensor, *, unread: Collection[int] = ()) -> Any:
    """A batch of the form of another, with some of its tensors, and in the place of the others the first row of that.

    Args:
        like: the other batch.
        given: tensors by their place in it.
        rows: as many as there are to be, and where.
        unread: places whose rows need no memory of their own.
    """
    places = iter(range(len(leaves(like))))

    def of_rows(leaf: Tensor) -> Tensor:
        place = next(places)
        if place in given:
            return given[place]
        many = leaf[:1].to(rows.device).expand(len(rows), *leaf.shape[1:])
        return many if place in unread else many.contiguous()

    return map_tree(of_rows, like)


def with_leaves(batch: Any, given: Mapping[int, Tensor]) -> Any:
    """A batch with other tensors in these places, in the shape of those that were there."""
    places = iter(range(len(leaves(batch))))

    def put(leaf: Tensor) -> Tensor:
        place = next(places)
        return given[place].reshape(leaf.shape).to(leaf.dtype) if place in given else leaf

    return map_tree(put, batch)


def inputs_of(function: Callable[[Any, Any], Tensor], batch: Any, call: Call, like: nn.Module) -> Any:
    """What the model is asked, of all rows of a batch: tensors of it, or what is made of them."""
    return of_all(batch, lambda rows: _asked(function, rows, call, like))


def targets_of(function: Callable[[Any, Any], Tensor], batch: Any, outputs: Any, like: nn.Module) -> Tensor:
    """What a loss of PyTorch is told, of all rows of a batch, (rows, ...)."""

    def told(rows: Any) -> Tensor:
        count = rows_of(rows)
        answers = map_tree(lambda leaf: leaf[:1].expand(count, *leaf.shape[1:]).contiguous(), outputs)
        with suppress(Stop), Comparing(stops=True) as seen:
            function(Answer(answers, like), rows)
        return by_row(seen.found[0].told, count)

    found: Tensor = of_all(batch, told)
    return found


def by_row(told: Tensor, count: int) -> Tensor:
    """Targets with the first dimension that counts rows: places of rows may have been put one after another.

    Raises:
        ValueError: there is no such form of them.
    """
    if not told.ndim or len(told) % count or not len(told):
        raise ValueError(f"expected targets of {count} rows, received {tuple(told.shape)}")
    return told if len(told) == count else told.reshape(count, len(told) // count, *told.shape[1:])


def _asked(function: Callable[[Any, Any], Tensor], batch: Any, call: Call, like: nn.Module) -> Any:
    answer = Answer(None, like)
    with suppress(Stop):
        function(answer, batch)
    if answer.call is None or vars(Call(*answer.call)) != vars(call):
        raise ValueError("the model is not called in the same way for other rows")
    return call.inputs(*answer.call)


def of_all(batch: Any, made: Callable[[Any], Any]) -> Any:
    """What is made of the rows of a batch: a tensor of it as it is, or pieces of so many rows put together.

    Raises:
        ValueError: rows are not taken one by one.
    """
    count = rows_of(batch)
    few = map_tree(torch.clone, part(batch, 0, min(count, 2)))
    held = {id(leaf): place for place, leaf in enumerate(leaves(few))}
    found = made(few)
    if all(id(leaf) in held for leaf in leaves(found)):  # nothing is made
        whole = leaves(batch)
        return map_tree(lambda leaf: whole[held[id(leaf)]], found)
    pieces = [made(map_tree(torch.clone, part(batch, start, start + _AT_ONCE))) for start in range(0, count, _AT_ONCE)]
    if any(rows_of(piece) != min(_AT_ONCE, count - k * _AT_ONCE) for k, piece in enumerate(pieces)):
        raise ValueError("what is made of the rows has another number of them")
    columns = [torch.cat(some) for some in zip(*(leaves(piece) for piece in pieces), strict=True)]
    order = iter(columns)
    return map_tree(lambda _: next(order), found)
