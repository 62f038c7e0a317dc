"""The command line. PyTorch is imported by the commands that train, not by ``--help`` or by looking at runs."""

from __future__ import annotations

import os
import sys
import webbrowser
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fogline.cli.errors import BAD_RUN, DONE, show_own_frames, told_plainly
from fogline.cli.listing import find_run, run_names

if TYPE_CHECKING:
    from fogline.run import Run

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

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run folder, or the name of one in --runs.", autocompletion=run_names)
]
RunsOption = Annotated[Path, typer.Option("--runs", metavar="DIR", help="The folder that holds the run folders.")]
ReportOption = Annotated[Path | None, typer.Option("--report", metavar="FILE", help="Also write an HTML report.")]


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


def _recipe_option(text: str, metavar: str = "VALUE", *names: str) -> Any:
    return typer.Option(*names, help=text, metavar=metavar, rich_help_panel="Recipe", show_default=False)


Text = str | None
Whole = int | None
Real = float | None

WhatArgument = Annotated[
    Path, typer.Argument(metavar="TASK.py|DATA.csv|DATA.parquet|IMAGE_FOLDER", help="What is to be learned.")
]
TargetOption = Annotated[Text, typer.Option("--target", metavar="COLUMN", help="The column of a table to predict.")]
ValidOption = Annotated[Path | None, typer.Option("--valid", metavar="PATH", help="Held-out data of the same form.")]
RecipeOption = Annotated[Path | None, typer.Option("--recipe", metavar="FILE", help="A recipe as .toml or .json.")]
OptimizerOption = Annotated[Text, _recipe_option("adamw, momentum, lbfgs, ... or auto.", "NAME")]
BatchSizeOption = Annotated[Text, _recipe_option("Examples a step, full, or auto.", "SIZE")]
DurationOption = Annotated[Text, _recipe_option("20ep, 1000st, 5min or 1e6ex.", "DURATION")]
ScheduleOption = Annotated[Text, _recipe_option("constant, linear, cosine, one_cycle, wsd, plateau.", "NAME")]
WeightDecayOption = Annotated[Real, _recipe_option("Decay of matrices.", "DECAY")]
ClipOption = Annotated[Text, _recipe_option("Largest gradient norm, or adaptive.", "NORM")]
PrecisionOption = Annotated[Text, _recipe_option("auto, float32, float64, bf16 or fp16.", "NAME")]
SeedOption = Annotated[Whole, _recipe_option("Decides every random number of the run.", "SEED")]
ProcessesOption = Annotated[int, typer.Option("--processes", metavar="N", help="Train in so many processes.")]
RestartsOption = Annotated[
    int, typer.Option("--restarts", metavar="N", help="Start them again where one ends, at most so many times.")
]
DeviceOption = Annotated[Text, _recipe_option("auto, cpu, cuda, ...", "NAME")]


