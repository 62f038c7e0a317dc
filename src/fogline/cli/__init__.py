"""The command line. PyTorch is imported by the commands that train, not by ``--help`` or by looking at runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from fogline.cli import of_runs, programs
from fogline.cli.errors import show_own_frames
from fogline.cli.listing import run_names as run_names

EXIT_CODES = (
    "Exit codes: 0 done; 1 the run ended diverged or non-finite, or your own code failed; 2 bad input; "
    "74 the disk is full; 75 one of several processes is gone or late; 130 and 143 interrupted and saved."
)

app = typer.Typer(
    help="Fogline trains PyTorch models by gradient descent and says how it went.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The entry point of ``fogline`` and ``python -m fogline``."""
    sys.excepthook = show_own_frames
    # Calling the app itself would put Typer's own exception hook in the place of ours.
    typer.main.get_command(app)(prog_name="fogline")


def _print_version(asked: bool) -> None:
    if asked:
        from fogline import __version__

        typer.echo(f"fogline {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    return None


COMMANDS: dict[str, Callable[..., None]] = {
    "train": programs.train,
    "lr": programs.find_lr,
    "tune": programs.tune,
    "doctor": programs.doctor,
    "resume": of_runs.resume,
    "ui": of_runs.ui,
    "runs": of_runs.list_runs,
    "show": of_runs.show,
    "explain": of_runs.explain,
    "landscape": of_runs.landscape,
    "examples": of_runs.list_examples,
    "export": of_runs.export,
    "report": of_runs.report,
    "demo": programs.demo,
}
"""In the order of the help."""

for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
