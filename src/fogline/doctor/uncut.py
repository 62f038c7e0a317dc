"""What a program would be if it did not cut its own graph, or drop units while evaluated: tried, not guessed.

A detach inside somebody's ``forward`` is no module that could be replaced. But PyTorch lets a mode see every call of
its functions, so that the call can be left out for a trial.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fogline.data.source import leaves
from fogline.descent.randomness import PROBE, private_randomness, seed_step
from fogline.doctor.case import CPU, FAILURES
from fogline.doctor.surgery import Wrapped
from fogline.task import OnBatch

_DROPPING = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout)
_FLAT = ("round", "floor", "ceil", "trunc", "fix", "sign", "sgn")  # whose slope is zero wherever there is one
_COMPARISONS = {"gt": 1, "ge": 1, "__gt__": 1, "__ge__": 1, "lt": -1, "le": -1, "__lt__": -1, "__le__": -1}
MASKED = -9e3
"""Scores this low are masked out: set to -1e4, -1e9 or minus infinity before a softmax."""
_DATA: Any = vars(torch._C.TensorBase)["data"].__get__


class Uncut(TorchFunctionMode):
    """Leaves out ``detach()``, ``.data``, ``torch.no_grad()``, copies and rounding of tensors that have a graph.

    Attributes:
        cuts: names of what was left out, each once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cuts: dict[str, None] = {}

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch._C._set_grad_enabled and args and not args[0]:
            self.cuts["torch.no_grad()"] = None
            return None
        first = args[0] if args else None
        if isinstance(first, Tensor) and first.requires_grad and first.grad_fn is not None:
            name = _cutting(func)
            if name:
                self.cuts[name] = None
                return first
        return func(*args, **kwargs)


def _cutting(func: Any) -> str:
    if func is torch.Tensor.detach:
        return "detach()"
    if func == _DATA:
        return ".data"
    name = getattr(func, "__name__", "")
    if name in _FLAT:
        return f"{name}()"
    return "torch.tensor(...)" if name == "tensor" else ""


class Softened(Uncut):
    """The same, and a smooth step in the place of a threshold: what is above it counts the more the further it is.

    Of shares between 0 and 1 that is the share itself.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        sign = _COMPARISONS.get(getattr(func, "__name__", ""))
        first, second = (*args, None, None)[:2]
        if sign is None or not isinstance(second, (int, float)) or not isinstance(first, Tensor):
            return super().__torch_function__(func, types, args, kwargs)
        if not first.requires_grad or first.grad_fn is None or not first.is_floating_point():
            return func(*args, **(kwargs or {}))
        self.cuts["a threshold"] = None
        shares = bool(((first >= 0) & (first <= 1)).all())
        above = first if shares else torch.sigmoid(first - second)
        return above if sign > 0 else 1 - above


class WithGraph(Uncut):
    """Takes derivatives inside a program by ``torch.autograd.grad(..., create_graph=True)``, wherever it forgets to.

    Attributes:
        graphs: autograd's nodes of the derivatives, for each call that had no graph.
    """

    def __init__(self) -> None:
        super().__init__()
        self.graphs: list[list[Any]] = []

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not forgets_graph(func, kwargs):
            return func(*args, **kwargs)
        self.cuts["torch.autograd.grad(...) without create_graph=True"] = None
        found = func(*args, **kwargs | {"create_graph": True})
        self.graphs.append([slope.grad_fn for slope in found if slope is not None])
        return found


def forgets_graph(func: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether a call takes derivatives that have no graph themselves, where one could be kept."""
    return func is torch.autograd.grad and torch.is_grad_enabled() and not kwargs.get("create_graph")


class DropsLess(TorchFunctionMode):
    """Makes ``F.dropout`` drop a share of what it is told, wherever it is called with ``training=True``.

    Attributes:
        highest: of the shares that were asked for; 0 where nothing was dropped.
    """

    def __init__(self, share: float = 0.0) -> None:
        super().__init__()
        self.highest, self._share = 0.0, share

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _DROPPING or not args:
            return func(*args, **kwargs)
        training = args[2] if len(args) > 2 else kwargs.get("training", kwargs.get("train", True))
        asked = float(args[1] if len(args) > 1 else kwargs.get("p", 0.5))
        if training:
            self.highest = max(self.highest, asked)
        return func(args[0], asked * self._share, True) if training and asked * self._share else args[0]


