"""The demonstration: two real data sets, two models, no hyper-parameter typed in."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

import fogline
from fogline.errors import needed
from fogline.record.store import Store

if TYPE_CHECKING:
    from fogline.run import Run

Say = Callable[[str], None]


@dataclass(frozen=True)
class Example:
    """A task with data kept back for the end.

    Attributes:
        task: what is trained, with its held-out data.
        test: (inputs, targets) that nothing has looked at: neither training, nor choosing, nor standardising.
        sentence: what it is about.
    """

    task: fogline.Task
    test: tuple[Tensor, Tensor]
    sentence: str


def demo(*, runs: str | Path = "runs", report: str | Path = "runs/demo.html", say: Say = print) -> list[Run]:
    """Train both examples, say how each went and how it does on data kept back, and write one report.

    Args:
        runs: the folder the two run folders go into.
        report: the HTML file.
        say: is given each line of text.

    Returns:
        The two runs.

    Raises:
        ModuleNotFoundError: scikit-learn, which brings the data, is not installed.
    """
    needed("sklearn", "demo", "scikit-learn")
    finished = []
    for position, make in enumerate((breast_cancer, digits), start=1):
        example = make()
        say(f"{position}/2 {example.sentence}")
        begin = time.perf_counter()
        with _one_thread():
            run = fogline.fit(example.task, runs=runs)
        seconds = time.perf_counter() - begin
        score = accuracy_on(run, example.test)
        say(f"    {run.verdict}")
        say(f"    test accuracy {score:.3f} on {len(example.test[1])} examples kept back until now ({seconds:.1f} s)")
        say(f"    run: {run.folder}\n")
        finished.append(run)
    from fogline.plots.report import write_report

    path = write_report(finished, report, title="Fogline demo: breast cancer and handwritten digits")
    say(f"curves, recipes and verdicts of both, in one file: {path}")
    say(f"look closer with: fogline runs {runs}; fogline show {finished[0].folder}")
    return finished


def breast_cancer() -> Example:
    """Logistic regression: is a breast mass malignant or benign, from 30 measurements of its cell nuclei?"""
    from sklearn.datasets import load_breast_cancer

    inputs, labels = load_breast_cancer(return_X_y=True)
    train, valid, test = _split(inputs, labels, per_column=True)
    task = fogline.Task(
        model=lambda: nn.Linear(30, 2),
        loss=nn.CrossEntropyLoss(),
        train=train,
        valid=valid,
        metrics={"accuracy": accuracy},
        name="breast-cancer",
    )
    sentence = f"breast cancer: logistic regression on 30 measurements of {len(train[1])} breast masses"
    return Example(task, test, sentence)


def digits() -> Example:
    """A small convolutional network: which digit is on an image of 8 x 8 pixels?"""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    train, valid, test = _split(images.reshape(-1, 1, 8, 8), labels, per_column=False)
    task = fogline.Task(
        model=_digits_network,
        loss=nn.CrossEntropyLoss(),
        train=train,
        valid=valid,
        metrics={"accuracy": accuracy},
        name="digits",
    )
    return Example(task, test, f"handwritten digits: a small CNN on {len(train[1])} images of 8 x 8 pixels")


def _digits_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),  # (n, 16, 8, 8)
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),  # (n, 32, 8, 8)
        nn.ReLU(),
        nn.MaxPool2d(2),  # (n, 32, 4, 4)
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


def accuracy(
    outputs: Tensor,  # (n, classes)
    targets: Tensor,  # (n,)
) -> Tensor:
    """The share of examples whose largest output is that of their class.

    >>> float(accuracy(torch.eye(3), torch.tensor([0, 1, 1])))
    0.6666666865348816
    """
    return (outputs.argmax(dim=1) == targets).float().mean()


def accuracy_on(run: Run, test: tuple[Tensor, Tensor]) -> float:
    """The accuracy of a run's kept weights on data kept back; also written into the run, as the split ``test``."""
    inputs, targets = test
    with torch.no_grad():
        outputs = run.model(inputs.to(next(run.model.parameters()).device)).cpu()
    score = float(accuracy(outputs, targets))
    store = Store(run.folder)
    store.scores(int(run.info["steps"]), "test", {"accuracy": score})
    store.close()
    return score


def _split(inputs: Any, labels: Any, *, per_column: bool) -> Sequence[tuple[Tensor, Tensor]]:
    """60 % to train, 20 % to choose the weights by, 20 % kept back; classes in equal shares; seeded.

    Inputs are standardised with the mean and deviation of the training part, each column by itself or all together.
    """
    from sklearn.model_selection import train_test_split

    index = np.arange(len(labels))
    rest, test = train_test_split(index, test_size=0.2, stratify=labels, random_state=0)
    train, valid = train_test_split(rest, test_size=0.25, stratify=labels[rest], random_state=0)
    axis = 0 if per_column else None
    mean, deviation = inputs[train].mean(axis=axis), inputs[train].std(axis=axis)
    scaled = torch.tensor((inputs - mean) / deviation, dtype=torch.float32)
    targets = torch.tensor(labels, dtype=torch.int64)
    return [(scaled[part], targets[part]) for part in (train, valid, test)]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let PyTorch work with one thread: for models this small a second one mostly waits.

    On two busy cores the network of the digits took 143 s with two threads and 20 s with one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
