from __future__ import annotations

from pathlib import Path

import pytest

from fogline.cli.sources import (
    describe_source,
    existing,
    load_task_file,
    plain_value,
    read_recipe,
    task_from_source,
    with_fields,
)
from fogline.recipe import Recipe

TASK = """
import torch
from neighbour import width
import fogline
from fogline.task import Task
from fogline.recipe import Recipe

task = Task(torch.nn.Linear(width, 1), torch.nn.MSELoss(), (torch.randn(8, width), torch.randn(8, 1)))
"""


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("width = 3\n")
    path = tmp_path / "my task.py"
    path.write_text(TASK)
    return path


def test_a_task_file_is_loaded_with_its_neighbours(task_file: Path) -> None:
    task, recipe = load_task_file(task_file)
    assert task.train[0].shape == (8, 3)
    assert recipe is None


def test_a_task_file_may_bring_a_recipe(task_file: Path) -> None:
    task_file.write_text(TASK + "recipe = Recipe(lr=0.5)\n")
    assert load_task_file(task_file)[1] == Recipe(lr=0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = 1\ndef make(): ...\n", "found no `task` in it; it defines model, make"),
        ("", "it defines nothing"),
        ("task = 3\n", "to be a fogline.Task, received a int"),
        ("from fogline.task import Task\ntask = Task\n", "received the class Task"),
        (TASK + "recipe = {}\n", "to be a fogline.Recipe, received a dict"),
    ],
)
def test_a_task_file_without_a_task_says_what_it_has(task_file: Path, text: str, message: str) -> None:
    task_file.write_text(text)
    with pytest.raises((ValueError, TypeError)) as error:
        load_task_file(task_file)
    assert message in str(error.value)


def test_a_run_finds_its_task_again(task_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(task_file.parent)
    source = describe_source(Path(task_file.name), None, None)
    monkeypatch.chdir("/")
    task, _ = task_from_source(source, Path("run"))
    assert task.train[0].shape == (8, 3)


def test_a_run_on_a_table_finds_it_again(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("a,b\n1,2\n")
    task, recipe = task_from_source(describe_source(table, "b", table), Path("run"))
    assert (task.train, task.valid, task.target, recipe) == (str(table), str(table), "b", None)


@pytest.mark.parametrize("source", [None, {}, {"kind": "something else"}])
def test_a_run_from_python_is_resumed_from_python(source: dict[str, str] | None) -> None:
    with pytest.raises(ValueError, match=r"fogline\.resume\('runs/x', task\)"):
        task_from_source(source, Path("runs/x"))


def test_data_that_has_gone_is_named(tmp_path: Path) -> None:
    source = describe_source(tmp_path / "tables.csv", "b", None)
    (tmp_path / "table.csv").touch()
    with pytest.raises(FileNotFoundError, match=r"did you mean 'table\.csv'"):
        task_from_source(source, Path("run"))


@pytest.mark.parametrize("write", ["to_toml", "to_json"])
def test_recipes_are_read_back(tmp_path: Path, write: str) -> None:
    recipe = Recipe(optimizer="sgd", lr=0.1, options={"momentum": 0.9})
    path = tmp_path / f"recipe.{write[3:]}"
    path.write_text(getattr(recipe, write)())
    assert read_recipe(path) == recipe


@pytest.mark.parametrize(("name", "text"), [("r.toml", "lr = = 1"), ("r.json", "{"), ("r.yaml", ""), ("r.json", "{}x")])
def test_a_broken_recipe_file_is_an_error(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="expected"):
        read_recipe(tmp_path / name)


def test_texts_become_the_values_they_stand_for() -> None:
    recipe = with_fields(
        Recipe(seed=3),
        {"lr": "1e-3", "batch_size": "full", "warmup": "50", "clip": None},
        ["betas=[0.9,0.95]", "x=abc"],
    )
    assert (recipe.lr, recipe.batch_size, recipe.warmup, recipe.seed) == (1e-3, "full", 50, 3)
    assert recipe.options == {"betas": (0.9, 0.95), "x": "abc"}
    assert isinstance(plain_value("50"), int)


def test_an_option_needs_a_value() -> None:
    with pytest.raises(ValueError, match="NAME=VALUE"):
        with_fields(Recipe(), {}, ["betas"])


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        existing(tmp_path / "no" / "x.csv", "a table")
