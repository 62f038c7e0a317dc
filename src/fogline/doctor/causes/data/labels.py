"""Targets that do not belong to their rows."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from fogline.data.source import leaves
from fogline.doctor.causes.data.common import error_of, kept_at, only, pair_of
from fogline.doctor.causes.data.split import train_valid_mismatch
from fogline.doctor.examination import Examination
from fogline.doctor.finding import ROWS, Evidence, Remedy, Rows, Suspicion
from fogline.doctor.reference import features, out_of_fold

_FEWEST = 50
"""Rows below which a share or a score says too little."""


def shuffled_labels(exam: Examination) -> Suspicion | None:
    """Targets that do not belong to their rows, while those of the held-out rows do.

    A classical learner gets little from training rows for other training rows, and what it gets holds better for the
    held-out rows, or those can be learned within themselves: then it is the training targets that are wrong.
    """
    seen, held = exam.reference, exam.case.valid
    if seen.score is None or seen.within_valid is None or seen.valid_score is None or held is None or seen.rows is None:
        return None
    classes = exam.case.yardstick.classes
    rows, others = len(seen.rows) // 5, min(4000, len(leaves(held.inputs)[0]))
    if rows < 20 or others < 20:
        return None
    possible = max(seen.within_valid, seen.valid_score)
    error = math.hypot(error_of(rows, classes), error_of(others, classes))
    if possible - seen.score < max(3 * error, 0.25) or seen.score > _SOMETHING * possible:
        return None
    return Suspicion(
        "shuffled_labels",
        0.9,
        (
            Evidence(f"score of {seen.learner} on training rows it did not see", seen.score, possible),
            Evidence("its score on the held-out rows", seen.valid_score),
            Evidence("score where it learns from some held-out rows and is tried on others", seen.within_valid),
        ),
        "The held-out rows can be learned, and the training rows cannot: most training targets do not belong to their "
        "rows. Usually inputs and targets were shuffled, sorted, filtered or joined apart from each other.",
        proof=True,
        severity="fatal",
        advice="Shuffle, sort and filter inputs and targets with one and the same index; look at a few rows by eye.",
    )


def unrelated_labels(exam: Examination) -> Suspicion | None:
    """Targets that have nothing to do with their rows, held out or not, as far as any learner can tell.

    That the data can do no better is one answer; that targets were mixed up before they were split is the other, and
    the rows cannot tell which.
    """
    pair, seen, observed = pair_of(exam), exam.reference, exam.observed
    if pair is None or seen.score is None or seen.rows is None or observed is None or observed.error:
        return None
    rows = len(seen.rows) // 5
    noise = min(0.1, 2 * error_of(rows, exam.case.yardstick.classes))
    scores = [seen.score, observed.score] + ([] if seen.within_valid is None else [seen.within_valid])
    if rows < _FEWEST // 2 or max(scores) > noise:
        return None
    return Suspicion(
        "shuffled_labels",
        0.6,
        (
            Evidence(f"score of {seen.learner} on rows it did not see", seen.score, "well above 0"),
            Evidence("score of the network on held-out rows", observed.score, "well above 0"),
        ),
        "Neither the network nor a classical learner gets anything from the inputs that holds for other rows. Either "
        "the inputs do not determine the targets, or inputs and targets were shuffled, sorted, filtered or joined "
        "apart from each other before they were split.",
        severity="fatal",
        advice="Look at a few rows by eye: does each target belong to its input?",
    )


_SOMETHING = 0.15
"""Of what is possible: targets that carry more than this are wrong in part."""
_BEYOND_OVERLAP = 0.45
"""Classes that overlap (two or three normal distributions, from one column up, however close) leave at most two fifths
of such rows with another label: what is that mixed has no inside."""


def label_noise(exam: Examination) -> Suspicion | None:
    """Labels that contradict what rows like theirs say, also far from the border between classes.

    Where classes overlap, labels disagree near the border; wrong labels are found everywhere. So rows are counted whose
    neighbours, and whose neighbours' neighbours, all point to one class, and that have another label.
    """
    pair, seen = pair_of(exam), exam.reference
    if pair is None or seen.agreement is None or seen.guesses is None or seen.rows is None or kept_at(exam, "labels"):
        return None
    contradicted = _worse_than_held_out(exam)
    if contradicted is not None:
        return contradicted
    ids = seen.rows
    labels = exam.case.yardstick.labels(exam.case.train.targets[ids])
    if labels is None or len(ids) < 2 * _FEWEST:
        return None
    if float((seen.guesses != labels).double().mean()) < 0.03:
        return None
    if (seen.score or 0.0) < 2 * error_of(len(ids) // 5, exam.case.yardstick.classes):
        return None  # nothing is known of the labels by which they could be wrong
    guesses, deep = _deep(exam, ids, seen.guesses)
    wrong = guesses != labels
    count = int(deep.sum())
    if count < _FEWEST // 2:
        return None
    kinds = torch.bincount(guesses[deep]).sort(descending=True).values
    if len(kinds) < 2 or int(kinds[1]) < max(5, count // 20):
        return None  # one class all over: its share is all that neighbours can say
    share = float(wrong[deep].double().mean())
    error = math.sqrt(share * (1 - share) / count)
    least, chance = share - 2 * error, 1 / max(2, exam.case.yardstick.classes)
    if least < 0.1 or 1 - share < chance + 3 * error:
        return None
    doubtful = wrong & (seen.agreement <= 0.25)
    names = ids[doubtful]
    return Suspicion(
        "label_noise",
        min(0.8, 0.3 + share),
        (
            Evidence("share of rows with another label than all rows around them", share, 0.0),
            Evidence("rows whose label is likely wrong", int(doubtful.sum()), 0),
            Evidence("the first of them", ", ".join(str(k) for k in sorted(names.tolist())[:5])),
        ),
        f"About {share:.0%} of the training rows have another label than all the rows like them, also far from the "
        "border between classes: likely these labels are wrong.",
        (_relabelled(exam, names, guesses[doubtful]), _unlabelled(names)),
        proof=least > _BEYOND_OVERLAP,
        advice="Look at the rows listed by eye before anything is dropped.",
    )


def _worse_than_held_out(exam: Examination) -> Suspicion | None:
    """Training labels that a classical learner contradicts more often than it does held-out ones.

    Where inputs do not determine the label, or the learner is no good, both are contradicted alike.
    """
    seen, held = exam.reference, exam.case.valid
    if held is None or seen.score is None or seen.valid_score is None or seen.rows is None:
        return None
    ids = seen.rows
    labels, others = exam.case.yardstick.labels(exam.case.train.targets[ids]), exam.case.yardstick.labels(held.targets)
    if labels is None or others is None or seen.valid_score - seen.score < 0.05 or train_valid_mismatch(exam):
        return None
    said = out_of_fold(exam.case, seen.learner, ids)
    if said is None:
        return None
    ours, theirs = (_by_class(outputs, exam) for outputs in said)
    guesses = ours.argmax(1)
    inside, error = _contradicted(guesses, labels)
    outside, other_error = _contradicted(theirs.argmax(1), others[: len(theirs)])
    share, error = inside - outside, math.hypot(error, other_error)
    if share < max(0.05, 3 * error):
        return None
    margin = ours.amax(1) - ours.gather(1, labels[:, None])[:, 0]
    doubtful = margin.argsort(descending=True)[: round(share * len(ids))]
    doubtful = doubtful[guesses[doubtful] != labels[doubtful]]
    names = ids[doubtful]
    return Suspicion(
        "label_noise",
        min(0.8, 0.5 + share),
        (
            Evidence(
                f"share of training labels that {seen.learner} contradicts", inside, f"{outside:.2g}, as held out"
            ),
            Evidence("rows whose label is likely wrong", len(names), 0),
            Evidence("the first of them", ", ".join(str(k) for k in sorted(names.tolist())[:5])),
        ),
        f"What {seen.learner} learns from the other training rows contradicts {inside:.0%} of the training labels, and "
        f"only {outside:.0%} of the held-out ones: about {share:.0%} of the training labels are wrong.",
        (_relabelled(exam, names, guesses[doubtful]), _unlabelled(names)),
        proof=share > max(0.1, 4 * error),
        advice="Look at the rows listed by eye before anything is dropped.",
    )


def _by_class(outputs: Tensor, exam: Examination) -> Tensor:
    """One column a class."""
    if outputs.shape[1] > 1:
        return outputs
    low, high = exam.case.yardstick.values
    share = (outputs - low) / (high - low)
    return torch.cat([1 - share, share], 1)


def _contradicted(guesses: Tensor, labels: Tensor) -> tuple[float, float]:
    """Share of labels that are not what was guessed, averaged over the classes that have rows enough; and its error."""
    wrong = (guesses != labels).double()
    shares = [wrong[labels == k] for k in torch.unique(labels).tolist() if int((labels == k).sum()) >= 3]
    if not shares:
        return 0.0, math.inf
    variance = sum(max(float(s.mean() * (1 - s.mean())), 1 / len(s)) / len(s) for s in shares)
    return sum(float(s.mean()) for s in shares) / len(shares), math.sqrt(variance) / len(shares)


def _deep(exam: Examination, ids: Tensor, guesses: Tensor) -> tuple[Tensor, Tensor]:
    """What most neighbours' guesses say of each row, and the rows whose neighbours, and theirs, all say the same."""
    every = features(exam.case.train.inputs)
    assert every is not None
    rows = every[ids]
    scale = rows.std(0, correction=0)
    rows = ((rows - rows.mean(0)) / torch.where(scale > 0, scale, torch.ones_like(scale))).float()
    near = torch.cdist(rows, rows).topk(min(11, len(rows)), largest=False).indices
    guesses = nn.functional.one_hot(guesses)[near].sum(1).argmax(1)
    alike = (guesses[near] == guesses[:, None]).all(1)
    return guesses, alike[near].all(1)


