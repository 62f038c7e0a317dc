"""The runs of a folder: found by name, and listed."""

from __future__ import annotations

import sys
from pathlib import Path

from fogline.cli.saying import say
from fogline.errors import did_you_mean
from fogline.record.store import read_info, reading
from fogline.words import moment, number, scores_text, verdict_name

COLUMNS = ("name", "verdict", "steps", "loss", "scores", "when")


def find_run(run: str, runs: Path) -> Path:
    """The folder of a run given by its path, or by its name in ``runs``.

    Raises:
        FileNotFoundError: neither is there; names the nearest.
    """
    for folder in (Path(run), runs / run):
        if (folder / "run.json").is_file():
            return folder
    names = run_folders(runs)
    hint = did_you_mean(run, [folder.name for folder in names]) if names else f"there are no runs in {runs}"
    raise FileNotFoundError(f"expected a run folder or the name of a run in {runs}, received {run!r}: {hint}")


def run_folders(runs: Path) -> list[Path]:
    """The run folders in a folder, by name."""
    return sorted(file.parent for file in runs.glob("*/run.json"))


def run_names(incomplete: str) -> list[str]:
    """Names for shell completion."""
    return [folder.name for folder in run_folders(Path("runs")) if folder.name.startswith(incomplete)]


def print_runs(runs: Path) -> None:
    """Print the table of the runs in a folder, newest last; tab-separated where nobody looks on.

    Raises:
        FileNotFoundError: the folder is not there.
    """
    if not runs.is_dir():
        raise FileNotFoundError(f"expected a folder of runs, found none at {runs}; `fogline train` makes one")
    rows = sorted((_row(folder) for folder in run_folders(runs)), key=lambda row: row[-1])
    if not rows:
        say(f"no runs in {runs}")
    elif sys.stdout.isatty():
        _print_table(rows)
    else:
        say("\t".join(COLUMNS))
        for row in rows:
            say("\t".join(row))


def _print_table(rows: list[tuple[str, ...]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in COLUMNS:
        folds = column in ("name", "scores")
        table.add_column(
            column, justify="right" if column in ("steps", "loss") else "left", overflow="fold", no_wrap=not folds
        )
    for row in rows:
        # To the minute: the seconds cost a narrow terminal a second line.
        table.add_row(*(Text(cell) for cell in (*row[:-1], row[-1][:16])))
    Console().print(table)


def _row(folder: Path) -> tuple[str, ...]:
    try:
        info = read_info(folder)
        step, loss = last_step(folder)
    except ValueError as error:
        return (folder.name, f"unreadable: {error}", "", "", "", "")
    return (
        folder.name,
        verdict_name(info.get("verdict")),
        str(info.get("steps", "") if info.get("verdict") or step is None else step),
        "" if loss is None else number(loss),
        scores_text(info.get("scores") or {}),
        moment(info.get("started")),
    )


def last_step(folder: Path) -> tuple[int | None, float | None]:
    """The number of steps done and the last loss, of a run that is finished or still going on."""
    if not (folder / "run.sqlite").exists():
        return None, None
    with reading(folder) as connection:
        row = connection.execute("select step, loss from steps order by step desc limit 1").fetchone()
    return (None, None) if row is None else (row[0], row[1])
