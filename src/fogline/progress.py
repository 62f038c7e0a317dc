"""How far a run has come: the value the engine reports, and the bar that shows it in a terminal or a notebook."""

from __future__ import annotations

import importlib.util
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

REDRAW_SECONDS = 0.1
REDRAW_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class ProgressReport:
    """Where a run is, at one of its log points.

    Attributes:
        step: optimizer steps done.
        steps: optimizer steps planned, or None where the duration is measured in time or not known.
        fraction: share of the duration done, 0 to 1, or None where it is not known.
        loss: training loss of this step, averaged over its batch.
        lr: learning rate of this step.
        examples_per_second: training examples in a second, lately.
        epoch: passes over the training data done, or None for a stream.
        note: a word on what goes on besides training, such as "validating".

    >>> ProgressReport(step=20, steps=100, fraction=0.2, loss=0.5, lr=1e-3).percent
    20.0
    """

    step: int
    steps: int | None = None
    fraction: float | None = None
    loss: float = math.nan
    lr: float = math.nan
    examples_per_second: float = math.nan
    epoch: float | None = None
    note: str = ""

    @property
    def percent(self) -> float | None:
        """The share done in percent; taken from the steps where the engine gave no fraction."""
        if self.fraction is not None:
            return 100 * self.fraction
        return 100 * self.step / self.steps if self.steps else None


ProgressFunction = Callable[[ProgressReport], None]


def make_progress(
    show: bool | ProgressFunction | None = None, title: str = ""
) -> AbstractContextManager[ProgressFunction]:
    """A context whose value is called with a :class:`ProgressReport` at every log point.

    Args:
        show: True draws a bar on standard error, False draws nothing, None draws one only where somebody looks on
            (a terminal, or a notebook with ipywidgets); a function is called instead of drawing.
        title: what is written before the bar.

    >>> with make_progress(False) as progress:
    ...     progress(ProgressReport(step=1))
    """
    if callable(show):
        return nullcontext(show)
    if show or (show is None and _somebody_looks_on()):
        return bar(title)
    return nullcontext(_silent)


@contextmanager
def bar(title: str = "") -> Iterator[ProgressFunction]:
    """A bar on standard error with the loss, the learning rate, examples per second and the time left.

    It redraws at most ten times a second, and more rarely where drawing would take more than 1 % of the time.
    """
    with _columns() as progress:
        task = progress.add_task(title, total=None, details="", speed="")
        painter = _Painter(progress, task)
        try:
            yield painter
        finally:
            painter.finish()


class _Painter:
    """Keeps the latest report and draws it when the next drawing is due."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task
        self._due = 0.0
        self._latest: ProgressReport | None = None

    def __call__(self, report: ProgressReport) -> None:
        self._latest = report
        begin = time.perf_counter()
        if begin < self._due:
            return
        self._draw(report)
        end = time.perf_counter()
        self._due = end + max(REDRAW_SECONDS, (end - begin) / REDRAW_SHARE)

    def _draw(self, report: ProgressReport) -> None:
        percent = report.percent
        self._progress.update(
            self._task,
            completed=percent or 0.0,
            total=None if percent is None else 100.0,
            details=describe(report),
            speed=speed(report.examples_per_second),
        )
        self._progress.refresh()

    def finish(self) -> None:
        if self._latest is not None:
            self._draw(self._latest)


def describe(report: ProgressReport) -> str:
    """One line of plain text: the step, the loss, the learning rate and the note.

    >>> describe(ProgressReport(step=20, steps=100, loss=0.5, lr=1e-3, note="validating"))
    'step 20/100  loss 0.5000  lr 1.0e-03  validating'
    """
    parts = [f"step {report.step}" + (f"/{report.steps}" if report.steps else "")]
    if not math.isnan(report.loss):
        parts.append(f"loss {report.loss:.6g}" if abs(report.loss) >= 1000 else f"loss {report.loss:#.4g}")
    if not math.isnan(report.lr):
        parts.append(f"lr {report.lr:.1e}")
    if report.note:
        parts.append(report.note)
    return "  ".join(parts)


def speed(examples_per_second: float) -> str:
    """Examples per second in three digits.

    >>> speed(12345.0), speed(12.3), speed(float("nan"))
    ('12.3k ex/s', '12.3 ex/s', '')
    """
    if not math.isfinite(examples_per_second):
        return ""
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if examples_per_second >= limit:
            return f"{examples_per_second / limit:.3g}{unit} ex/s"
    return f"{examples_per_second:.3g} ex/s"


def _silent(report: ProgressReport) -> None:
    return None


def _somebody_looks_on() -> bool:
    in_notebook = "ipykernel" in sys.modules and importlib.util.find_spec("ipywidgets") is not None
    return in_notebook or (sys.stderr is not None and sys.stderr.isatty())


def _columns() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TimeRemainingColumn
    from rich.text import Text

    class Plain(ProgressColumn):
        """A field as it is: titles and notes come from the user and are no markup."""

        def __init__(self, field: str) -> None:
            super().__init__()
            self.field = field

        def render(self, task: Task) -> Text:
            return Text(task.description if self.field == "title" else task.fields[self.field], no_wrap=True)

    return Progress(
        Plain("title"),
        BarColumn(bar_width=10),
        TaskProgressColumn(),
        Plain("details"),
        Plain("speed"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        auto_refresh=False,
        transient=True,
    )
