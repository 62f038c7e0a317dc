"""The commands that take a run or a folder of runs: they go on with it, show it, look at it closely, make a file of it.

Each imports what it needs when it is called.
"""

from __future__ import annotations

import os
import sys
import webbrowser
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fogline.cli.errors import told_plainly
from fogline.cli.listing import find_run, run_names
from fogline.cli.options import (
    JsonOption,
    ProcessesOption,
    ReportOption,
    RestartsOption,
    RunArgument,
    RunsOption,
    TaskOption,
    Text,
)

_SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "executorch": ".pte"}


def resume(
    run: RunArgument,
    duration: Annotated[Text, typer.Option(metavar="LONGER", help="A longer duration, such as 40ep.")] = None,
    runs: RunsOption = Path("runs"),
    report: ReportOption = None,
    processes: ProcessesOption = 1,
    restarts: RestartsOption = 0,
) -> None:
    """Go on with an interrupted run, or train a finished one for longer."""
    with told_plainly():
        folder = find_run(run, runs)
        if processes > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
            from fogline.cli.processes import launch

            raise typer.Exit(launch(processes, restarts, sys.argv[1:]))
        from fogline.cli.training import resume as resume_training
        from fogline.cli.training import told

        raise typer.Exit(told(resume_training(folder, duration), report))


def ui(
    folder: Annotated[
        Path, typer.Argument(metavar="RUNS", help="The folder that holds the run folders, or one run folder.")
    ] = Path("runs"),
    port: Annotated[int, typer.Option(metavar="PORT", help="Of 127.0.0.1; a free one if it is in use.")] = 7333,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open a browser.")] = True,
    attached: Annotated[bool, typer.Option("--attached", hidden=True)] = False,
) -> None:
    """Show runs in the browser, live while they train. Only this machine can open it."""
    from fogline.dashboard.server import serve

    with told_plainly():
        serve(folder, port=port, browser=browser, say=typer.echo, attached=attached)


def list_runs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that holds the run folders.")] = Path(
        "runs"
    ),
) -> None:
    """List the runs of a folder: verdict, steps, loss, scores and when."""
    from fogline.cli.listing import print_runs

    with told_plainly():
        print_runs(folder)


def show(run: RunArgument, runs: RunsOption = Path("runs")) -> None:
    """Show one run: verdict, scores, a chart of the loss, events."""
    from fogline.cli.showing import print_run

    with told_plainly():
        print_run(find_run(run, runs))


def explain(
    cause: Annotated[
        str, typer.Argument(metavar="CAUSE", help="The name of a finding.", autocompletion=lambda: list(_causes()))
    ],
) -> None:
    """Tell more about a cause: what people see, what is going on, how to see it, the fix, a program."""
    from rich.console import Console
    from rich.markdown import Markdown

    from fogline.explained import entry

    with told_plainly():
        Console().print(Markdown(entry(cause)))


def _causes() -> tuple[str, ...]:
    from fogline.explained import names

    return names()


def landscape(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN|TASK.py",
            help="A run folder, or the name of one in --runs; a task file is trained first.",
            autocompletion=run_names,
        ),
    ],
    span: Annotated[str, typer.Option(metavar="PLANE", help="path, filter or hessian.")] = "path",
    points: Annotated[int, typer.Option(metavar="COUNT", help="Grid lines a side.")] = 49,
    examples: Annotated[int, typer.Option(metavar="COUNT", help="Training examples that the loss is taken of.")] = 1024,
    seed: Annotated[int, typer.Option(metavar="SEED", help="Decides the examples and random directions.")] = 0,
    task: TaskOption = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Also draw it.")] = None,
    three: Annotated[bool, typer.Option("--3d", help="Draw it from the side.")] = False,
    as_json: JsonOption = False,
    runs: RunsOption = Path("runs"),
) -> None:
    """Compute the error landscape around the path of a run, and keep it in its folder."""
    with told_plainly():
        import fogline
        from fogline.cli.sources import Program, task_of_run

        if Path(run).suffix in (".py", ".csv", ".parquet"):
            from fogline.cli.training import train

            seen_run = train(Program(Path(run)), runs)
        else:
            folder = find_run(run, runs)
            seen_run = fogline.Run.open(folder, task=task_of_run(folder, task, "fogline.landscape(run)"))
        seen = fogline.landscape(seen_run, span, points=points, examples=examples, seed=seed)
        told = [*str(seen).split("; "), f"written: {seen_run.folder / 'landscape.json'}"]
        typer.echo(seen.to_json() if as_json else "\n".join(told))
        if plot is not None:
            from fogline.plots import CAPTIONS
            from fogline.plots.report import write_figure

            kind, caption = ("3d", "landscape_3d") if three else ("contour", "landscape")
            title = f"Error landscape of {seen_run.name}"
            written = write_figure(partial(seen.plot, kind), plot, title=title, caption=CAPTIONS[caption])
            if not as_json:
                typer.echo(f"figure: {written}")


