"""From what stands on the command line to a task and a recipe, and back again when a run is resumed."""

from __future__ import annotations

import importlib.util
import json
import sys
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fogline.errors import did_you_mean

if TYPE_CHECKING:
    from fogline.recipe import Recipe
    from fogline.task import Task

MODULE = "_fogline_task"


def describe_source(path: Path, target: str | None, valid: Path | None) -> dict[str, Any]:
    """What ``run.json`` keeps so that ``fogline resume`` finds the task again: absolute paths and the target."""
    return {
        "kind": "task" if path.suffix == ".py" else "data",
        "path": str(path.resolve()),
        "target": target,
        "valid": None if valid is None else str(valid.resolve()),
    }


@dataclass(frozen=True)
class Program:
    """What a command is to work on, as it was given on the command line.

    Attributes:
        what: a task file, a table or a folder of images.
        target: the column of a table to predict.
        valid: held-out data of the same form.
        recipe_file: as .toml or .json.
        fields: of the recipe, None where not given.
        options: of the optimizer, each NAME=VALUE.
    """

    what: Path
    target: str | None = None
    valid: Path | None = None
    recipe_file: Path | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    options: Sequence[str] = ()

    def is_task_file(self) -> bool:
        """Whether it is a task file, which says itself what its data is.

        Raises:
            ValueError, FileNotFoundError: it is not there, or more was said than it can take.
        """
        existing(self.what, "a task file, a table or a folder of images")
        if self.what.suffix != ".py":
            return False
        if self.target is not None or self.valid is not None:
            where = f"say them in {self.what}, in its Task(...)"
            raise ValueError(f"--target and --valid are for tables and images: {where}")
        return True

    def source(self) -> dict[str, Any]:
        """What ``run.json`` keeps of it."""
        return describe_source(self.what, self.target, self.valid)

    def recipe(self, own: Recipe | None) -> Recipe:
        """The fields win over the recipe file, which wins over the task file's ``own`` recipe.

        Raises:
            ValueError, TypeError, FileNotFoundError: for bad input.
        """
        from fogline.recipe import Recipe

        asked = own if self.recipe_file is None else read_recipe(self.recipe_file)
        return with_fields(asked or Recipe(), self.fields, self.options)


def task_and_recipe(program: Program) -> tuple[Task, Recipe]:
    """What a program stands for.

    Raises:
        ValueError, TypeError, FileNotFoundError: for bad input.
    """
    if program.is_task_file():
        task, recipe = load_task_file(program.what)
        return task, program.recipe(recipe)
    held_out = None if program.valid is None else str(existing(program.valid, "held-out data"))
    return data_task(program.what, program.target, held_out), program.recipe(None)


def task_from_source(source: Mapping[str, Any] | None, run: Path) -> tuple[Task, Recipe | None]:
    """The task a run was made from, and the recipe of its file if that has one.

    Raises:
        ValueError: the run was started from Python, so no file says what its task is.
        FileNotFoundError: the file or folder is no longer there.
    """
    if source and source.get("kind") == "remedied":
        raise ValueError(
            f"expected a run of a program as it stands in its file, received {run}, whose program was mended by "
            "`fogline doctor --fix`; put the patches it printed into the file and train that"
        )
    if not source or source.get("kind") not in ("task", "data"):
        raise ValueError(
            f"expected a run started by `fogline train`, received {run}, which was started from Python; "
            f"resume it there: fogline.resume({str(run)!r}, task)"
        )
    path = existing(Path(source["path"]), "the task file or data of this run")
    if source["kind"] == "task":
        return load_task_file(path)
    return data_task(path, source.get("target"), source.get("valid")), None


def task_of_run(folder: Path, task_file: Path | None, instead: str) -> Task:
    """The task of a run: of the file that is named, else as the run was started.

    Args:
        instead: the call that does without, for a run that was started from Python.

    Raises:
        ValueError, TypeError, FileNotFoundError: there is none.
    """
    from fogline.record.store import read_info

    if task_file is not None:
        return load_task_file(existing(task_file, "a task file"))[0]
    source = read_info(folder).get("source")
    if not source:
        raise ValueError(
            f"expected a run started by `fogline train`, received {folder}, which was started from Python; "
            f"name the file that makes its task with --task FILE.py, or call {instead} there"
        )
    return task_from_source(source, folder)[0]


def healed_task_of_run(folder: Path, task_file: Path | None, instead: str) -> Task:
    """:func:`task_of_run`, with the remedies that the run was trained with."""
    from fogline.doctor.healing import Healing
    from fogline.record.store import read_info

    task, healed = task_of_run(folder, task_file, instead), read_info(folder).get("healed")
    return task if task_file is not None or healed is None else Healing.again(task, healed).task


