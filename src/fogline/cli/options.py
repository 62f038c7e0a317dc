"""Arguments and options that several commands share. Those of a recipe stand in one table, in the order of the help."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from fogline.cli.listing import run_names

Text = str | None
Whole = int | None
Real = float | None
Switch = bool | None

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run folder, or the name of one in --runs.", autocompletion=run_names)
]
WhatArgument = Annotated[
    Path, typer.Argument(metavar="TASK.py|DATA.csv|DATA.parquet|IMAGE_FOLDER", help="What is to be learned.")
]
RunsOption = Annotated[Path, typer.Option("--runs", metavar="DIR", help="The folder that holds the run folders.")]
ReportOption = Annotated[Path | None, typer.Option("--report", metavar="FILE", help="Also write an HTML report.")]
TargetOption = Annotated[Text, typer.Option("--target", metavar="COLUMN", help="The column of a table to predict.")]
ValidOption = Annotated[Path | None, typer.Option("--valid", metavar="PATH", help="Held-out data of the same form.")]
RecipeOption = Annotated[Path | None, typer.Option("--recipe", metavar="FILE", help="A recipe as .toml or .json.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
TaskOption = Annotated[
    Path | None, typer.Option("--task", metavar="TASK.py", help="The task of a run that was started from Python.")
]
ProcessesOption = Annotated[int, typer.Option("--processes", metavar="N", help="Train in so many processes.")]
RestartsOption = Annotated[
    int, typer.Option("--restarts", metavar="N", help="Start them again where one ends, at most so many times.")
]


def _field(text: str, metavar: str) -> Any:
    return typer.Option(help=text, metavar=metavar, rich_help_panel="Recipe", show_default=False)


def _switch(names: str, text: str | None = None) -> Any:
    return typer.Option(names, rich_help_panel="Recipe", help=text)


RECIPE: dict[str, Any] = {
    "optimizer": Annotated[Text, _field("adamw, momentum, lbfgs, ... or auto.", "NAME")],
    "lr": Annotated[Text, _field("The learning rate, or auto.", "RATE")],
    "batch_size": Annotated[Text, _field("Examples a step, full, or auto.", "SIZE")],
    "duration": Annotated[Text, _field("20ep, 1000st, 5min or 1e6ex.", "DURATION")],
    "schedule": Annotated[Text, _field("constant, linear, cosine, one_cycle, wsd, plateau.", "NAME")],
    "warmup": Annotated[Text, _field("A share of the run, or a number of steps.", "SHARE")],
    "weight_decay": Annotated[Real, _field("Decay of matrices.", "DECAY")],
    "option": Annotated[list[str] | None, _field("An option of the optimizer.", "NAME=VALUE")],
    "lr_scale": Annotated[list[str] | None, _field("A multiple of the rate for a part.", "MODULE=FACTOR")],
    "clip": Annotated[Text, _field("Largest gradient norm, or adaptive.", "NORM")],
    "accumulate": Annotated[Whole, _field("Batches that make one step.", "COUNT")],
    "ema": Annotated[Real, _field("Decay of the average of the weights.", "DECAY")],
    "precision": Annotated[Text, _field("auto, float32, float64, bf16 or fp16.", "NAME")],
    "seed": Annotated[Whole, _field("Decides every random number of the run.", "SEED")],
    "shuffle": Annotated[Switch, _switch("--shuffle/--no-shuffle")],
    "guard": Annotated[Switch, _switch("--guard/--no-guard")],
    "validate_every": Annotated[Text, _field("How often the held-out data is scored.", "DURATION")],
    "patience": Annotated[Whole, _field("Validations without improvement before stopping.", "COUNT")],
    "checkpoint_every": Annotated[Text, _field("How often the run is saved.", "DURATION")],
    "keep": Annotated[Whole, _field("Checkpoints kept.", "COUNT")],
    "step": Annotated[Text, _field("auto, eager, compiled or chunked.", "MODE")],
    "workers": Annotated[Whole, _field("Processes that load data.", "COUNT")],
    "window": Annotated[Whole, _field("Rows shuffled together, of data larger than memory.", "ROWS")],
    "checkpoint_activations": Annotated[Switch, _switch("--checkpoint-activations", "Compute them twice.")],
    "watch": Annotated[Real, _field("Share of the time that signals may cost.", "SHARE")],
    "examples": Annotated[Switch, _switch("--examples/--no-examples")],
    "device": Annotated[Text, _field("auto, cpu, cuda, ...", "NAME")],
    "parallel": Annotated[Text, _field("ddp or fsdp, of several processes.", "NAME")],
}
"""The option of every field of a recipe; ``option`` is an entry of its ``options``."""

USUAL = (
    "optimizer", "lr", "batch_size", "duration", "schedule", "weight_decay", "clip", "precision", "seed", "device",
)  # fmt: skip
"""The fields that commands have which train only on the way to something else."""

Command = TypeVar("Command", bound=Callable[..., None])


def recipe_options(*names: str) -> Callable[[Command], Command]:
    """Give a command options for these fields of a recipe, which it takes as ``**fields``: None where not given."""

    def given(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        own = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
        fields = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=RECIPE[name])
            for name in names
        ]
        command.__signature__ = signature.replace(parameters=[*own, *fields])  # type: ignore[attr-defined]
        return command

    return given