class Noiseless(TorchFunctionMode):
    """Zeros in the place of normal noise that is drawn for a tensor.

    Attributes:
        drawn: what was put in its place, each time.
        sampled: how many of these were multiplied by deviations, number by number, as a sample of a distribution is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[Tensor] = []
        self.sampled = 0

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.randn_like:
            if getattr(func, "__name__", "") in ("mul", "__mul__", "__rmul__", "multiply", "addcmul"):
                self.sampled += any(self._deviates(noise, args) for noise in self.drawn)
            return func(*args, **(kwargs or {}))
        self.drawn.append(torch.zeros_like(args[0]))
        return self.drawn[-1]

    @staticmethod
    def _deviates(noise: Tensor, factors: Sequence[Any]) -> bool:
        others = [factor for factor in factors if factor is not noise and isinstance(factor, Tensor)]
        itself = any(factor is noise for factor in factors)
        return itself and any(other.shape == noise.shape for other in others)


class FirstByRelu(TorchFunctionMode):
    """Takes ``relu`` for ``sigmoid`` and ``tanh`` in the first calls of them, wherever they stand.

    Args:
        calls: how many; what comes behind them gives the outputs their range.
    """

    def __init__(self, calls: int) -> None:
        super().__init__()
        self._left = calls

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._left and args and getattr(func, "__name__", "") in ("sigmoid", "tanh"):
            self._left -= 1
            return F.relu(args[0])
        return func(*args, **(kwargs or {}))


class SigmoidOfOne(TorchFunctionMode):
    """Takes a sigmoid for a softmax over a single number, wherever it stands."""

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("softmax", "log_softmax") and args and isinstance(args[0], Tensor):
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            if dim is not None and args[0].shape[dim] == 1:
                return torch.sigmoid(args[0]) if name == "softmax" else F.logsigmoid(args[0])
        return func(*args, **kwargs)


class Logarithms(TorchFunctionMode):
    """Takes the logarithm of probabilities that functions are given that want it, or scores.

    Logarithms of probabilities are never above zero, and no row of them sums to 1. As scores, a softmax makes of them
    the probabilities again.

    Args:
        names: of the functions.

    Attributes:
        given: functions that were given probabilities, by name, each once.
    """

    def __init__(self, names: Collection[str] = ("nll_loss", "kl_div")) -> None:
        super().__init__()
        self._names = names
        self.given: dict[str, None] = {}

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in self._names:
            first = args[0] if args else kwargs.get("input")
            if isinstance(first, Tensor) and _are_probabilities(first):
                self.given[name] = None
                log = first.clamp_min(torch.finfo(first.dtype).tiny).log()
                args, kwargs = ((log, *args[1:]), kwargs) if args else (args, kwargs | {"input": log})
        return func(*args, **kwargs)


class Normalised(TorchFunctionMode):
    """Makes logarithms of probabilities of whatever else ``F.nll_loss`` is given.

    Attributes:
        sums: what the probabilities of the classes summed to, at the median of each call that was given something else.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sums: list[float] = []

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = args[0] if args and getattr(func, "__name__", "") == "nll_loss" else None
        if isinstance(first, Tensor) and first.ndim > 1 and first.numel() and not _are_probabilities(first):
            total = float(first.detach().logsumexp(1).median())
            if abs(total) > _NOT_ONE:
                self.sums.append(math.exp(min(total, 100.0)))
                args = (first.log_softmax(1), *args[1:])
        return func(*args, **(kwargs or {}))


_NOT_ONE = 0.1


def _are_probabilities(found: Tensor) -> bool:
    """Whether the rows of a tensor, which may have their classes in its second place or its last, are shares of 1."""
    if not found.is_floating_point() or not found.numel() or bool((found < 0).any()):
        return False
    dims = {min(1, found.ndim - 1), found.ndim - 1} if found.ndim else set()
    wholes = [found.detach().sum(k) for k in dims if found.shape[k] > 1]
    return any(torch.allclose(whole, torch.ones_like(whole), atol=1e-3) for whole in wholes)