def data_task(path: Path, target: str | None, valid: str | None) -> Task:
    """A task with the model, loss and metrics that fit the data."""
    from fogline.task import Task

    return Task(train=str(path), valid=valid, target=target, name=path.stem)


def load_task_file(path: Path, called: str = "task") -> tuple[Task, Recipe | None]:
    """Run a Python file under a private name, with its folder importable, and take ``task`` and ``recipe`` from it.

    Args:
        path: of the file.
        called: the name of its task.

    Raises:
        ValueError: the file has no ``task``; says what it has.
        TypeError: ``task`` is no ``fogline.Task``, or ``recipe`` no ``fogline.Recipe``.
    """
    from fogline.recipe import Recipe
    from fogline.task import Task

    module = load_module(path)
    if not hasattr(module, called):
        names = [name for name in vars(module) if not name.startswith("_")]
        raise ValueError(
            f"expected {path} to define `{called} = fogline.Task(...)`, found no `{called}` in it"
            + (f"; it defines {', '.join(names)}" if names else "; it defines nothing")
        )
    task, recipe = getattr(module, called), getattr(module, "recipe", None)
    if not isinstance(task, Task):
        raise TypeError(f"expected `{called}` in {path} to be a fogline.Task, received {_kind(task)}")
    if not (recipe is None or isinstance(recipe, Recipe)):
        raise TypeError(f"expected `recipe` in {path} to be a fogline.Recipe, received {_kind(recipe)}")
    return task, recipe


def load_module(path: Path) -> ModuleType:
    """Run a Python file under a private name, with its folder importable.

    Raises:
        ValueError: it is no Python file.
    """
    spec = importlib.util.spec_from_file_location(MODULE, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"expected a Python file, received {path}")
    module = importlib.util.module_from_spec(spec)
    # Worker processes and pickled classes look the module up by its name.
    sys.modules[MODULE] = module
    # The folder stays importable after loading: the task's functions may import when they are called.
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec.loader.exec_module(module)
    return module


def _kind(value: object) -> str:
    return f"the class {value.__qualname__}" if isinstance(value, type) else f"a {type(value).__name__}"


def read_recipe(path: Path) -> Recipe:
    """A recipe from a TOML or JSON file.

    Raises:
        ValueError: the file is neither, or cannot be parsed; a field is unknown or cannot be used.
    """
    from fogline.recipe import Recipe

    text = existing(path, "the recipe").read_text()
    try:
        if path.suffix == ".toml":
            return Recipe.from_toml(text)
        if path.suffix == ".json":
            return Recipe.from_json(text)
    except (json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"expected {path.suffix[1:].upper()} in {path}, received text that is not: {error}") from error
    raise ValueError(f"expected a recipe file that ends in .toml or .json, received {path}")


def with_fields(recipe: Recipe, fields: Mapping[str, Any], options: Sequence[str] = ()) -> Recipe:
    """The recipe with the fields that were given; texts such as ``"1e-3"`` become numbers where they are.

    Raises:
        ValueError, TypeError: a value cannot be used, or an option is not NAME=VALUE.
    """
    changes = {name: plain_value(value) for name, value in fields.items() if value is not None}
    if "lr_scale" in changes:
        changes["lr_scale"] = {**recipe.lr_scale, **dict(_factor(text) for text in changes["lr_scale"])}
    if options:
        changes["options"] = {**recipe.options, **dict(_option(text) for text in options)}
    return recipe.replace(**changes)


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise ValueError(f"expected an option as NAME=VALUE, such as betas=[0.9,0.95], received {text!r}")
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError:
        parsed = value
    return name, tuple(parsed) if isinstance(parsed, list) else parsed


def _factor(text: str) -> tuple[str, Any]:
    name, equals, value = text.rpartition("=")
    if not (name and equals):
        raise ValueError(
            f"expected a part of the model and a factor as MODULE=FACTOR, such as head=10, received {text!r}"
        )
    return name, plain_value(value)


def plain_value(text: Any) -> Any:
    """A whole number, else a number, else the text itself.

    >>> plain_value("64"), plain_value("1e-3"), plain_value("auto"), plain_value(None)
    (64, 0.001, 'auto', None)
    """
    if not isinstance(text, str):
        return text
    for convert in (int, float):
        with suppress(ValueError):
            return convert(text)
    return text


def existing(path: Path, what: str) -> Path:
    """The path, if something is there.

    Raises:
        FileNotFoundError: nothing is there; names the nearest neighbour.
    """
    if path.exists():
        return path
    parent = path.parent
    if not parent.is_dir():
        raise FileNotFoundError(f"expected {what} at {path}, but there is no folder {parent}")
    near = did_you_mean(path.name, sorted(child.name for child in parent.iterdir()))
    hint = f": {near}" if near.startswith("did") else ""
    raise FileNotFoundError(f"expected {what} at {path}, found nothing there{hint}")