@app.command()
def train(
    what: WhatArgument,
    target: TargetOption = None,
    valid: ValidOption = None,
    recipe: RecipeOption = None,
    runs: RunsOption = Path("runs"),
    name: Annotated[str | None, typer.Option(metavar="NAME", help="The name of the run folder.")] = None,
    report: ReportOption = None,
    ui: Annotated[bool, typer.Option("--ui", help="Show it in the browser meanwhile, and stay until Ctrl-C.")] = False,
    optimizer: OptimizerOption = None,
    lr: Annotated[Text, _recipe_option("The learning rate, or auto.", "RATE")] = None,
    batch_size: BatchSizeOption = None,
    duration: DurationOption = None,
    schedule: ScheduleOption = None,
    warmup: Annotated[Text, _recipe_option("A share of the run, or a number of steps.", "SHARE")] = None,
    weight_decay: WeightDecayOption = None,
    option: Annotated[list[str] | None, _recipe_option("An option of the optimizer.", "NAME=VALUE")] = None,
    lr_scale: Annotated[list[str] | None, _recipe_option("A multiple of the rate for a part.", "MODULE=FACTOR")] = None,
    clip: ClipOption = None,
    accumulate: Annotated[Whole, _recipe_option("Batches that make one step.", "COUNT")] = None,
    ema: Annotated[Real, _recipe_option("Decay of the average of the weights.", "DECAY")] = None,
    precision: PrecisionOption = None,
    seed: SeedOption = None,
    shuffle: Annotated[bool | None, typer.Option("--shuffle/--no-shuffle", rich_help_panel="Recipe")] = None,
    guard: Annotated[bool | None, typer.Option("--guard/--no-guard", rich_help_panel="Recipe")] = None,
    validate_every: Annotated[Text, _recipe_option("How often the held-out data is scored.", "DURATION")] = None,
    patience: Annotated[Whole, _recipe_option("Validations without improvement before stopping.", "COUNT")] = None,
    checkpoint_every: Annotated[Text, _recipe_option("How often the run is saved.", "DURATION")] = None,
    keep: Annotated[Whole, _recipe_option("Checkpoints kept.", "COUNT")] = None,
    step: Annotated[Text, _recipe_option("auto, eager, compiled or chunked.", "MODE")] = None,
    workers: Annotated[Whole, _recipe_option("Processes that load data.", "COUNT")] = None,
    window: Annotated[Whole, _recipe_option("Rows shuffled together, of data larger than memory.", "ROWS")] = None,
    checkpoint_activations: Annotated[
        bool | None, typer.Option("--checkpoint-activations", rich_help_panel="Recipe", help="Compute them twice.")
    ] = None,
    watch: Annotated[Real, _recipe_option("Share of the time that signals may cost.", "SHARE")] = None,
    examples: Annotated[bool | None, typer.Option("--examples/--no-examples", rich_help_panel="Recipe")] = None,
    device: DeviceOption = None,
    parallel: Annotated[Text, _recipe_option("ddp or fsdp, of several processes.", "NAME")] = None,
    processes: ProcessesOption = 1,
    restarts: RestartsOption = 0,
) -> None:
    """Train a model and say how it went.

    TASK.py defines `task = fogline.Task(...)` and, if it likes, `recipe = fogline.Recipe(...)`. A table or a folder
    of images gets a model, a loss and metrics that fit it. Options win over --recipe, which wins over TASK.py.
    """
    fields = {key: value for key, value in locals().items() if key not in _NOT_RECIPE}
    with told_plainly():
        launched = "TORCHELASTIC_RUN_ID" in os.environ  # this is one of the processes
        if processes > 1 and not launched:
            from fogline.cli.processes import check, launch

            check(what, recipe, fields, option or ())
            with _in_the_browser(runs, ui) as stay:
                code = launch(processes, restarts, sys.argv[1:])
                stay()
            raise typer.Exit(code)
        with _in_the_browser(runs, ui and not launched) as stay:
            from fogline.cli.training import train as run_training

            ended = run_training(
                what,
                target=target,
                valid=valid,
                recipe_file=recipe,
                fields=fields,
                options=option or (),
                runs=runs,
                name=name,
            )
            code = _told(ended, report)
            stay()
        raise typer.Exit(code)


_NOT_RECIPE = (
    "what", "target", "valid", "recipe", "runs", "name", "report", "ui", "option", "processes", "restarts",
)  # fmt: skip


def _in_the_browser(runs: Path, wanted: bool) -> AbstractContextManager[Callable[[], None]]:
    """The dashboard while a block runs, where it is wanted; gives what waits for its end."""
    if not wanted:
        return nullcontext(lambda: None)
    from fogline.dashboard.beside import beside

    return beside(runs, typer.echo)


@app.command("lr")
def find_lr(
    what: WhatArgument,
    target: TargetOption = None,
    valid: ValidOption = None,
    recipe: RecipeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Also draw the measurement.")] = None,
    optimizer: OptimizerOption = None,
    batch_size: BatchSizeOption = None,
    duration: DurationOption = None,
    schedule: ScheduleOption = None,
    weight_decay: WeightDecayOption = None,
    clip: ClipOption = None,
    precision: PrecisionOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
) -> None:
    """Measure the learning rate, as `train` does where it is not given, and train nothing.

    The measurement is that of the run which the same arguments would train.
    """
    fields = {key: value for key, value in locals().items() if key not in (*_NOT_RECIPE, "as_json", "plot")}
    with told_plainly():
        from fogline.cli.rate import measure, print_rate

        rate = measure(what, target=target, valid=valid, recipe_file=recipe, fields=fields)
        print_rate(rate, as_json=as_json)
        if plot is not None:
            from fogline.plots import CAPTIONS
            from fogline.plots.report import write_figure

            written = write_figure(rate.plot, plot, title=f"Learning rate for {what.stem}", caption=CAPTIONS["rate"])
            if not as_json:
                typer.echo(f"figure: {written}")


