"""What else ranks labels: cleanlab on out-of-fold probabilities, and what is read off the same record."""

from __future__ import annotations

import time

import numpy as np
import torch
import torch.nn.functional as F

from fogline import Examples
from labels_parts.problems import Problem, seeded

try:
    from cleanlab.count import num_label_issues
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores
except ImportError:
    num_label_issues = find_label_issues = get_label_quality_scores = None

FOLDS = 5
BATCH = 64


def average_precision(wrong: np.ndarray, score: np.ndarray) -> float:
    """Mean precision over the wrong ones, in the order of falling score.

    >>> average_precision(np.array([True, False, True]), np.array([3.0, 2.0, 1.0])).__round__(3)
    0.833
    """
    order = np.argsort(-score, kind="stable")
    hits = wrong[order]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].mean())


def f1(wrong: np.ndarray, flagged: np.ndarray) -> float:
    """2 P R / (P + R)."""
    return float(2 * (wrong & flagged).sum() / max(wrong.sum() + flagged.sum(), 1))


def area_under_curve(positive: np.ndarray, negative: np.ndarray) -> float:
    """The chance that a positive score is above a negative one, ties counted half."""
    above = (positive[:, None] > negative[None]).mean()
    return float(above + 0.5 * (positive[:, None] == negative[None]).mean())


def from_the_record(examples: Examples) -> dict[str, np.ndarray]:
    """Scores by name that need nothing but the recorded epochs."""
    record = examples.record
    half = max(1, len(record.epochs) // 2)
    margin = sum(values.astype(np.float64) for values in record.over("margin", half)) / half
    return {
        "margin, first half": -margin,
        "last-epoch loss": record.values("loss", -1).astype(np.float64),
        "forgetting events": examples.table["forgetting"].astype(np.float64),
    }


def out_of_fold(problem: Problem, rate: float, seed: int) -> tuple[np.ndarray, float]:
    """Probabilities (N, classes) of models that did not see the example, and the processor seconds they took.

    The model, the epochs, the batch size and the learning rate are those of the run; the loop is a plain one.
    """
    started = time.process_time()
    inputs, labels = torch.from_numpy(problem.inputs), torch.from_numpy(problem.labels)
    fold = np.random.default_rng(seed).permutation(len(labels)) % FOLDS
    found = np.zeros((len(labels), problem.classes))
    for number in range(FOLDS):
        inside = torch.from_numpy(np.flatnonzero(fold != number))
        model = train(problem, inputs[inside], labels[inside], rate, seed + number)
        with torch.no_grad():
            held = torch.from_numpy(np.flatnonzero(fold == number))
            outputs = torch.cat([model(part).softmax(1) for part in inputs[held].split(1000)])
        found[fold == number] = outputs.numpy()
    return found, time.process_time() - started


def train(problem: Problem, inputs: torch.Tensor, labels: torch.Tensor, rate: float, seed: int) -> torch.nn.Module:
    """AdamW, its rate falling to zero linearly."""
    model = seeded(problem.model, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, fused=True)
    steps = problem.epochs * -(-len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(problem.epochs):
        for index in torch.randperm(len(labels)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[index]), labels[index]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def cleanlab(problem: Problem, probabilities: np.ndarray) -> dict[str, float]:
    """What cleanlab makes of them: the better of its two scores, its count, its own cut, its seconds."""
    started = time.process_time()
    labels, wrong = problem.labels, problem.wrong
    scores = {
        method: get_label_quality_scores(labels, probabilities, method=method)
        for method in ("self_confidence", "normalized_margin")
    }
    flagged = find_label_issues(labels, probabilities)
    count = num_label_issues(labels, probabilities)
    seconds = time.process_time() - started
    return {
        "average_precision": max(average_precision(wrong, -score) for score in scores.values()) if wrong.any() else 1.0,
        "f1": f1(wrong, flagged),
        "count": float(count),
        "seconds": seconds,
    }
