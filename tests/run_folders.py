"""Run folders as the engine leaves them, written by the real store, for tests of what people see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fogline.record import example_files
from fogline.record.store import Store, read_info, write_json
from fogline.verdict import Verdict


def make_run(
    folder: Path,
    *,
    losses: Sequence[float] = tuple(2.0 * 0.99**step + 0.1 for step in range(200)),
    verdict: Verdict | None = Verdict.NOISE_FLOOR,
    held_out: Mapping[int, float] | None = None,
    events: Sequence[tuple[int, str, str]] = (),
    source: Mapping[str, Any] | None = None,
    **info: Any,
) -> Path:
    """A run with these training losses, one a step, and its ``run.json``; returns the folder."""
    store = Store(folder)
    rows = []
    for step, loss in enumerate(losses):
        probed = step % 10 == 0
        update = (0.01, 0.002, 0.1, 0.5) if probed else (None,) * 4
        rows.append(
            (step, step / 20, 32 * step, 0.01 * step, loss, 0.1 * (1 - step / len(losses)), 1 / (step + 1), *update)
        )
    store.steps(rows)
    held_out = {99: 0.9, 199: 0.4} if held_out is None else held_out
    for step, value in held_out.items():
        store.scores(step, "valid", {"loss": value, "accuracy": 1 - value / 2})
    for step, kind, message in events:
        store.event(step, kind, message)
    values = list(held_out.values())
    store.write_info(
        {
            "format": 1,
            "name": folder.name,
            "task": {"model": "Linear", "loss": "CrossEntropyLoss", "parameters": 650, "train_examples": 640},
            "asked": {"optimizer": "auto", "lr": "auto", "batch_size": 32},
            "recipe": {"optimizer": "adamw", "lr": 0.0123456, "batch_size": 32, "duration": "10ep", "seed": 0},
            "resolved": {"lr": {"value": 0.0123456, "why": "measured by a sweep", "interval": [0.01, 0.02]}},
            "notes": ["the labels are numbers from 0 to 9"],
            "versions": {"torch": "2.13.0"},
            "hardware": {"machine": "x86_64"},
            "source": source,
            "started": "2026-11-22T10:00:00",
            "ended": "2026-11-22T10:01:00",
            "seconds": 60.0,
            "steps": len(losses),
            "verdict": None
            if verdict is None
            else {"name": verdict.name, "message": str(verdict), "evidence": {"slope": -0.1, "p": 0.03}},
            "scores": {"loss": min(values), "accuracy": 1 - min(values) / 2, "step": 199} if values else {},
            "watching": {"share": 0.013, "budget": 0.02},
            "mechanics": {"mode": "eager", "implementation_seconds": {"fused": 1e-4, "foreach": 2e-4}},
            **info,
        }
    )
    store.close()
    return folder


def noisy_losses(steps: int, seed: int = 0) -> list[float]:
    """A falling loss with the jitter of small batches."""
    jitter = np.random.default_rng(seed).lognormal(0, 0.25, steps)
    return [float(value) for value in (2.3 * np.exp(-np.arange(steps) / (steps / 5)) + 0.05) * jitter]


def race_evidence() -> dict[str, Any]:
    """What ``find_lr`` keeps of a race: five rates, the highest of them far too high and one lost."""
    return {
        "rule": "the winner, annealed",
        "planned_steps": 1000,
        "edge": None,
        "sweep": {"rates": [1e-4, 1e-3], "losses": [1.0, 0.9], "first": 1.0, "lowest": 1e-3, "blew_up": False},
        "race": {
            "steps": 3,
            "together": True,
            "why": "a step of 5 members in one program takes 1.5 times as long as a step of one",
            "before": 1.0,
            "gain": 0.6,
            "gain_error": 0.05,
            "rates": [0.001, 0.01, 0.1, 1.0, 10.0],
            "scores": [0.95, 0.7, 0.4, 2e9, None],
            "losses": [[1.0, 0.99, 0.97], [1.0, 0.9, 0.8], [1.0, 0.7, 0.45], [1.0, 30.0, 2e9], [1.0, None, None]],
        },
        "seconds": 0.1,
    }


def measured_rate(evidence: dict[str, Any] | None = None) -> dict[str, Any]:
    """The field ``resolved`` of a run whose learning rate was measured."""
    evidence = evidence or race_evidence()
    found = {"value": 0.05, "why": evidence["rule"], "interval": [0.0025, 1.0], "cost_steps": 40, "evidence": evidence}
    return {"lr": {**found, "warnings": ["noise: the winner's gain is uncertain"]}}


def finding(cause: str = "double_softmax", severity: str = "serious", **changes: Any) -> dict[str, Any]:
    """A finding as the table keeps it, with a trial over two seeds."""
    return {
        "cause": cause,
        "severity": severity,
        "confidence": 0.9,
        "evidence": [
            {"signal": "last operation", "value": "softmax", "expected": "logits", "step": None, "layer": "4"}
        ],
        "explanation": "The loss applies a second softmax.",
        "trial": {
            "seeds": [0, 1],
            "without": [0.2, 0.25],
            "with_it": [0.9, 0.92],
            "metric": "skill",
            "steps": 60,
            "effect": 0.685,
            "interval": [0.655, 0.715],
            "accepted": True,
        },
        "remedy": {"title": "leave out the softmax", "patch": "del model[4]"},
        "advice": "",
        **changes,
    }


def add_findings(folder: Path, findings: Sequence[tuple[int, Mapping[str, Any]]]) -> Path:
    """Findings at these steps, in a run that is there; returns the folder."""
    store = Store(folder)
    for step, found in findings:
        store.finding(step, found, found["explanation"])
    store.close()
    return folder


def add_layers(folder: Path, names: Sequence[str], steps: Sequence[int] = range(0, 100, 10)) -> Path:
    """Rows of these layers at these steps, in a run that is there; returns the folder."""
    store = Store(folder)
    store.layers([(step, name, 2.0, 0.5, 0.02 * (k + 1), 1.0, 0.25) for step in steps for k, name in enumerate(names)])
    store.close()
    return folder


def add_confusion(folder: Path, counts: Sequence[Sequence[int]]) -> Path:
    """A confusion matrix, in a run that is there; returns the folder."""
    store = Store(folder)
    pairs = [(row, column, value) for row, values in enumerate(counts) for column, value in enumerate(values) if value]
    store.confusion(pairs)
    store.close()
    return folder


def full_run(folder: Path) -> Path:
    """A run that has the data of every figure."""
    make_run(folder, resolved=measured_rate(), events=[(3, "note", "a word")])
    add_findings(folder, [(0, finding()), (120, finding("dead_units", "minor", trial=None))])
    add_layers(folder, ["0", "2"])
    return add_confusion(folder, [[9, 1], [2, 8]])


def write_epoch(folder: Path, epoch: int, step: int, columns: dict[str, Any]) -> None:
    """The file of an epoch, as the recorder writes it."""
    example_files.write(example_files.epoch_file(folder, epoch, step, columns))


def add_examples(
    folder: Path,
    count: int = 60,
    *,
    epochs: int = 8,
    classes: Sequence[str] = ("bird", "cat", "dog"),
    wrong: Sequence[int] = (3, 14, 27),
    seed: int = 0,
) -> Path:
    """What the examples of a classification did, in a run that is there; returns the folder.

    The labels are 0, 1, 2, 0, ...; the wrong ones are really of the next class, which the run says until its last
    epochs, in which it learns them by heart.
    """
    random, number = np.random.default_rng(seed), len(classes)
    targets = np.arange(count) % number
    truth = targets.copy()
    truth[list(wrong)] = (truth[list(wrong)] + 1) % number
    ease = random.uniform(1.5, 3.0, count)
    for epoch in range(epochs):
        share = (epoch + 1) / epochs
        logits = random.normal(0, 0.3, (count, number))
        logits[np.arange(count), truth] += 5 * share * ease
        if share > 0.8:
            logits[list(wrong), targets[list(wrong)]] += 9 * share * ease[list(wrong)]
        chances = np.exp(logits - logits.max(1, keepdims=True))
        chances /= chances.sum(1, keepdims=True)
        own, others = logits[np.arange(count), targets], logits.copy()
        others[np.arange(count), targets] = -np.inf
        mine, predicted = chances[np.arange(count), targets], logits.argmax(1)
        values = {
            "loss": -np.log(mine + 1e-6),
            "margin": own - others.max(1),
            "confidence": mine,
            "correct": predicted == targets,
            "gradient_norm": 2 * (1 - mine),
        }
        columns: dict[str, Any] = {name: column.astype(np.float16) for name, column in values.items()}
        write_epoch(folder, epoch, 10 * (epoch + 1), columns | {"predicted": predicted.astype(np.int16)})
    example_files.write(example_files.targets_file(folder, targets.astype(np.int64)))
    info = read_info(folder)
    about = {"kind": "classification", "count": count, "classes": list(classes)}
    write_json(folder / "run.json", info | {"examples": about})
    return folder
