"""Functions that take outputs first and targets second, and are given them the other way round."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from fogline.doctor.causes.output.common import mismatched, passed_through
from fogline.doctor.examination import Examination
from fogline.doctor.finding import LOSS, Evidence, Remedy, Suspicion
from fogline.doctor.uncut import within

_LOPSIDED = ("binary_cross_entropy", "binary_cross_entropy_with_logits", "poisson_nll_loss")
"""Which of the two comes first makes a difference to them; a divergence may be meant either way."""


class Exchanged(TorchFunctionMode):
    """Puts what has a graph first, and what has none second, in losses that were given them the other way round.

    Attributes:
        given: functions that were, by name, each once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[str, None] = {}

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _LOPSIDED and len(args) > 1 and all(isinstance(given, Tensor) for given in args[:2]):
            first, second = args[:2]
            if second.requires_grad and not first.requires_grad and first.shape == second.shape:
                self.given[name] = None
                args = (second, first, *args[2:])
        return func(*args, **(kwargs or {}))


def exchanged(exam: Examination) -> Suspicion | None:
    """A loss of PyTorch, wherever it is called, that is given the targets first and the outputs second."""
    mode = Exchanged()
    if not passed_through(exam, mode) or not mode.given:
        return None
    name = f"F.{next(iter(mode.given))}"
    remedy = Remedy(
        f"give {name} the outputs first",
        f"{name}(outputs, targets)",
        on_loss=lambda loss: within(loss, Exchanged),
        place="targets",
        order=LOSS,
    )
    found = mismatched(
        exam,
        0.95,
        (Evidence(f"what {name} is given first", "targets", "outputs"),),
        f"{name} takes the outputs first and the targets second, and is given them the other way round: it compares "
        "something, and where it is least is not where the outputs are right.",
        (remedy,),
        proof=True,
        blocks=exam.case.yardstick.work == "other",  # only the loss can judge, and it is another one afterwards
    )
    return replace(found, advice=f"Write {name}(outputs, targets).")