@app.command()
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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    target: TargetOption = None,
    valid: ValidOption = None,
    recipe: RecipeOption = None,
    runs: RunsOption = Path("runs"),
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Of the search and its folder.")] = None,
    optimizer: OptimizerOption = None,
    lr: Annotated[Text, _recipe_option("The learning rate, or auto.", "RATE")] = None,
    batch_size: BatchSizeOption = None,
    duration: DurationOption = None,
    schedule: ScheduleOption = None,
    weight_decay: WeightDecayOption = None,
    clip: ClipOption = None,
    precision: PrecisionOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
) -> None:
    """Search for the recipe with the lowest held-out loss.

    TASK.py defines `task`, or a function `make_task(...)` whose arguments the search may choose too; and, if it likes,
    `recipe` and `space`. The same command goes on with a search that was stopped; other machines join by --storage.
    """
    own = ("search", "trials", "budget", "method", "pruning", "workers", "together", "storage", "save", "as_json")
    fields = {key: value for key, value in locals().items() if key not in (*_NOT_RECIPE, *own, "own")}
    with told_plainly():
        from fogline.cli.tuning import print_tuned, wait_for_others
        from fogline.cli.tuning import tune as run_search

        tuned = run_search(
            what,
            target=target,
            valid=valid,
            recipe_file=recipe,
            fields=fields,
            search=search or (),
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


@app.command()
def doctor(
    what: Annotated[
        Path,
        typer.Argument(
            metavar="TASK.py|DATA.csv|DATA.parquet|IMAGE_FOLDER|RUN", help="A program, or a run by folder or name."
        ),
    ],
    budget: Annotated[float, typer.Option(metavar="TIMES", help="Spend at most this many times the run itself.")] = 1.0,
    fix: Annotated[bool, typer.Option("--fix", help="Train the remedied program as a new run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    report: ReportOption = None,
    target: TargetOption = None,
    valid: ValidOption = None,
    recipe: RecipeOption = None,
    runs: RunsOption = Path("runs"),
    optimizer: OptimizerOption = None,
    lr: Annotated[Text, _recipe_option("The learning rate, or auto.", "RATE")] = None,
    batch_size: BatchSizeOption = None,
    duration: DurationOption = None,
    schedule: ScheduleOption = None,
    weight_decay: WeightDecayOption = None,
    clip: ClipOption = None,
    precision: PrecisionOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
) -> None:
    """Find out why a program does not learn, and prove the remedy by a controlled re-run.

    Exit code 1 says that something is wrong, 0 that nothing is.
    """
    not_recipe = (*_NOT_RECIPE, "budget", "fix", "as_json")
    fields = {key: value for key, value in locals().items() if key not in (*not_recipe, "not_recipe")}
    with told_plainly():
        from fogline.cli.doctor import examine, print_report

        found, mended = examine(
            what,
            target=target,
            valid=valid,
            recipe_file=recipe,
            fields=fields,
            runs=runs,
            budget=budget,
            fix=fix,
        )
        print_report(found, as_json=as_json)
        if report is not None:
            written = found.html(report)
            if not as_json:
                typer.echo(f"report: {written}")
        if mended is not None and not as_json:
            from fogline.cli.showing import print_ending

            print_ending(mended.folder)
        raise typer.Exit(BAD_RUN if found.verdict == "faulty" and mended is None else DONE)


@app.command()
def resume(
    run: RunArgument,
    duration: Annotated[str | None, typer.Option(metavar="LONGER", help="A longer duration, such as 40ep.")] = None,
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

        raise typer.Exit(_told(resume_training(folder, duration), report))


@app.command()
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


@app.command("runs")
def list_runs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that holds the run folders.")] = Path(
        "runs"
    ),
) -> None:
    """List the runs of a folder: verdict, steps, loss, scores and when."""
    from fogline.cli.listing import print_runs

    with told_plainly():
        print_runs(folder)


@app.command()
def show(run: RunArgument, runs: RunsOption = Path("runs")) -> None:
    """Show one run: verdict, scores, a chart of the loss, events."""
    from fogline.cli.showing import print_run

    with told_plainly():
        print_run(find_run(run, runs))


@app.command()
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


@app.command()
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
    task: Annotated[
        Path | None, typer.Option("--task", metavar="TASK.py", help="The task of a run that was started from Python.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Also draw it.")] = None,
    three: Annotated[bool, typer.Option("--3d", help="Draw it from the side.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    runs: RunsOption = Path("runs"),
) -> None:
    """Compute the error landscape around the path of a run, and keep it in its folder."""
    with told_plainly():
        from fogline.cli.landscape import look, print_landscape

        seen, folder = look(run, runs, task_file=task, span=span, points=points, examples=examples, seed=seed)
        print_landscape(seen, folder, as_json=as_json, plot=plot, three=three)


@app.command("examples")
def list_examples(
    run: RunArgument,
    task: Annotated[
        str | None,
        typer.Option("--task", metavar="FILE.py[:NAME]", help="The task of a run that was started from Python."),
    ] = None,
    data: Annotated[
        bool,
        typer.Option(
            "--data", help="Also look at the data itself: leaks, copies, outliers, pictures for the dashboard."
        ),
    ] = False,
    top: Annotated[int, typer.Option(metavar="COUNT", min=0, help="Label errors that are listed.")] = 20,
    sql: Annotated[
        str | None, typer.Option(metavar="SELECT", help="Ask the table `examples`, one row an example, in SQL.")
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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    runs: RunsOption = Path("runs"),
) -> None:
    """Tell what each training example of a run did: likely label errors, and what stands out.

    Edits are kept in the run folder; the data itself is never changed.
    """
    with told_plainly():
        from fogline.cli.examples import tell

        tell(
            run,
            runs,
            task_file=task,
            data=data,
            top=top,
            sql=sql,
            export=export,
            edit=edit,
            undo=undo,
            retrain=retrain,
            seeds=seeds,
            as_json=as_json,
        )


@app.command()
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
    task: Annotated[
        Path | None, typer.Option("--task", metavar="TASK.py", help="The task of a run that was started from Python.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    runs: RunsOption = Path("runs"),
) -> None:
    """Write the model of a run as a file for a device, and say what the file really does.

    Integers by default: after training, and by fine-tuning where that loses too much.
    """
    with told_plainly():
        from fogline.cli.edge import print_report, write

        made = write(
            run,
            runs,
            output=output,
            task_file=task,
            qat=qat,
            recipe_file=recipe,
            target=target,
            bits=bits,
            margin=margin,
            calibration=calibration,
            skip=skip or (),
            units=units or None,
            threads=threads,
        )
        print_report(made, as_json=as_json)


@app.command()
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


@app.command()
def demo(
    runs: RunsOption = Path("runs"),
    report: Annotated[Path | None, typer.Option("--report", metavar="FILE", help="DIR/demo.html if not given.")] = None,
) -> None:
    """Train on two real data sets that scikit-learn brings along: breast cancer and handwritten digits."""
    with told_plainly():
        from fogline.demo import demo as run_demo

        run_demo(runs=runs, report=report or runs / "demo.html", say=typer.echo)


def _told(run: Run, report: Path | None) -> int:
    """Say how the run ended, write the report if one is wanted; returns the exit code of the verdict."""
    from fogline.cli.showing import print_ending

    if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
        print_ending(run.folder)
        if report is not None:
            typer.echo(f"report: {run.report(report)}")
    verdict = run.verdict
    return BAD_RUN if verdict is not None and verdict.name in ("DIVERGED", "NONFINITE") else DONE
