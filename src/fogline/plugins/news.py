"""What a run has to tell a logger: its numbers by step, its findings and its recipe, at once or as they come."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from fogline.record.store import STEP_COLUMNS, read_info, read_table
from fogline.run import Run

_SIGNALS = [name for name in STEP_COLUMNS if name not in ("step", "epoch", "examples", "seconds")]
_EVERY, _PATIENCE = 1.0, 600.0


@dataclass(frozen=True)
class Number:
    """One value of a series.

    Attributes:
        name: of the series: ``train/loss``, ``train/grad_norm``, ``valid/accuracy``, ...
        step: of the optimizer, as in the run.
        time: when, in seconds since 1970.
        value: finite or infinite, never NaN: what was not measured is left out.
    """

    name: str
    step: int
    time: float
    value: float


@dataclass(frozen=True)
class News:
    """What came since the last time.

    Attributes:
        numbers: of every series in the order of their steps.
        findings: each with ``step``, ``cause``, ``severity``, ``text``.
        info: the contents of ``run.json``.
        last: nothing more will come.
    """

    numbers: list[Number]
    findings: list[dict[str, Any]]
    info: dict[str, Any]
    last: bool


@dataclass
class _Place:
    """How far a run was told: the last step of each series, and how many findings."""

    steps: dict[str, int] = field(default_factory=dict)
    findings: int = 0


def news(
    run: Run | str | Path, *, live: bool = False, every: float = _EVERY, patience: float = _PATIENCE
) -> Iterator[News]:
    """What a run has to tell: all there is, and with ``live`` what comes until it has ended.

    Args:
        run: finished or not, or its folder.
        live: whether to wait for more.
        every: seconds between two looks.
        patience: seconds without anything new after which a run is taken for one that was killed.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    folder, place = run.folder if isinstance(run, Run) else Path(run), _Place()
    heard = time.monotonic()
    while True:
        info = read_info(folder)  # before the rows: those of a run that has ended are all there
        ended = not live or info.get("verdict") is not None or "ended" in info
        numbers, findings = _numbers(folder, info, place), _findings(folder, place)
        if numbers or findings:
            heard = time.monotonic()
        last = ended or time.monotonic() - heard > patience
        yield News(numbers, findings, info, last)
        if last:
            return
        time.sleep(every)


def _numbers(folder: Path, info: Mapping[str, Any], place: _Place) -> list[Number]:
    began = datetime.fromisoformat(info["started"]).timestamp() if "started" in info else time.time()
    found: list[Number] = []
    for signal in _SIGNALS:
        name = f"train/{signal}"
        table = read_table(folder, "steps", "step", ("step", "seconds", signal), signal, place.steps.get(name))
        rows = zip(table["step"].tolist(), table["seconds"].tolist(), table[signal].tolist(), strict=True)
        found += [Number(name, step, began + seconds, value) for step, seconds, value in rows]
    times = {number.step: number.time for number in found}
    latest = max(times.values(), default=began)
    scores = list(read_table(folder, "scores", "step, name"))
    for row in scores:
        name = f"{row['split']}/{row['name']}"
        if row["step"] > place.steps.get(name, -1) and row["value"] == row["value"]:
            found.append(Number(name, row["step"], times.get(row["step"], latest), row["value"]))
    for number in found:
        place.steps[number.name] = max(number.step, place.steps.get(number.name, -1))
    return sorted(found, key=lambda number: (number.step, number.name))


def _findings(folder: Path, place: _Place) -> list[dict[str, Any]]:
    rows = list(read_table(folder, "findings", "id"))[place.findings :]
    place.findings += len(rows)
    return [{key: row[key] for key in ("step", "cause", "severity")} | {"text": text_of(row["data"])} for row in rows]


def text_of(data: str) -> str:
    """A finding in words: what is wrong, and what to do."""
    found = json.loads(data)
    remedy = found.get("remedy") or {}
    advice = found.get("advice") or remedy.get("title") or ""
    return " ".join(part for part in (found.get("explanation", ""), f"Remedy: {advice}." if advice else "") if part)


def settings(info: Mapping[str, Any]) -> dict[str, str | float | int | bool]:
    """The recipe that was used and what it was used on, as flat plain values by name.

    >>> settings({"recipe": {"lr": 0.1, "options": {"betas": [0.9, 0.99]}, "clip": None}, "task": {"model": "MLP"}})
    {'lr': 0.1, 'options.betas': '[0.9, 0.99]', 'model': 'MLP'}
    """
    task = {key: info.get("task", {}).get(key) for key in ("model", "loss", "parameters")}
    versions = {f"versions.{key}": value for key, value in info.get("versions", {}).items()}
    found: dict[str, Any] = {}
    for key, value in (dict(info.get("recipe", {})) | task | versions).items():
        found |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {key: value}
    return {
        key: value if isinstance(value, str | float | int | bool) else str(value)
        for key, value in found.items()
        if value is not None
    }


def verdict_of(info: Mapping[str, Any]) -> tuple[str, str] | None:
    """Name and sentence of the verdict; None while there is none."""
    verdict = info.get("verdict")
    return None if verdict is None else (verdict["name"], verdict["message"])