def _relabelled(exam: Examination, names: Tensor, guesses: Tensor) -> Remedy:
    work, values = exam.case.yardstick.work, exam.case.yardstick.values
    order = names.argsort()
    names, guesses = names[order], guesses[order]

    def edit(rows: Rows) -> Rows:
        if rows.ids is None:
            return rows
        place = torch.searchsorted(names, rows.ids).clamp_max(len(names) - 1)
        hit = names[place] == rows.ids
        targets, found = rows.targets.clone(), guesses[place][hit]
        if work == "one_hot":
            targets[hit] = nn.functional.one_hot(found, targets.shape[1]).to(targets.dtype)
        elif work == "binary":
            both = torch.tensor(values, dtype=targets.dtype)
            targets[hit] = both[found].reshape(targets[hit].shape)
        else:
            targets[hit] = found.to(targets.dtype).reshape(targets[hit].shape)
        return replace(rows, targets=targets)

    code = "y[doubtful] = label_of_most_neighbours[doubtful]  # after looking at them"
    return Remedy(
        "give doubtful rows the label of the rows around them",
        code,
        on_rows=edit,
        costs=True,
        place="labels",
        order=ROWS,
    )


def _unlabelled(names: Tensor) -> Remedy:
    def edit(rows: Rows) -> Rows:
        return rows if rows.ids is None else only(rows, (~torch.isin(rows.ids, names)).nonzero().flatten())

    return Remedy(
        "leave out rows whose label is likely wrong",
        "X, y = X[~doubtful], y[~doubtful]",
        on_rows=edit,
        costs=True,
        place="labels",
        order=ROWS,
    )