def list_examples(
    run: RunArgument,
    task: Annotated[
        Text, typer.Option("--task", metavar="FILE.py[:NAME]", help="The task of a run that was started from Python.")
    ] = None,
    data: Annotated[
        bool,
        typer.Option(
            "--data", help="Also look at the data itself: leaks, copies, outliers, pictures for the dashboard."
        ),
    ] = False,
    top: Annotated[int, typer.Option(metavar="COUNT", min=0, help="Label errors that are listed.")] = 20,
    sql: Annotated[
        Text, typer.Option(metavar="SELECT", help="Ask the table `examples`, one row an example, in SQL.")
    ] = None,
    export: Annotated[Path | None, typer.Option(metavar="FILE", help="Write that table as .csv or .parquet.")] = None,
    edit: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="relabel|drop|keep IDS",
            help="Decide about examples: 3,17,20-25; 3=cat,17=dog to relabel; likely:50 for the likeliest errors.",
        ),
    ] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Take back what was decided last.")] = False,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Train with the edits and without, and compare held-out scores.")
    ] = False,
    seeds: Annotated[int, typer.Option(metavar="COUNT", min=1, help="Of --retrain: twice as many runs.")] = 3,
    as_json: JsonOption = False,
    runs: RunsOption = Path("runs"),
) -> None:
    """Tell what each training example of a run did: likely label errors, and what stands out.

    Edits are kept in the run folder; the data itself is never changed.
    """
    with told_plainly():
        from fogline.cli import examples as told

        folder, out = find_run(run, runs), told.Out(as_json)
        wanted = data or retrain or task is not None
        given, recipe = told.task_of(folder, task) if wanted else (None, None)
        if retrain:
            told.retrained(folder, given, recipe, seeds, out)
            return
        if undo:
            told.undo(folder, out)
        seen = told.opened(folder, given)
        if edit is not None:
            told.edit(folder, seen, *edit)
        if edit is not None or undo:
            told.edits(folder, out)
        if sql is not None:
            told.print_table(seen.sql(sql), out)
        if export is not None:
            out.add("exported", str(seen.export(export)), f"written: {export}")
        if sql is None and export is None and edit is None and not undo:
            told.listed(folder, seen, top, out, data=given is not None)
        out.end()


def export(
    run: RunArgument,
    output: Annotated[
        Path | None, typer.Option("-o", "--out", "--output", metavar="FILE", help="RUN/model.onnx if not given.")
    ] = None,
    target: Annotated[str, typer.Option(metavar="NAME", help="onnx, openvino or executorch.")] = "onnx",
    bits: Annotated[int, typer.Option(metavar="BITS", help="Of weights: 32 (float), 8, or 4 on ExecuTorch.")] = 8,
    qat: Annotated[
        str, typer.Option(metavar="auto|none", help="Fine-tune while rounding where rounding loses too much.")
    ] = "auto",
    recipe: Annotated[
        Path | None, typer.Option("--recipe", metavar="FILE", help="Fine-tune by this recipe in any case.")
    ] = None,
    margin: Annotated[float, typer.Option(metavar="SHARE", help="Share of the score that may be lost.")] = 0.005,
    calibration: Annotated[int, typer.Option(metavar="COUNT", help="Training examples that ranges are of.")] = 512,
    skip: Annotated[list[str] | None, typer.Option(metavar="LAYER", help="Leave a layer in float; repeatable.")] = None,
    units: Annotated[list[str] | None, typer.Option(metavar="UNIT", help="Unit of an output; repeatable.")] = None,
    threads: Annotated[int, typer.Option(metavar="COUNT", help="Threads that the latency is measured with.")] = 1,
    task: TaskOption = None,
    as_json: JsonOption = False,
    runs: RunsOption = Path("runs"),
) -> None:
    """Write the model of a run as a file for a device, and say what the file really does.

    Integers by default: after training, and by fine-tuning where that loses too much.
    """
    with told_plainly():
        import fogline
        from fogline.cli.sources import healed_task_of_run, read_recipe

        folder = find_run(run, runs)
        if qat not in ("auto", "none"):
            raise ValueError(f"--qat: expected auto or none, received {qat!r}; a recipe is given with --recipe FILE")
        tuning = read_recipe(recipe) if recipe is not None else "auto" if qat == "auto" else None
        path = output or folder / f"model{_SUFFIXES.get(target, '.onnx')}"
        made = fogline.export(
            fogline.Run.open(folder, task=healed_task_of_run(folder, task, "fogline.export(run, path)")),
            path,
            target,
            bits,
            tuning,  # type: ignore[arg-type]
            margin=margin,
            calibration=calibration,
            skip=skip or (),
            units=units or None,
            threads=threads,
        )
        typer.echo(made.to_json() if as_json else str(made))


def report(
    run: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Run folders, or names of runs in --runs.", autocompletion=run_names),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", "--output", metavar="FILE", help="RUN/report.html if not given; DIR/report.html for several."
        ),
    ] = None,
    show_it: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    runs: RunsOption = Path("runs"),
) -> None:
    """Write one self-contained HTML file with verdict, findings, figures, recipe and events; several runs compared."""
    with told_plainly():
        folders = [find_run(name, runs) for name in run]
        from fogline.plots.report import write_report
        from fogline.run import Run

        path = output or (folders[0] if len(folders) == 1 else runs) / "report.html"
        typer.echo(write_report([Run.open(folder) for folder in folders], path))
        if show_it and not webbrowser.open(path.resolve().as_uri()):
            typer.echo("no browser was found here", err=True)
