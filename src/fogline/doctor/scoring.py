"""What descents begin from, and what models are worth: the first weights, and the score and the loss of any others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from statistics import fmean

import torch
from torch import Tensor

from fogline.data.intake import Opened
from fogline.data.source import Batch, cast, float_type, rows_of, source_of
from fogline.descent.batches import Batches
from fogline.descent.objective import Objective
from fogline.descent.prepare import Start
from fogline.descent.randomness import private_randomness
from fogline.descent.resolve import batch_rows, resolve_by_rule
from fogline.doctor.asked import Comparing, Comparison, itself
from fogline.doctor.case import FAILURES, Program, program
from fogline.doctor.others import drawn, drawn_for_others, loss_of, mean_of_all, nothing, pieces_of, placed
from fogline.doctor.yardstick import Yardstick

_ROUNDED = 1e-6
_COLLAPSED = 0.5
"""Where one answer for all rows is so much better than the model's, such answers are what the loss is lowest for."""


def begin(variant: Program, seed: int) -> Start:
    """What a descent begins from.

    Raises:
        ValueError, TypeError: the recipe does not fit the data.
    """
    model = variant.new_model(seed)
    if variant.recipe.precision == "float64":
        model = model.double()
    floats = float_type(model)
    opened = Opened(source_of(variant.train, floats), source_of(variant.held, floats), variant.case.facts)
    resolved = resolve_by_rule(variant.recipe.replace(seed=seed), opened, model)
    recipe = resolved.recipe
    device = torch.device(recipe.device)
    objective = Objective(model.to(device), variant.loss, None, device.type)
    rows = batch_rows(recipe, opened.train.size)
    batches = Batches(opened.train, rows, seed, recipe.shuffle, 0, device)
    return Start(variant.task, opened, objective, batches, resolved, [], 0, 1)


def skills(compared: Sequence[Sequence[Comparison]]) -> list[float]:
    """The score of each of PyTorch's losses that a loss is a sum of.

    Args:
        compared: the calls, of each piece of the rows.
    """
    found = []
    for calls in zip(*compared, strict=True):
        said, told = (torch.cat([call[part].detach().cpu() for call in calls]) for part in (1, 2))
        loss = itself(calls[0].function, calls[0].rest) or calls[0].function
        found.append(Yardstick.of(told, loss)(said, told, loss))
    return found


class Scores:
    """Scores of the models of a case and of its variants; what first weights come to is asked once for each variant."""

    def __init__(self) -> None:
        self._firsts: dict[tuple[str, ...], tuple[float, bool]] = {}
        self._below_zero = False

    def of(self, objective: Objective, variant: Program, batch: Batch) -> tuple[float, float]:
        """Score and mean loss on rows, in evaluation mode.

        Where only the loss can read the outputs, the score is the share of a constant answer's loss that is gone.
        """
        model, yardstick = objective.model, variant.case.yardstick
        weights = next(model.parameters())
        batch = cast(batch, float_type(model))
        outputs, compared, sums, total = [], list[Sequence[Comparison]](), 0.0, 0
        with objective.without_learning():
            for piece in pieces_of(batch):
                on_device = placed(piece, weights.device)
                rows = rows_of(piece)
                with Comparing() if yardstick.several else nullcontext() as seen:
                    found, loss = objective.with_outputs(on_device)
                sums += float(loss.detach().double().mean()) * rows
                total += rows
                outputs.append(found)
                compared.append([] if seen is None else seen.found)
        mean = sums / max(1, total)
        if yardstick.several and len({len(calls) for calls in compared}) == 1 and compared[0]:
            each = skills(compared)
            return (fmean(each) + min(each)) / 2, mean
        read = objective.supervised and yardstick.scores
        if not read or not all(isinstance(piece, Tensor) for piece in outputs):
            return self._gone(objective, variant, batch, mean), mean
        targets = batch[1]
        return yardstick(torch.cat([piece.cpu() for piece in outputs]), targets, variant.loss), mean

    def _gone(self, objective: Objective, variant: Program, batch: Batch, loss: float) -> float:
        """The share of the loss of a constant answer that is gone: of that of first weights, of the mean of all answers
        or of zeros, whichever is lowest.

        First weights that a remedy drew may be worse than those before, and are then no measure of what was learned.
        Of a logarithm of a density, which has no least value, it is what an exponential law makes of the difference.
        """
        first, asks_rows = self._first(variant)
        first = min(first, self._before(variant))
        constants = [loss_of(objective, batch, said) for said in (mean_of_all, nothing)] if asks_rows else []
        for constant in constants:
            near = constant is not None and loss - constant <= _COLLAPSED * max(abs(loss), abs(constant))
            if constant is not None and (near or objective.supervised):
                first = min(first, constant)
        if not math.isfinite(loss) or not math.isfinite(first):
            return -1.0
        self._below_zero |= min(loss, first) < 0
        if self._below_zero:
            return max(-1.0, -math.expm1((loss - first) / max(1.0, abs(first))))
        scale = max(first, loss)
        return (first - loss) / scale if scale > 0 else 0.0

    def _before(self, variant: Program) -> float:
        """Held-out loss of the first weights as they are without the remedies that change the model."""
        of_the_loss = tuple(r for r in variant.remedies if r.on_loss is not None or r.on_rows is not None)
        try:
            return self._first(program(variant.case, of_the_loss))[0]
        except FAILURES:  # such a loss may want another model
            return math.inf

    def _first(self, variant: Program) -> tuple[float, bool]:
        """Held-out loss of first weights, and whether it is another one where rows get the answers of others.

        It is not where answers are compared with one another only, such as those to two views of a row.
        """
        key = tuple(remedy.title for remedy in variant.remedies)
        if key not in self._firsts:
            begun = begin(variant, variant.case.recipe.seed)
            held = placed(variant.held, begun.batches.device)
            with private_randomness(torch.device("cpu")), begun.objective.without_learning():
                first = float(begun.objective(held).detach())
            own, other = (loss_of(begun.objective, held, said) for said in (drawn, drawn_for_others))
            asked = own is not None and other is not None and abs(other - own) > _ROUNDED * abs(own)
            self._firsts[key] = first, asked
        return self._firsts[key]
