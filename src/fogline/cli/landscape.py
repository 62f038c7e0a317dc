"""The command that looks at the error landscape of a run. Importing this module imports PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

import fogline
from fogline.cli.listing import find_run
from fogline.cli.sources import Program, task_of_run
from fogline.cli.training import train
from fogline.plots import CAPTIONS
from fogline.plots.report import write_figure

if TYPE_CHECKING:
    from fogline._landscape import Landscape

_PROGRAMS = (".py", ".csv", ".parquet")


def look(
    name: str, runs: Path, *, task_file: Path | None, span: str, points: int, examples: int, seed: int
) -> tuple[Landscape, Path]:
    """The landscape of a run, and its folder. A program or a table is trained first, as `fogline train` does.

    Args:
        name: of the run, its folder, or a task file or a table.
        runs: the folder that holds the run folders.
        task_file: of a run that was started from Python; others know where their task comes from.
        span, points, examples, seed: of :func:`fogline.landscape`.

    Raises:
        ValueError, TypeError, FileNotFoundError: for bad input.
    """
    if Path(name).suffix in _PROGRAMS:
        trained = train(Program(Path(name)), runs)
        return fogline.landscape(trained, span, points=points, examples=examples, seed=seed), trained.folder
    folder = find_run(name, runs)
    run = fogline.Run.open(folder, task=task_of_run(folder, task_file, "fogline.landscape(run)"))
    return fogline.landscape(run, span, points=points, examples=examples, seed=seed), folder


def print_landscape(seen: Landscape, folder: Path, *, as_json: bool, plot: Path | None, three: bool) -> None:
    """A few lines and where it was written, or JSON and nothing else; and the figure, if one is wanted."""
    if as_json:
        typer.echo(seen.to_json())
    else:
        for line in str(seen).split("; "):
            typer.echo(line)
        typer.echo(f"written: {folder / 'landscape.json'}")
    if plot is not None:
        kind, caption = ("3d", "landscape_3d") if three else ("contour", "landscape")
        title = f"Error landscape of {folder.name}"
        written = write_figure(lambda *, dark: seen.plot(kind, dark=dark), plot, title=title, caption=CAPTIONS[caption])
        if not as_json:
            typer.echo(f"figure: {written}")
