"""The run folders of a folder: found by name and never by path, summed up, and looked at for changes."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fogline.dashboard.reading import last_step, reading, sampled_losses
from fogline.descent.interrupts import STOP
from fogline.words import verdict_tone

if TYPE_CHECKING:
    from fogline.dashboard.thinned import Thinner, View

ALIVE = 120.0  # seconds without a sign after which a run without a verdict is no longer taken for training
_MOST_INFO = 32 * 2**20  # bytes of a run.json
_THINNERS = 8
_WATCHED = ("run.json", "run.sqlite", "run.sqlite-wal", STOP, "landscape.json", "examples")

Stamp = tuple[tuple[int, int], ...]


class NoRunError(LookupError):
    """There is no run of that name in the folder."""


@dataclass(frozen=True)
class Summary:
    """What a row of the table says of a run.

    Attributes:
        name: of its folder.
        info: its ``run.json``; empty where that cannot be read.
        problem: why it cannot be read, or empty.
        steps, loss: done, and of the last of them.
        losses: some of them, for a small line.
        findings: how many.
        sign: when it last wrote something, in seconds since 1970.
        stopping: it was asked to stop and has not yet.
    """

    name: str
    info: dict[str, Any]
    problem: str
    steps: int | None
    loss: float | None
    losses: tuple[float, ...]
    findings: int
    sign: float
    stopping: bool

    @property
    def verdict(self) -> Mapping[str, Any] | None:
        """The verdict in ``run.json``; None while it trains."""
        return mapping(self.info.get("verdict")) or None

    @property
    def alive(self) -> bool:
        """Whether it has no verdict and wrote something a short time ago."""
        return not self.problem and self.verdict is None and time.time() - self.sign < ALIVE

    @property
    def state(self) -> str:
        """``good``, ``warn`` or ``bad`` by its verdict; ``live``, ``silent`` or ``unreadable`` without one."""
        if self.problem:
            return "unreadable"
        if self.verdict is None:
            return "live" if self.alive else "silent"
        return verdict_tone(self.verdict)


class Folder:
    """The folder that holds the run folders.

    Args:
        root: its path.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._summaries: dict[str, tuple[Stamp, Summary]] = {}
        self._thinners: OrderedDict[str, dict[str, Thinner]] = OrderedDict()
        self._keeping = threading.Lock()  # requests are answered by several threads

    def names(self) -> list[str]:
        """The runs there are."""
        if not self.root.is_dir():
            return []
        return sorted(entry.name for entry in os.scandir(self.root) if self._holds_run(entry.name))

    def path(self, name: str) -> Path:
        """The folder of a run.

        Raises:
            NoRunError: it is no plain name of a run folder here, or its files lie elsewhere.
        """
        if not self._holds_run(name):
            raise NoRunError(f"expected the name of a run in this folder, received {name!r}")
        return self.root / name

    def _holds_run(self, name: str) -> bool:
        """A plain name, a real folder right here, and files that are no links to other places."""
        if not name or name.startswith(".") or "\0" in name or Path(name).name != name or "\\" in name:
            return False
        folder = self.root / name
        inside = [folder, *(folder / file for file in _WATCHED)]
        return (folder / "run.json").is_file() and not any(path.is_symlink() for path in inside)

    def stamp(self, name: str) -> Stamp:
        """What differs as soon as the run has written something."""
        return tuple(_changed(self.root / name / file) for file in _WATCHED)

    def view(self, name: str) -> View:
        """The run for pages and figures.

        Raises:
            NoRunError: there is none.
            ValueError: its ``run.json`` cannot be read.
        """
        from fogline.dashboard.thinned import View

        folder = self.path(name)
        info, problem = _read_info(folder)
        if problem:
            raise ValueError(f"the run {name!r} cannot be shown: {problem}")
        with self._keeping:
            thinners = self._thinners[name] = self._thinners.pop(name, {})
            while len(self._thinners) > _THINNERS:
                self._thinners.popitem(last=False)
        return View(folder, info, thinners)

    def summary(self, name: str) -> Summary:
        """What the table says of a run; read anew only where it has written something.

        Raises:
            NoRunError: there is none.
        """
        folder, stamp = self.path(name), self.stamp(name)
        known = self._summaries.get(name)
        if known is None or known[0] != stamp:
            known = self._summaries[name] = (stamp, _summary(folder))
        return known[1]

    def summaries(self) -> list[Summary]:
        """Of all runs, the latest first."""
        found = [summary for name in self.names() if (summary := self.found(name)) is not None]
        return sorted(found, key=lambda each: (started(each.info), each.name), reverse=True)

    def found(self, name: str) -> Summary | None:
        """The summary of a run; None where there is no such run, or no longer."""
        with suppress(NoRunError):
            return self.summary(name)
        return None


class Watch:
    """Which runs changed since it was asked last.

    Args:
        folder: of the runs.
        only: the name of the one that is looked at; all if None.
        since: a moment in seconds since 1970; what wrote something after it counts as changed at the first question.
    """

    def __init__(self, folder: Folder, only: str | None = None, since: float = math.inf) -> None:
        self.folder, self.only = folder, only
        self._seen = {name: seen for name, (*seen, sign) in self._now().items() if sign < since}

    def _now(self) -> dict[str, tuple[Stamp, str, float]]:
        names = [self.only] if self.only else self.folder.names()
        there = {name: summary for name in names if (summary := self.folder.found(name)) is not None}
        return {name: (self.folder.stamp(name), each.state, each.sign) for name, each in there.items()}

    def changes(self) -> tuple[list[str], list[str]]:
        """The names of the runs that are new or wrote something or fell silent, and of those that are gone."""
        before, now = self._seen, {name: seen for name, (*seen, _) in self._now().items()}
        self._seen = now
        return [name for name in now if now[name] != before.get(name)], [name for name in before if name not in now]


def mapping(value: Any) -> dict[str, Any]:
    """The value where it is a mapping, else none: a ``run.json`` may hold anything."""
    return value if isinstance(value, dict) else {}


def started(info: Mapping[str, Any]) -> str:
    """When a run began, as text that sorts."""
    return str(info.get("started") or "")


def _changed(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    # Opening a database makes an empty log beside it: that is no news.
    return (found.st_mtime_ns, found.st_size) if found.st_size or path.name == STOP else (0, 0)


def _read_info(folder: Path) -> tuple[dict[str, Any], str]:
    """The contents of ``run.json``, or why it has none."""
    path = folder / "run.json"
    try:
        if path.stat().st_size > _MOST_INFO:
            return {}, "its run.json is too large"
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}, "its run.json cannot be read"
    return (found, "") if isinstance(found, dict) else ({}, "its run.json holds no run")


def _summary(folder: Path) -> Summary:
    info, problem = _read_info(folder)
    steps, loss, losses, findings = None, None, [], 0
    try:
        with reading(folder, "steps", "findings") as connection:
            steps, loss = last_step(connection)
            losses = sampled_losses(connection)
            findings = connection.execute("select count(*) from findings").fetchone()[0]
    except (sqlite3.Error, TypeError):
        problem = problem or "its run.sqlite cannot be read"
    if mapping(info.get("verdict")) and isinstance(info.get("steps"), int):
        steps = info["steps"]
    else:
        steps = None if steps is None else steps + 1
    sign = max(_changed(folder / name)[0] for name in ("run.json", "run.sqlite", "run.sqlite-wal")) / 1e9
    stopping = (folder / STOP).exists()
    return Summary(folder.name, info, problem, steps, loss, tuple(losses), findings, sign, stopping)