def softmax_dim(func: Any, args: Any, kwargs: Any) -> int | None:
    """The dimension that a call is a softmax over; None for any other call, or where it is left to be guessed."""
    if getattr(func, "__name__", "") != "softmax" or not args or not isinstance(args[0], Tensor):
        return None
    dim = args[1] if len(args) > 1 else kwargs.get("dim")
    return dim if isinstance(dim, int) else None


@dataclass(frozen=True)
class SoftmaxCall:
    """What a softmax was given, its own dimension last, and autograd's node of what it gave."""

    scores: Tensor
    node: Any


class SoftmaxesSeen(TorchFunctionMode):
    """Takes down every softmax that is called, as a module or as a function.

    Attributes:
        calls: in their order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[SoftmaxCall] = []

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given, dim = func(*args, **kwargs), softmax_dim(func, args, kwargs)
        if dim is not None:
            self.calls.append(SoftmaxCall(args[0].detach().movedim(dim, -1), given.grad_fn))
        return given


class ScoresDivided(TorchFunctionMode):
    """Divides what a softmax is given.

    Args:
        by: what to divide by, by the number of the call in a pass; what is masked out stays far below.
    """

    def __init__(self, by: Mapping[int, float]) -> None:
        super().__init__()
        self._by, self._calls = by, 0

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if softmax_dim(func, args, kwargs) is None:
            return func(*args, **kwargs)
        by, self._calls = self._by.get(self._calls, 1.0), self._calls + 1
        scores = args[0] if by == 1.0 else torch.where(args[0] > MASKED, args[0] / by, args[0])
        return func(scores, *args[1:], **kwargs)


def answers(model: nn.Module, inputs: Any, mode: TorchFunctionMode) -> list[Any] | None:
    """The tensors that a model answers with within a mode, nothing dropped; None where it fails."""
    with private_randomness(CPU), torch.no_grad():
        seed_step(0, 0, PROBE, CPU)
        try:
            with DropsLess(), mode:
                return leaves(model(inputs))
        except FAILURES:
            return None


class Within(Wrapped):
    """A model that is run within a mode.

    Args:
        model: is run.
        mode: made anew for each pass.
        only_evaluating: whether it is entered in evaluation mode only.
    """

    def __init__(
        self, model: nn.Module, mode: Callable[[], TorchFunctionMode], *, only_evaluating: bool = False
    ) -> None:
        super().__init__(model)
        self._mode, self._only_evaluating = mode, only_evaluating

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._only_evaluating and self.training:
            return self.wrapped_model(*args, **kwargs)
        with self._mode():
            return self.wrapped_model(*args, **kwargs)


class Unpenalised(Wrapped):
    """A model as a loss that punishes weights is to see it: they are all zero, but for what the model calculates."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.wrapped_model(*args, **kwargs)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Zeros in the place of the weights, by their names."""
        for name, parameter in self.wrapped_model.named_parameters(*args, **kwargs):
            yield name, torch.zeros_like(parameter)  # type: ignore[misc]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("wrapped_model"), name)


def unpenalised(loss: OnBatch) -> OnBatch:
    """The loss without what it adds for the size of ``model.parameters()``."""
    return OnBatch(lambda model, batch: loss.function(Unpenalised(model), batch))


class LossWithin:
    """A loss that is computed within a mode."""

    def __init__(self, loss: Any, mode: Callable[[], TorchFunctionMode]) -> None:
        self.loss, self.mode = loss, mode
        self.reduction = getattr(loss, "reduction", "mean")

    def __call__(self, outputs: Any, targets: Any) -> Any:
        with self.mode():
            return self.loss(outputs, targets)


def within(loss: Any, mode: Callable[[], TorchFunctionMode]) -> Any:
    """The loss within a mode, of either kind."""
    if not isinstance(loss, OnBatch):
        return LossWithin(loss, mode)

    def function(model: nn.Module, batch: Any) -> Any:
        with mode():
            return loss.function(model, batch)

    return OnBatch(function)
