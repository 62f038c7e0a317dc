"""What a model cannot tell apart, whatever its weights are: the order of the steps, the level of a row."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fogline.data.source import taken
from fogline.descent.copies import copied
from fogline.doctor.anatomy import Layer, rms
from fogline.doctor.examination import Examination
from fogline.doctor.finding import BODY, Evidence, Remedy, Suspicion
from fogline.doctor.standing import standing
from fogline.doctor.surgery import core, replaced
from fogline.doctor.uncut import DropsLess, answers

_ROWS = 8
_OF_A_ROW = (nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)


def invariant(exam: Examination) -> Suspicion | None:
    """A model that gets less than classical learners do, and answers alike what they can tell apart."""
    if not exam.case.supervised or exam.anatomy.stage == "forward" or not isinstance(exam.anatomy.batch[0], Tensor):
        return None
    if not standing(exam).improvable:
        return None
    return next((found for look in (_unordered, _levelled) for found in look(exam)), None)


def _unordered(exam: Examination) -> Iterator[Suspicion]:
    """Sequences whose order makes no difference, as those of attention without positions."""
    inputs = exam.anatomy.batch[0][:_ROWS]
    if inputs.ndim not in (2, 3) or (inputs.ndim == 2 and inputs.is_floating_point()) or inputs.shape[1] < 3:
        return
    first = next((layer for layer in exam.anatomy.layers if _of_steps(layer, exam.anatomy.batch[0])), None)
    if first is None or first.output is None or not _alike(exam, inputs, inputs.roll(1, 1).flip(1)):
        return
    steps, width = first.output.shape[1:]
    scale = rms(first.output)
    attends = any(isinstance(m, nn.MultiheadAttention) for m in core(exam.anatomy.model).modules())
    yield Suspicion(
        "bottleneck",
        0.7 if attends else 0.5,
        (Evidence("the answer to a row whose steps come in another order", "the same", "another"),),
        "The model gives the same answer in whatever order the steps of a row come: it does not see where something "
        "stands, only that it is there.",
        (
            Remedy(
                f"add a learned vector for each position behind {first.name}",
                f"self.positions = nn.Parameter(torch.randn({steps}, {width}))\n"
                f"x = self.{first.name}(x) + self.positions",
                on_model=lambda model: replaced(
                    model, first.name, lambda module: nn.Sequential(module, Positions(steps, width, scale))
                ),
                place="positions",
                order=BODY,
            ),
        ),
    )


def _of_steps(layer: Layer, inputs: Tensor) -> bool:
    """Whether a layer makes a vector of each step of the inputs."""
    kinds = isinstance(layer.module, (nn.Embedding, nn.Linear))
    return kinds and layer.output is not None and layer.output.ndim == 3 and layer.output.shape[:2] == inputs.shape[:2]


class Positions(nn.Module):
    """Adds a learned vector to each step.

    Args:
        steps, width: of what it is given, (b, steps, width).
        scale: of the first vectors.
    """

    def __init__(self, steps: int, width: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(steps, width) * scale)

    def forward(self, inputs: Tensor) -> Tensor:
        """Of (b, steps, width), or fewer steps."""
        return inputs + self.weight[: inputs.shape[1]]


def _levelled(exam: Examination) -> Iterator[Suspicion]:
    """Inputs that are normalised row by row before anything else: how large they are is lost."""
    inputs = exam.anatomy.batch[0]
    first = exam.anatomy.layers[0] if exam.anatomy.layers else None
    if first is None or not isinstance(first.module, _OF_A_ROW) or first.received is None:
        return
    if not inputs.is_floating_point() or not torch.equal(first.received.reshape(inputs.shape), inputs):
        return
    if not _alike(exam, inputs[:_ROWS], 2 * inputs[:_ROWS] + inputs.std()):
        return
    yield Suspicion(
        "bottleneck",
        0.5,
        (Evidence("the answer to a row that is twice as large, and higher", "the same", "another"),),
        f"{first.name} takes the mean of each row away and divides by its deviation: the model does not see how large "
        "the numbers of a row are, only how they compare with one another.",
        (
            Remedy(
                f"leave out {first.name}",
                f"# nothing in the place of {first.name}; scale each column with the training rows' mean and deviation",
                on_model=lambda model: replaced(model, first.name, lambda _: nn.Identity()),
                place="normalisation",
                order=BODY,
            ),
        ),
    )


def _alike(exam: Examination, inputs: Tensor, others: Tensor) -> bool:
    """Whether other inputs get the same answers, and another row another one; of first weights, in evaluation mode."""
    model = copied(exam.anatomy.model).eval()
    given = inputs, others, taken(inputs, torch.arange(len(inputs)).roll(1))
    said = [[a for a in answers(model, rows, DropsLess()) or () if isinstance(a, Tensor)] for rows in given]
    if not said[0] or not len(said[0]) == len(said[1]) == len(said[2]) or torch.equal(inputs, others):
        return False
    same, rolled = (
        all(torch.allclose(a, b, 1e-3, 1e-5) for a, b in zip(said[0], found, strict=True)) for found in said[1:]
    )
    return same and not rolled
