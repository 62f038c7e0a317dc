"""What the loss of somebody else's loop is and what it compares: seen at its module, or from ``backward()`` alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fogline.data.source import leaves
from fogline.doctor import task_findings
from fogline.doctor.anatomy import LINEAR, has_weight, operation
from fogline.doctor.caller import backward_root, calling_line, data_in_sight, line_in_forward, line_of
from fogline.doctor.finding import Finding
from fogline.doctor.first_batch import Added, FirstBatch, look
from fogline.doctor.graphs import (
    divergence_of_probabilities,
    linear_layers,
    loss_on,
    on_the_way,
    operations_between,
    read_pairing,
)
from fogline.doctor.recovered import Recovered, read_back, recover, recover_beside
from fogline.doctor.seen_rows import SeenRows
from fogline.record.hook import Hook

_SAME = 0.01
_LATE = 2
_MOST_OUTPUTS = 8
_ONE_WAY, _ALIKE, _FAR = 0.95, 0.2, 100.0  # of all slopes; of the first; times the size of the outputs
_NOTHING_TOLD, _NO_CODE = 0.05, 0.1
_CLOSE_ENOUGH = 12  # looks: those at the first steps alone do not tell


@dataclass(frozen=True)
class Compared:
    """A batch of a loop that is not ours.

    Attributes:
        given: what the model was called with.
        shape: of the outputs of one row, as they came to the loss.
        targets: what they were compared with, (b, ...).
        loss: by what.
    """

    given: tuple[Any, ...]
    shape: torch.Size
    targets: Tensor
    loss: nn.Module


class LossLook:
    """Follows outputs to the loss and back, while the loop is looked at.

    Attributes:
        first: what the first batches showed; None before one was seen.
        operations: between outputs and loss, by the field's names.
        line: the line of code that makes the loss.
        gives_targets: some outputs of this step are numbers without a graph, such as those of a frozen teacher.
        direct: the first batch whose targets a loss compared with what the model gave, as that was or in another shape.
        rows: of the batches that were looked at closely.
    """

    def __init__(self, model: nn.Module, loss_fn: Any, *, descends: bool, whole: bool) -> None:
        self.model, self.loss_fn, self._descends = model, loss_fn, descends
        self._whole = whole and all(p.requires_grad for p in model.parameters())
        self.first: FirstBatch | None = None
        self.operations: tuple[str, ...] = ()
        self.line = ""
        self.direct: Compared | None = None
        self._given: tuple[Any, ...] = ()
        self._all_given: Any = ()  # with what was given by name
        self._before_loss: Tensor | None = None  # what the layer called last gave
        self._received: Tensor | None = None  # what the layer called first was given
        self.opposed = False  # there are further weights between what the model says and the loss
        self._judged = False  # it is what another model says that is compared with targets
        self._inside = False  # it is within the model that outputs are compared with targets
        self._output: Tensor | None = None
        self._gradient: Tensor | None = None
        self._parts: list[Tensor] = []  # of outputs that are several tensors
        self._came: dict[int, Tensor] = {}  # gradients that came to them
        self._part: int | None = None  # the one whose loss was read back
        self._ratios: list[float] = []
        self._beside: list[tuple[float, float]] = []  # losses that have further terms: alone, and as they are logged
        self._plains: dict[int, float] = {}  # losses that were read back, by step
        self.rows = SeenRows()
        self._codes: tuple[float, float] | None = None  # of a variational auto-encoder, at the latest look
        self._pulls: list[tuple[float, float]] = []  # of losses that were not read back: pull, and distance to go
        self._paired = self._recovers = False
        self._adds = False  # the loop adds terms, even if they are next to nothing at first
        self._begin()

    def _begin(self) -> None:
        self._from_module: list[Tensor] = []
        self._from_gradient: list[Tensor] = []
        self._hung = self._fired = 0
        self.gives_targets = False
        self._plain: float | None = None  # the first of this step, without what the loop multiplies it with or adds
        self._logged: float | None = None
        self._over = False

    @property
    def factors(self) -> list[Tensor]:
        """What ``backward()`` began with at the losses of this step, as far as it is known."""
        return self._from_module or self._from_gradient

    @property
    def read(self) -> Any:
        """The loss that the gradient showed; None where none was read back."""
        return self.first.loss_fn if self._recovers and self.first is not None else None

    @property
    def wants_layer(self) -> bool:
        """Whether the model shows nothing but its loss, so that what its last layer gives is to be seen."""
        return self._inside

    @property
    def bare(self) -> bool:
        """The outputs of this step are part of a graph, and no gradient came to them."""
        return self._hung > 0 and self._fired == 0

    def step_taken(self) -> None:
        """What is logged until the next forward pass is still of this step."""
        self._over = True
        self._output = self._gradient = self._before_loss = self._received = None
        self._parts, self._came, self._all_given = [], {}, ()

    def given(self, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> None:
        """What the model is called with; () where that is not its own input."""
        if self._over:
            self._begin()
        self._given, self._output, self._gradient = args, None, None
        self._all_given = (args, dict(kwargs or {}))
        self._before_loss = self._received = None

    def after_layer(self, output: object, given: Tensor | None = None) -> None:
        """What a layer of the model gave: the last one's is what a model compares that returns its own loss.

        And what it was given: the first one's is what the model makes of its inputs.
        """
        self._received = given if self._received is None and given is not None else self._received
        self._before_loss = output if isinstance(output, Tensor) and output.grad_fn is not None else None

    def after_model(self, output: object) -> None:
        """What the model gave, with its graph.

        A model may compute its loss too: then it is followed from what it gives beside the loss and made that of, or
        from what its last layer gave.
        """
        hung = [leaf for leaf in leaves(output)[:_MOST_OUTPUTS] if leaf.grad_fn is not None]
        losses, outputs = ([leaf for leaf in hung if (leaf.ndim == 0) is single] for single in (True, False))
        own = outputs[0] if len(outputs) == 1 else self._before_loss if not outputs else None
        inside = own if len(losses) == 1 and own is not None and _made_of(losses[0], own) else None
        self._inside = inside is not None
        self._output = output if isinstance(output, Tensor) and output.requires_grad else None
        if inside is not None:
            self._output, hung = inside, [inside]
        self.gives_targets = any(t.is_floating_point() and not t.requires_grad for t in leaves(output))
        self._parts, self._came = hung if self._output is None else [], {}
        self._note_codes(hung)
        for place, leaf in enumerate(hung):
            self._hung += 1
            leaf.register_hook(Hook(partial(self._fires, place)))  # type: ignore[no-untyped-call]

    def _fires(self, place: int, gradient: Tensor) -> None:
        self._fired += 1
        self._gradient = gradient.detach()
        if self._parts:
            self._came[place] = self._gradient

    def module(self, step: int, args: tuple[Any, ...], output: Tensor) -> Iterator[Finding]:
        """After the loss module."""
        if output.numel() == 1:
            factors = self._from_module
            output.register_hook(Hook(lambda gradient: factors.append(gradient.detach())))  # type: ignore[no-untyped-call]
            self._compare(plain=float(output.detach()))
            self._plains[step] = float(output.detach())
        if len(args) != 2 or not all(isinstance(a, Tensor) for a in args):
            return
        as_said = self._output is not None and _same_numbers(args[0], self._output)
        self._judged |= self._output is None or not (as_said or _made_of(args[0], self._output))
        if self.direct is None and as_said:
            self.direct = Compared(self._given, args[0].shape[1:], args[1], self.loss_fn)
        self.rows.add(self._given, args[1])
        if not self._paired:
            yield from self._pair(step, output, args[0], args[1])
        elif self.first is not None and not self._recovers:
            self.first = self.first.and_also(step, args[1])

    def backward(self, step: int) -> Iterator[Finding]:
        """Within ``backward()``, once it is past the outputs."""
        root, output, gradient = backward_root(), self._output, self._gradient
        if output is None and root is not None:
            yield from self._of_several(step, root)
        if output is None or gradient is None:
            return
        self._gradient, found = None, None
        value = float(root.detach()) if root is not None and root.numel() == 1 else None
        if self._recovers or self.first is None or not self.first.known:
            found = (
                recover(output, gradient, value)
                or (None if root is None else _named(root, output, gradient))
                or recover_beside(output, gradient)
            )
        if found is not None:
            self.rows.add(self._given, found.targets)
            self._keep(step, output, found)
        elif value is not None and value < 0 and self._descends and (found := recover(output, -gradient, -value)):
            if found.is_part:  # what a reward is multiplied with is neither, and of either sign
                yield task_findings.flipped(step, type(found.loss_fn).__name__, calling_line())
            found = None
        if found is None and value is not None and not self._recovers:
            self._note_pull(output.detach(), gradient, value)
        if root is not None and not self._paired:
            yield from self._pair(step, root, output, None if found is None else found.targets)
            if found is None and divergence_of_probabilities(
                root, output, gradient, lambda: data_in_sight(len(output))
            ):
                yield task_findings.not_logarithms(step, line_of(root))

    def _note_codes(self, parts: list[Tensor]) -> None:
        """What rows differ in that a model rebuilds of them, beside what they differ in; and the size of their codes.

        Codes are a mean and the logarithm of a variance, two tensors of one shape beside what is rebuilt.
        """
        rows = next((t.detach() for t in self._given if isinstance(t, Tensor) and t.is_floating_point()), None)
        rebuilt = None if rows is None else next((p.detach() for p in parts if p.numel() == rows.numel()), None)
        codes = [p.detach() for p in parts if p.ndim == 2 and rows is not None and p.numel() < rows.numel()]
        if rows is None or rebuilt is None or len(codes) != 2 or codes[0].shape != codes[1].shape or len(rows) < 2:
            return
        given, made = (_share_between_rows(part.reshape(len(rows), -1)) for part in (rows, rebuilt))
        told = made / given if given > 0 else 1.0  # of rows that are all the same there is nothing to be told
        self._codes = told, max(float(code.double().square().mean().sqrt()) for code in codes)

    @property
    def codes_are_empty(self) -> bool:
        """Whether all rows have the code of no row, at the last look, and are rebuilt alike."""
        told, size = self._codes or (1.0, 1.0)
        return told < _NOTHING_TOLD and size < _NO_CODE

    def _note_pull(self, outputs: Tensor, gradient: Tensor, loss: float) -> None:
        """How a loss pulls at the outputs, and how far it has them go.

        A loss that grows with the distance, or with its square, is the distance times its slope, or half of that.
        """
        size, spread = float(gradient.double().abs().sum()), float(outputs.double().square().mean().sqrt())
        one_way = abs(float(gradient.double().sum())) > _ONE_WAY * size
        if size > 0 and spread > 0 and one_way and math.isfinite(loss + size):
            self._pulls.append((size, loss / size / spread))

    @property
    def far(self) -> float | None:
        """Times their own size that outputs still had to go at the end, all one way, where nothing came nearer.

        None where that is not so.
        """
        (size, first), (later, last) = (self._pulls[0], self._pulls[-1]) if self._pulls else ((1.0, 0.0), (1.0, 0.0))
        alike = abs(later - size) <= _ALIKE * size
        return min(first, last) if len(self._pulls) > _CLOSE_ENOUGH and alike and min(first, last) > _FAR else None

    def _of_several(self, step: int, root: Tensor) -> Iterator[Finding]:
        """Of outputs that are several tensors the first whose loss can be read back; the others add terms to it."""
        places = range(len(self._parts)) if self._part is None else (self._part,)
        for place in (p for p in places if p in self._came and p < len(self._parts)):
            output = self._parts[place]
            found = _named(root, output, self._came.pop(place))
            if found is not None:
                self._part, self._adds = place, self._adds or not found.alone
                self.rows.add(self._given, found.targets)
                self._keep(step, output, found)
                if not self._paired:
                    yield from self._pair(step, root, output, found.targets)
                return

    def late(self, step: int, targets: Tensor | None) -> None:
        """Before a step that is looked at again: the latest targets, or what the gradient tells of them."""
        if targets is not None and self.first is not None and not self._recovers:
            self.first = self.first.and_also(step, targets)
        elif self._recovers and self._output is not None and self._gradient is not None:
            found = recover(self._output, self._gradient, None)
            if found is not None:
                self._keep(step, self._output, found)

    def _keep(self, step: int, output: Tensor, found: Recovered) -> None:
        self._plains[step] = found.plain
        if self._recovers and self.first is not None:
            self.first = self.first.and_also(step, found.targets)
        else:
            self._recovers = True
            self.first = look(
                self.model, found.loss_fn, self._inputs(found.targets), output, found.targets, step, self._received
            )
        if self.direct is None and self._output is not None and not self._inside:
            self.direct = Compared(self._given, output.shape[1:], found.targets, found.loss_fn)
        self._from_gradient.append(torch.tensor(found.factor))
        self._compare(plain=found.plain)

    def _inputs(self, targets: Tensor) -> tuple[Any, ...]:
        """What the model was given; the first numbers of its batch where that is a dict, or was given by name."""
        if self._given and isinstance(self._given[0], Tensor):
            return self._given
        given = (t for t in leaves(self._all_given) if t.ndim > 1 and t.is_floating_point() and len(t) == len(targets))
        return next(((t,) for t in given if t.shape != targets.shape), ())

    def logged(self, step: int, loss: Any) -> Iterator[Finding]:
        """A loss was logged; its graph can be read also after ``backward()``."""
        self._compare(logged=float(loss.detach() if isinstance(loss, Tensor) else loss))
        if not self._paired and self._output is not None and isinstance(loss, Tensor) and loss.grad_fn is not None:
            yield from self._pair(step, loss, self._output, None)

    def _compare(self, *, plain: float | None = None, logged: float | None = None) -> None:
        """The first loss logged in a step, and the first that was seen: their ratio."""
        if (plain is not None and self._plain is not None) or (logged is not None and self._logged is not None):
            return
        self._plain, self._logged = plain or self._plain, logged or self._logged
        if self._plain and self._logged and math.isfinite(self._plain + self._logged):
            self._ratios.append(self._logged / self._plain)
            self._beside.append((self._plain, self._logged))

    def _pair(self, step: int, loss: Tensor, outputs: Tensor, targets: Tensor | None) -> Iterator[Finding]:
        self._paired = True
        self.opposed = outputs is not loss and not _made_of(loss, outputs)
        if self.first is None:
            self.first = look(self.model, self.loss_fn, self._given, outputs, targets, step, self._received)
        self.line, self.operations = line_of(loss), operations_between(loss, outputs)
        for found in read_pairing(loss, outputs, targets):
            yield task_findings.pairing(
                found, (line_in_forward(self.model, found.operation) if found.operation else "") or self.line
            )
        given = self._given[0] if self._given else None
        copies = targets is not None and getattr(given, "shape", None) == targets.shape and targets[:1].numel() > 1
        hides = not all(p.requires_grad for p in self.model.parameters())  # what is frozen has no graph to be read
        unknown = self._inside and targets is None  # such a loss may bend what the last layer gave
        layers = 0 if copies or hides or unknown else linear_layers(outputs)
        if layers > 1:
            yield task_findings.straight(step, layers, self.line)

    @property
    def chooses(self) -> bool:
        """Whether it is this model that answers rows, each by itself: an opponent or a pair may have but one answer."""
        return self._whole and len(self._given) == 1 and not self._judged

    @property
    def carries(self) -> bool:
        """Whether the model is given, beside the rows of a batch, a state that is none of theirs, as of the last one.

        A recurrent model may keep it as well.
        """
        rows = len(self._given[0]) if self._given and isinstance(self._given[0], Tensor) and self._given[0].ndim else 0
        states = [t for one in self._given[1:] for t in leaves(one) if t.is_floating_point()]
        given = any(t.ndim > 1 and t.shape[1] == rows and t.shape[0] != rows for t in states)
        own = [module for module in self.model.modules() if isinstance(module, (nn.RNNBase, nn.RNNCellBase))]
        kept = [t for module in self.model.modules() for t in leaves(list(vars(module).values()))] if own else []
        return given or any(t.ndim > 1 and rows in t.shape[:2] for t in kept if not isinstance(t, nn.Parameter))

    def compared(self) -> FirstBatch | None:
        """What was seen of the batches, beside losses as they were logged."""
        if self.first is None or not self._ratios:
            return self.first
        low, high = min(self._ratios), max(self._ratios)
        constant = low > 0 and high <= low * (1 + _SAME) and not self._adds
        added = None if constant or len(self._plains) <= 2 * _LATE else self._added()
        return replace(self.first, ratio=low if constant else math.nan, added=added)

    def _added(self) -> Added:
        """What is added to a loss that was read back, at first; and the loss alone, of the last steps looked at."""
        plain = sum(alone for alone, _ in self._beside) / len(self._beside)
        logged = sum(all_of_it for _, all_of_it in self._beside) / len(self._beside)
        late = list(self._plains.values())[-_LATE:]
        return Added(plain, logged - plain, sum(late) / len(late))


def _share_between_rows(values: Tensor) -> float:
    """Of (b, k) numbers, the share of the variance that is between rows, column by column."""
    columns, whole = values.double().var(0, correction=0).mean(), values.double().var(correction=0)
    return float(columns / whole.clamp_min(1e-30))


def _made_of(loss: Tensor, outputs: Tensor) -> bool:
    """Whether a loss is made of outputs, (b, ...), and no further weights are."""
    way = on_the_way(loss, outputs) if outputs.ndim else []
    return bool(way) and not any(operation(node) in LINEAR and has_weight(node) for node in way)


def _named(root: Tensor, output: Tensor, gradient: Tensor) -> Recovered | None:
    """What the graph says the loss of these outputs is, with its targets."""
    known = loss_on(root, output) if root.numel() == 1 and output.ndim else None
    if known is None:
        return None
    value = float(root.detach()) if known[1] else None
    found = read_back(known[0], output, gradient, value, lambda: data_in_sight(len(output)))
    return None if found is None else replace(found, alone=known[1])


def _same_numbers(one: Tensor, other: Tensor) -> bool:
    """Whether they are one tensor, or another shape of it."""
    return one is other or (one.data_ptr() == other.data_ptr() and one.numel() == other.numel() and one.is_contiguous())
