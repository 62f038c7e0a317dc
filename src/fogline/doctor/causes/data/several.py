"""Several targets whose losses are added up, of which one in large units is all that the sum hears."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fogline.data import losses
from fogline.data.source import cast, float_type, leaves, map_tree, part
from fogline.descent.copies import copied
from fogline.descent.objective import Objective
from fogline.descent.randomness import PROBE, private_randomness, seed_step
from fogline.doctor.anatomy import rms, same_numbers
from fogline.doctor.asked import Comparing, Comparison
from fogline.doctor.case import CPU, FAILURES
from fogline.doctor.examination import Examination
from fogline.doctor.finding import LOSS, Evidence, Remedy, Suspicion
from fogline.doctor.scoring import skills
from fogline.doctor.standing import LEARNS
from fogline.doctor.surgery import Wrapped
from fogline.doctor.uncut import within

_LOUDER, _FAR, _HALF = 10.0, 100.0, 0.5  # times the other losses; times what is said at first; skill
_ROWS = 512


class InUnits(TorchFunctionMode):
    """Divides what one of PyTorch's losses compares by a number, before it does.

    Args:
        place: of the call, among those of such losses.
        unit: by which it is divided.
    """

    def __init__(self, place: int, unit: float) -> None:
        super().__init__()
        self._left, self._unit = place, unit

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if losses.family(func) != "unknown" and len(args) == 2:
            if self._left == 0:
                args = tuple(part / self._unit for part in args)
            self._left -= 1
        return func(*args, **kwargs)


class TimesUnit(nn.Module):
    """One of the tensors that a model answers with, in other units.

    Args:
        place: of the tensor among them.
        unit: by which it is multiplied.
    """

    def __init__(self, place: int, unit: float) -> None:
        super().__init__()
        self.place, self.unit = place, unit

    def forward(self, outputs: Any) -> Any:
        places = iter(range(len(leaves(outputs))))
        return map_tree(lambda leaf: leaf * self.unit if next(places) == self.place else leaf, outputs)


def outweighed_targets(exam: Examination) -> Suspicion | None:
    """Numbers in large units whose loss is many times that of the other targets: of these nothing is learned, or they
    lie too far away themselves."""
    seen = exam.observed
    if not exam.case.yardstick.several or seen is None or seen.start is None or exam.anatomy.stage:
        return None
    try:
        (first, answers), (last, _) = (
            _compared(exam, model) for model in (exam.anatomy.model, seen.start.objective.model)
        )
        learned = skills([last])
    except FAILURES:
        return None
    levels = [float(call.loss.detach().double().mean()) for call in first]
    numbers = [k for k, call in enumerate(first) if losses.family(call.function) == "elementwise"]
    loud = max(numbers, key=lambda k: levels[k], default=None)
    if loud is None or len(first) != len(last):
        return None
    unit, said = float(first[loud].told.double().std()), rms(first[loud].said)
    louder = levels[loud] / max(1e-30, *(level for k, level in enumerate(levels) if k != loud))
    lost = any(skill < LEARNS for k, skill in enumerate(learned) if k != loud)
    far = unit > _FAR * said and learned[loud] < _HALF
    if not louder > _LOUDER or not (lost or far) or not unit > 0:
        return None
    place = next((k for k, leaf in enumerate(answers) if same_numbers(leaf, first[loud].said)), None)
    remedy = Remedy(
        f"divide what the loss at place {loud + 1} of the sum compares by {unit:.3g}, and multiply that answer by it",
        f"unit = {unit:.3g}  # the deviation of these targets\n"
        "amount = unit * self.amount(h)  # at the end of the model\n"
        "loss = ... + F.mse_loss(amount / unit, y / unit)",
        on_model=None if place is None else lambda model: Wrapped(model, after=TimesUnit(place, unit)),
        on_loss=lambda loss: within(loss, partial(InUnits, loud, unit)),
        place="loss",
        order=LOSS,
    )  # fmt: skip
    return Suspicion(
        "unscaled_target",
        min(0.95, 0.65 + 0.1 * math.log10(louder)),
        (
            Evidence("losses of the targets, at first", ", ".join(f"{level:.3g}" for level in levels), "alike"),
            Evidence("skill of each at the end", ", ".join(f"{skill:.2f}" for skill in learned), "all above 0"),
        ),
        "The loss is a sum over several targets, and that of one, whose numbers are large, is nearly all of it: the "
        "steps are taken for that one, little is learned of another, and large numbers are far to go.",
        (remedy,),
    )


def _compared(exam: Examination, model: nn.Module) -> tuple[list[Comparison], list[Tensor]]:
    """What PyTorch's losses compare on held-out rows; and the tensors that the model answers with."""
    objective, answers = Objective(copied(model), exam.program.loss), list[Tensor]()
    objective.model.register_forward_hook(lambda module, given, found: answers.extend(leaves(found)))
    batch = cast(part(exam.program.held, 0, _ROWS), float_type(model))
    with private_randomness(CPU), objective.without_learning(), Comparing() as seen:
        seed_step(0, 0, PROBE, CPU)
        objective(batch)
    return seen.found, answers
