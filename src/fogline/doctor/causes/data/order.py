"""The order rows come in, and how common their classes are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fogline.data import losses
from fogline.data.source import cast, float_type, map_tree, rows_of, taken
from fogline.descent.objective import mode
from fogline.descent.randomness import private_randomness
from fogline.doctor.case import FAILURES
from fogline.doctor.causes.data.common import kept_at, only, pair_of
from fogline.doctor.examination import Examination
from fogline.doctor.finding import LOSS, RECIPE, ROWS, Evidence, Remedy, Rows, Suspicion
from fogline.doctor.prior import adjusted, adjusts, code
from fogline.doctor.sorting import between_batches
from fogline.doctor.standing import standing
from fogline.doctor.weighing import pulls_of_classes, weighed, weighs

_MUCH = 0.3  # of the rows of rare classes
_FEWEST_OF_A_CLASS = 5
_MOST_OFTEN = 50
FEW_CLASSES = 20  # of more, as of words, some are always rare
_LESS = 0.5  # of the pull of any common class: a row of a rare one is hushed
_MORE_ROWS = "More rows of the rare classes, if there is a way to get them."


def unshuffled_data(exam: Examination) -> Suspicion | None:
    """Rows sorted by target and taken in that order: each batch pulls to its own kind.

    Measured by the share of the targets' variance that lies between batches (eta squared), which is (k - 1) / (n - 1)
    for k batches of n rows in random order.
    """
    pair = pair_of(exam)
    recipe, facts = exam.program.recipe, exam.case.facts
    by_loader = facts.shuffle is False and recipe.shuffle
    if pair is None or (recipe.shuffle and not by_loader) or kept_at(exam, "order"):
        return None
    rows = min(exam.case.batch_size, len(pair[1]))
    found = between_batches(torch.split(_coded(exam, pair[1]), rows)) if rows else None
    if found is None:
        return None
    return Suspicion(
        "unshuffled_data",
        min(0.95, 0.4 + found.share),
        (
            Evidence("share of the targets' variance that lies between batches", found.share, found.by_chance),
            Evidence("shuffling", "off", "on"),
        ),
        "The rows are taken in the order they are stored in, and that order follows the targets: each batch holds one "
        "kind of example, and each step unlearns what the last ones taught.",
        (_shuffled_once() if by_loader else _shuffled_always(),),
    )


def _coded(exam: Examination, targets: Tensor) -> Tensor:
    """Columns of numbers: one a class for labels."""
    if exam.case.yardstick.work == "classes" and targets.ndim == 1:
        return nn.functional.one_hot(targets.clamp_min(0).long()).double()
    return targets.reshape(len(targets), -1).double()


def _shuffled_always() -> Remedy:
    return Remedy(
        "shuffle the rows in every epoch",
        "Recipe(..., shuffle=True)",
        on_recipe=lambda recipe: recipe.replace(shuffle=True),
        place="order",
        order=RECIPE,
    )


def _shuffled_once() -> Remedy:
    def edit(rows: Rows) -> Rows:
        size = rows_of(rows.inputs)
        return only(rows, torch.randperm(size, generator=torch.Generator().manual_seed(0)))

    return Remedy(
        "shuffle the rows",
        "loader = DataLoader(data, batch_size=..., shuffle=True)",
        on_rows=edit,
        place="order",
        order=ROWS,
    )


def class_imbalance(exam: Examination) -> Suspicion | None:
    """Rare classes that the trained model does not find, while it finds the common ones.

    Rare is not a fault by itself; it is where what the model gets right of rare classes is below what it gets right of
    common ones by more than chance.
    """
    pair, observed = pair_of(exam), exam.observed
    counts = rows_of_classes(exam)
    if pair is None or observed is None or observed.start is None or counts is None or kept_at(exam, "balance"):
        return None
    if counts.sum() < 20 or not bool((pair[1].double() % 1 == 0).all()) or not bool(rare(counts).any()):
        return None  # answers that are shared between classes have no rare ones
    present, common = counts > 0, float(counts.max())
    ratio = common / float(counts[present].min())
    hushed = _hushed(exam, counts)
    remedies = (*_by_rarity(exam, counts, hushed), *_balanced(exam, counts))
    relative = Evidence("rows of the most common class for one of the rarest", ratio, "about 1")
    found = passed_over(exam)
    if found is None or found[1] - found[0] < _MUCH:
        return _too_few(counts, relative, remedies)  # rare, but learned, as far as can be told
    recall, usual, error = found
    seen = [relative, Evidence("share of the rare classes' rows that are recognised", recall, usual)]
    if hushed is not None:
        loudness = float(hushed[counts.argmax()] / hushed[present][counts[present].argmin()])
        seen.append(Evidence("pull of a row of the most common class, of one of the rarest", loudness, "1 or less"))
    return Suspicion(
        "class_imbalance",
        min(0.9, 0.4 + 0.5 * (usual - recall)),
        tuple(seen),
        f"Some classes have up to {ratio:.0f} times fewer rows than the most common one, and the model does not find "
        "them: ignoring a rare class costs the loss next to nothing. Drawn as often as the others it counts the same."
        + ("" if hushed is None else " The loss makes it worse: it weighs common classes more than rare ones."),
        remedies,
        of_data=(usual - recall > max(0.5, 3 * error) and not standing(exam).short) or _lacking(counts) > 0,
        advice=_MORE_ROWS,
    )


def rows_of_classes(exam: Examination) -> Tensor | None:
    """Training rows of each class, float64 (classes,); None where targets are no labels."""
    pair = pair_of(exam)
    labels = None if pair is None else exam.case.yardstick.labels(pair[1])
    return None if labels is None else torch.bincount(labels).double()


def rare(counts: Tensor) -> Tensor:
    """Which classes have less than a quarter of the rows of the most common one."""
    return (counts * 4 < counts.max()) & (counts > 0)


def passed_over(exam: Examination) -> tuple[float, float, float] | None:
    """Recall of the rare classes and of the others, where the first is clearly below; and the standard error.

    On learned rows or on held-out ones, where the distance is larger.
    """
    counts = rows_of_classes(exam)
    if counts is None or not bool(rare(counts).any()):
        return None
    gaps = (_gap(exam, *rows, rare(counts)) for rows in _looked_at(exam))
    return max((gap for gap in gaps if gap is not None), key=lambda gap: gap[1] - gap[0], default=None)


def _lacking(counts: Tensor) -> int:
    """How many classes have fewer rows than a cross-validation has parts; of many classes some always do."""
    present = counts[counts > 0]
    if len(present) > FEW_CLASSES or float(present.max()) < FEW_CLASSES * float(present.min()):
        return 0
    return int((present < _FEWEST_OF_A_CLASS).sum())


def _too_few(counts: Tensor, relative: Evidence, remedies: tuple[Remedy, ...]) -> Suspicion | None:
    """Classes of which nobody can tell whether they were learned."""
    present, lacking = counts[counts > 0], _lacking(counts)
    if not lacking:
        return None
    return Suspicion(
        "class_imbalance",
        0.5,
        (relative, Evidence("rows of the rarest class", int(present.min()), f"{_FEWEST_OF_A_CLASS} at least")),
        f"{lacking} of {len(present)} classes have fewer than {_FEWEST_OF_A_CLASS} rows. Whatever is answered right of "
        "the others, these are neither learned from so few nor can it be told whether they are.",
        remedies,
        of_data=True,
        advice=_MORE_ROWS,
    )


def _looked_at(exam: Examination) -> list[tuple[Any, Tensor]]:
    found = []
    for inputs, targets in (exam.program.train, exam.program.held):
        if isinstance(targets, Tensor):
            index = torch.arange(min(len(targets), 4096)) * len(targets) // min(len(targets), 4096)
            found.append((taken(inputs, index), taken(targets, index)))
    return found


def _gap(exam: Examination, inputs: Any, targets: Tensor, rare: Tensor) -> tuple[float, float, float] | None:
    labels, guessed = exam.case.yardstick.labels(targets), _guessed(exam, inputs)
    if labels is None or guessed is None or len(guessed) != len(labels) or int(labels.max()) >= len(rare):
        return None
    is_rare = rare[labels]
    few, many = int(is_rare.sum()), int((~is_rare).sum())
    if few < 3 or many < 3:
        return None
    right = (guessed == labels).double()
    recall, usual = float(right[is_rare].mean()), float(right[~is_rare].mean())
    error = math.sqrt(0.25 / few + 0.25 / many)
    return (recall, usual, error) if usual - recall > max(0.1, 2 * error) else None


def _guessed(exam: Examination, inputs: Any) -> Tensor | None:
    """The class that the observed model gives each row."""
    assert exam.observed is not None
    assert exam.observed.start is not None
    model = exam.observed.start.objective.model
    weights = next(model.parameters())
    given = map_tree(lambda leaf: leaf.to(weights.device), cast(inputs, float_type(model)))
    try:
        with torch.no_grad(), mode(model, training=False), private_randomness(torch.device("cpu")):
            outputs = model(given)
    except FAILURES:
        return None
    if not isinstance(outputs, Tensor) or outputs.ndim > 2:
        return None
    outputs = outputs.cpu().float()
    if outputs.ndim == 2 and outputs.shape[1] > 1:
        return outputs.argmax(1)
    flat, loss, values = outputs.reshape(-1), exam.program.loss, exam.case.yardstick.values
    if losses.family(loss) == "elementwise":
        return (flat > sum(values) / 2).long()
    bounded = bool((flat >= 0).all()) and bool((flat <= 1).all())
    logits = losses.family(loss) == "binary" and not losses.on_probabilities(loss)
    return (flat > (0.5 if bounded and not logits else 0.0)).long()


def _balanced(exam: Examination, counts: Tensor) -> Iterator[Remedy]:
    """Rows and loss, each by the half, then either alone.

    Rows that are drawn more often teach more and are learned by heart; a loss that knows how common the classes are
    takes nothing from the others, and a batch without a rare row tells nothing of it.
    """
    loss = exam.program.loss
    if not adjusts(loss, len(counts)):
        yield _repeated(exam, 1.0)
        return
    half = _repeated(exam, 0.5)
    alone = Remedy(
        "tell the loss how common each class is",
        code(loss),
        on_loss=lambda given: adjusted(given, counts),
        place="balance",
        order=LOSS,
    )
    yield replace(
        half, title=f"{half.title}, and {alone.title}", patch=f"{half.patch}\n{alone.patch}",
        on_loss=lambda given: adjusted(given, counts * _times(counts, 0.5)),
    )  # fmt: skip
    yield alone
    yield _repeated(exam, 1.0)


def _hushed(exam: Examination, counts: Tensor) -> Tensor | None:
    """How hard a row of each class pulls, (classes,), where rows of rare classes pull less than those of common ones.

    Weights of classes are meant the other way round.
    """
    outputs, targets = exam.anatomy.outputs, exam.program.train[1]
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or exam.anatomy.stage:
        return None
    labels = exam.case.yardstick.labels(targets)
    if labels is None or outputs.ndim > 2 or len(labels) != len(targets):
        return None
    some = torch.cat([(labels == k).nonzero().flatten()[:4] for k in range(len(counts))])
    of_some = cast(targets[some], outputs.dtype)
    loss = exam.program.loss
    pulls = pulls_of_classes(loss, outputs, of_some, labels[some], len(counts))
    if pulls is None or not bool((pulls[counts > 0] > 0).all()):
        return None
    few = rare(counts)
    common = (counts > 0) & ~few
    return pulls if float(pulls[few].max()) < _LESS * float(pulls[common].min()) else None


def _by_rarity(exam: Examination, counts: Tensor, pulls: Tensor | None) -> Iterator[Remedy]:
    """Each class as loud, all its rows together, as any other, where rare ones are hushed."""
    outputs, targets = exam.anatomy.outputs, exam.anatomy.batch[1]
    labels = exam.case.yardstick.labels(targets)
    if pulls is None or labels is None or not weighs(exam.program.loss, outputs, targets, labels):
        return
    there = counts > 0
    meant = torch.where(there, counts.max() / counts.clamp_min(1), torch.ones_like(counts)).clamp_max(_MOST_OFTEN)
    factors = torch.where(there, meant / pulls.where(there, torch.ones_like(pulls)), torch.ones_like(counts))
    loudness = torch.where(there, pulls, torch.zeros_like(pulls))
    factors *= float((counts * loudness).sum() / (counts * loudness * factors).sum())
    written = "weight = len(y) / torch.bincount(y)\n"
    if losses.family(exam.program.loss) == "unknown":
        written += "loss = (weight[y] * loss_of_each_row).mean()  # in the place of the weights it has by now"
    elif exam.case.yardstick.work == "binary":
        written = "loss = nn.BCEWithLogitsLoss(pos_weight=(y == 0).sum() / (y == 1).sum())"
    else:
        written += "loss = nn.CrossEntropyLoss(weight=weight)"
    yield Remedy(
        "weigh each class by how rare it is",
        written,
        on_loss=lambda loss: weighed(loss, factors, exam.case.yardstick.labels),
        place="balance",
        order=LOSS,
    )


def _times(counts: Tensor, power: float) -> Tensor:
    """How often a row of each class is taken: its rarity to a power."""
    return (counts.max() / counts.clamp_min(1)).pow(power).floor().clamp(1, _MOST_OFTEN).long()


def _repeated(exam: Examination, power: float) -> Remedy:
    def edit(rows: Rows) -> Rows:
        labels = exam.case.yardstick.labels(rows.targets)
        if labels is None:
            return rows
        times = _times(torch.bincount(labels).double(), power)
        return only(rows, torch.arange(len(labels)).repeat_interleave(times[labels]))

    root = "" if power == 1 else ".sqrt()"
    written = (
        f"sampler = WeightedRandomSampler(1 / torch.bincount(y)[y]{root}, len(y))\n"
        "loader = DataLoader(data, sampler=sampler)"
    )
    often = "more often" if power == 1 else "somewhat more often"
    return Remedy(f"take rows of rare classes {often}", written, on_rows=edit, place="balance", order=ROWS)
