"""The commands that take a program or data: they train, measure the learning rate, search for a recipe, examine."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from fogline.cli.errors import BAD_RUN, DONE, told_plainly
from fogline.cli.options import (
    RECIPE,
    USUAL,
    JsonOption,
    ProcessesOption,
    RecipeOption,
    ReportOption,
    RestartsOption,
    RunsOption,
    TargetOption,
    Text,
    ValidOption,
    WhatArgument,
    Whole,
    recipe_options,
)
from fogline.cli.sources import Program


@recipe_options(*RECIPE)
def train(
    what: WhatArgument,
    target: TargetOption = None,
    valid: ValidOption = None,
    recipe: RecipeOption = None,
    runs: RunsOption = Path("runs"),
    name: Annotated[Text, typer.Option(metavar="NAME", help="The name of the run folder.")] = None,
    report: ReportOption = None,
    ui: Annotated[bool, typer.Option("--ui", help="Show it in the browser meanwhile, and stay until Ctrl-C.")] = False,
    processes: ProcessesOption = 1,
    restarts: RestartsOption = 0,
    **fields: Any,
) -> None:
    """Train a model and say how it went.

    TASK.py defines `task = fogline.Task(...)` and, if it likes, `recipe = fogline.Recipe(...)`. A table or a folder
    of images gets a model, a loss and metrics that fit it. Options win over --recipe, which wins over TASK.py.
    """
    options = fields.pop("option") or ()
    program = Program(what, target, valid, recipe, fields, options)
    with told_plainly():
        launched = "TORCHELASTIC_RUN_ID" in os.environ  # this is one of the processes
        if processes > 1 and not launched:
            from fogline.cli.processes import check, launch

            check(program)
            with _in_the_browser(runs, ui) as stay:
                code = launch(processes, restarts, sys.argv[1:])
                stay()
            raise typer.Exit(code)
        with _in_the_browser(runs, ui and not launched) as stay:
            from fogline.cli.training import told
            from fogline.cli.training import train as run_training

            code = told(run_training(program, runs, name), report)
            stay()
        raise typer.Exit(code)


def _in_the_browser(runs: Path, wanted: bool) -> AbstractContextManager[Callable[[], None]]:
    """The dashboard while a block runs, where it is wanted; gives what waits for its end."""
    if not wanted:
        return nullcontext(lambda: None)
    from fogline.dashboard.beside import beside

    return beside(runs, typer.echo)


@recipe_options(*(name for name in USUAL if name != "lr"))
def find_lr(
    what: WhatArgument,
    target: TargetOption = None,
    valid: ValidOption = None,
    recipe: RecipeOption = None,
    as_json: JsonOption = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Also draw the measurement.")] = None,
    **fields: Any,
) -> None:
    """Measure the learning rate, as `train` does where it is not given, and train nothing.

    The measurement is that of the run which the same arguments would train.
    """
    with told_plainly():
        import fogline
        from fogline.cli.rate import print_rate
        from fogline.cli.sources import task_and_recipe

        rate = fogline.find_lr(*task_and_recipe(Program(what, target, valid, recipe, fields)))
        print_rate(rate, as_json=as_json)
        if plot is not None:
            from fogline.plots import CAPTIONS
            from fogline.plots.report import write_figure

            written = write_figure(rate.plot, plot, title=f"Learning rate for {what.stem}", caption=CAPTIONS["rate"])
            if not as_json:
                typer.echo(f"figure: {written}")


@recipe_options(*USUAL)
def tune(
    what: WhatArgument,
    search: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=RANGE", help="log(LOW,HIGH), between(LOW,HIGH), [A,B,...]; also lr=auto."),
    ] = None,
    trials: Annotated[Whole, typer.Option(metavar="COUNT", help="The most trials that are begun.")] = None,
    budget: Annotated[Text, typer.Option(metavar="COST", help="20 (whole trials), 20000st or 30min.")] = None,
    method: Annotated[str, typer.Option(metavar="NAME", help="gp, tpe, cmaes or random.")] = "gp",
    pruning: Annotated[str, typer.Option(metavar="NAME", help="asha, hyperband or none.")] = "asha",
    workers: Annotated[int, typer.Option(metavar="COUNT", help="Processes of this machine.")] = 1,
    together: Annotated[bool, typer.Option("--together/--apart", help="Small models share a program.")] = True,
    storage: Annotated[Text, typer.Option(metavar="ADDRESS", help="postgresql://... for many machines.")] = None,
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the best recipe as .toml or .json.")] = None,
    as_json: JsonOption = False,
    target: TargetOption = None,
    valid: ValidOption = None,
    recipe: RecipeOption = None,
    runs: RunsOption = Path("runs"),
    name: Annotated[Text, typer.Option(metavar="NAME", help="Of the search and its folder.")] = None,
    **fields: Any,
) -> None:
    """Search for the recipe with the lowest held-out loss.

    TASK.py defines `task`, or a function `make_task(...)` whose arguments the search may choose too; and, if it likes,
    `recipe` and `space`. The same command goes on with a search that was stopped; other machines join by --storage.
    """
    with told_plainly():
        from fogline.cli.tuning import print_tuned, wait_for_others
        from fogline.cli.tuning import tune as run_search

        tuned = run_search(
            Program(what, target, valid, recipe, fields),
            search or (),
            budget=budget,
            workers=workers,
            as_json=as_json,
            trials=trials,
            method=method,
            pruning=pruning,
            together=together,
            storage=storage,
            runs=runs,
            name=name,
        )
        wait_for_others()
        print_tuned(tuned, as_json=as_json, recipe_to=save)


@recipe_options(*USUAL)
def doctor(
    what: Annotated[
        Path,
        typer.Argument(
            metavar="TASK.py|DATA.csv|DATA.parquet|IMAGE_FOLDER|RUN", help="A program, or a run by folder or name."
        ),
    ],
    budget: Annotated[float, typer.Option(metavar="TIMES", help="Spend at most this many times the run itself.")] = 1.0,
    fix: Annotated[bool, typer.Option("--fix", help="Train the remedied program as a new run.")] = False,
    as_json: JsonOption = False,
    report: ReportOption = None,
    target: TargetOption = None,
    valid: ValidOption = None,
    recipe: RecipeOption = None,
    runs: RunsOption = Path("runs"),
    **fields: Any,
) -> None:
    """Find out why a program does not learn, and prove the remedy by a controlled re-run.

    Exit code 1 says that something is wrong, 0 that nothing is.
    """
    with told_plainly():
        from fogline.cli.doctor import examine
        from fogline.cli.saying import say

        found, mended = examine(Program(what, target, valid, recipe, fields), runs, budget, fix=fix)
        say(found.to_json() if as_json else str(found))
        if report is not None:
            written = found.html(report)
            if not as_json:
                typer.echo(f"report: {written}")
        if mended is not None and not as_json:
            from fogline.cli.showing import print_ending

            print_ending(mended.folder)
        raise typer.Exit(BAD_RUN if found.verdict == "faulty" and mended is None else DONE)


def demo(
    runs: RunsOption = Path("runs"),
    report: Annotated[Path | None, typer.Option("--report", metavar="FILE", help="DIR/demo.html if not given.")] = None,
) -> None:
    """Train on two real data sets that scikit-learn brings along: breast cancer and handwritten digits."""
    with told_plainly():
        from fogline.demo import demo as run_demo

        run_demo(runs=runs, report=report or runs / "demo.html", say=typer.echo)
