"""What examples look like is kept small, and is what they looked like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from torch import nn
from torch.utils.data import Dataset

import fogline
from fogline._examples import looks
from fogline._examples.looks import keep_looks
from fogline.data.intake import open_data
from fogline.record import previews
from fogline.record.previews import MOST_BYTES, Previews, read_previews, write_previews
from run_folders import add_examples, make_run


def seen(task: fogline.Task, first: tuple[int, ...] = ()) -> Previews:
    found = looks.looks(open_data(task), first)
    assert found is not None
    return found


def labelled(inputs: Any) -> fogline.Task:
    return fogline.Task(nn.Flatten(), nn.CrossEntropyLoss(), (inputs, torch.arange(len(inputs)) % 2))


def ramp(*shape: int) -> torch.Tensor:
    count = int(np.prod(shape))
    return (torch.arange(count) % 256).reshape(shape).to(torch.uint8)


@pytest.mark.parametrize(
    ("make", "tolerance"),
    [
        (lambda pixels: pixels, 0),
        (lambda pixels: pixels.float(), 0),
        (lambda pixels: pixels.float() / 255, 0),
        (lambda pixels: pixels.double() / 255, 0),
        (lambda pixels: (pixels.float() / 255 - 0.4) / 0.3, 3),
    ],
)
def test_thumbnails_of_grey_images_are_their_pixels(make: Any, tolerance: int) -> None:
    pixels = ramp(20, 1, 16, 16)
    found = seen(labelled(make(pixels)))
    assert (found.kind, found.pixels is not None and found.pixels.shape) == ("images", (20, 16, 16, 1))
    assert found.pixels is not None
    assert np.abs(found.pixels[..., 0].astype(int) - pixels[:, 0].numpy()).max() <= tolerance
    np.testing.assert_array_equal(found.ids, range(20))


def test_images_that_were_laid_out_as_columns_are_known_by_their_background() -> None:
    pixels = ramp(20, 16, 16).float()
    pixels[:, :9] = 0
    found = seen(labelled(pixels.flatten(1)))
    assert found.pixels is not None
    np.testing.assert_array_equal(found.pixels[..., 0], pixels.numpy())


def test_colours_stay_in_their_channels() -> None:
    pixels = torch.zeros(4, 3, 16, 16)
    pixels[:, 1] = 1.0
    found = seen(labelled(pixels))
    assert found.pixels is not None
    assert found.pixels[0, 3, 3].tolist() == [0, 255, 0]


def test_large_images_are_reduced_to_64_pixels_and_few_enough() -> None:
    found = seen(labelled(torch.rand(3, 3, 100, 200)))
    assert found.pixels is not None
    assert found.pixels.shape == (3, 32, 64, 3)
    assert previews.most_images(64, 64, 3) * (64 * 64 * 3 + 8) <= MOST_BYTES


def test_a_folder_of_images_is_shown_as_it_was(tmp_path: Path) -> None:
    for k, label in enumerate(("cat", "dog")):
        (tmp_path / label).mkdir()
        for at in range(5):
            Image.new("RGB", (8, 8), (20 * at, 200, 100 * k)).save(tmp_path / label / f"{at}.png")
    task = fogline.Task(train=tmp_path)
    source = open_data(task).train
    found = seen(task)
    assert found.pixels is not None
    assert sorted({tuple(pixel) for pixel in found.pixels[:, 0, 0].tolist()}) == sorted(
        {(20 * at, 200, 100 * k) for k in range(2) for at in range(5)} & set(map(tuple, found.pixels[:, 0, 0].tolist()))
    )
    assert len(found) == source.size == 8


def test_columns_of_a_table_are_rows_even_where_they_could_be_a_square() -> None:
    found = seen(labelled(torch.randn(30, 64, generator=torch.Generator().manual_seed(0))))
    assert (found.kind, found.columns[:2], len(found.columns)) == ("rows", ("x0", "x1"), previews.MOST_COLUMNS)
    assert found.cells(3) is not None


def test_a_frame_is_shown_in_its_own_words() -> None:
    frame = pd.DataFrame(
        {
            "age": np.linspace(20, 79, 60).round(1),
            "city": ["Rome", "Bern", "Oslo"] * 20,
            "member": [True, False] * 30,
            "since": pd.date_range("2020-01-01", periods=60),
            "id": [f"name-{k}" for k in range(60)],
            "mixed": ["1", "2", "none"] * 20,
            "street": [f"street {k // 1}" if k < 58 else "street 0" for k in range(60)],
            "y": [0.5 * k for k in range(60)],
        }
    )
    task = fogline.Task(train=frame, valid=frame, target="y")
    found = seen(task)
    assert (found.kind, found.columns) == ("rows", ("age", "city", "member", "since", "mixed", "street"))
    assert found.cells(1) == ["21", "Bern", "no", "2020-01-02", "2", "street 1"]
    assert found.cells(2) == ["22", "Oslo", "yes", "2020-01-03", "none", "street 2"]


class Texts(Dataset[Any]):
    def __init__(self, wrap: Any = lambda text: text) -> None:
        self.wrap = wrap

    def __len__(self) -> int:
        return 5

    def __getitem__(self, at: int) -> Any:
        return self.wrap(f"text {at} <b> ä " + "long " * 200 * (at == 3)), at % 2


@pytest.mark.parametrize("wrap", [lambda text: text, lambda text: {"length": 3, "text": text}])
def test_texts_are_cut(wrap: Any) -> None:
    task = fogline.Task(nn.Identity(), fogline.on_batch(lambda model, batch: torch.zeros(())), Texts(wrap))
    found = looks.looks(open_data(task))
    assert found is not None
    assert found.cells(1) == ["text 1 <b> ä "]
    assert len((found.cells(3) or [""])[0]) == previews.MOST_CHARACTERS


def test_examples_without_looks(tmp_path: Path) -> None:
    odd = torch.rand(4, 2, 3, 4, 5), torch.rand(4, 8, 8, dtype=torch.complex64), torch.rand(4, 0)
    for inputs in (torch.rand(4), torch.rand(4, 9, 128), *odd):
        task = fogline.Task(nn.Identity(), fogline.on_batch(lambda model, batch: torch.zeros(())), inputs)
        assert looks.looks(open_data(task)) is None
        assert keep_looks(tmp_path, open_data(task)) is None
    assert not list(tmp_path.iterdir())


def test_of_many_examples_the_wanted_ones_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "MOST_EXAMPLES", 50)
    found = seen(labelled(torch.randn(1000, 3)), first=(3, 500, 501, 502, 2000, -1))
    assert len(found) == 50
    assert {3, 500, 501, 502, 0} <= set(found.ids.tolist())
    assert (np.diff(found.ids) > 0).all()
    assert max(np.diff(found.ids)) < 60


def test_reading_what_is_not_in_memory_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Dataset[Any]):
        def __len__(self) -> int:
            return 1000

        def __getitem__(self, at: int) -> Any:
            return torch.full((1, 8, 8), float(at)), at % 2

    monkeypatch.setattr(looks, "_READ_FOR", 0.0)
    found = seen(fogline.Task(nn.Flatten(), nn.CrossEntropyLoss(), Slow()))
    assert found.ids.tolist() == list(range(looks._AT_ONCE))


def test_they_are_read_as_they_were_written(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    assert read_previews(folder) is None
    words = [json.dumps(["a", "<b>"]), json.dumps(["ä", ""])]
    write_previews(folder, Previews("rows", np.array([3, 8]), None, words, ("one", "two")))
    found = read_previews(folder)
    assert found is not None
    assert (found.kind, found.columns, found.cells(8), found.cells(4)) == ("rows", ("one", "two"), ["ä", ""], None)
    pixels = ramp(2, 8, 8, 3).numpy()
    write_previews(folder, Previews("images", np.array([3, 8]), pixels))
    found = read_previews(folder)
    assert found is not None
    assert found.pixels is not None
    np.testing.assert_array_equal(found.pixels, pixels)
    assert (found.place(3), found.place(9), found.cells(3)) == (0, None, None)
    assert [path.name for path in (folder / "examples").iterdir()] == [previews.FILE]


def test_too_much_is_refused(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    with pytest.raises(ValueError, match="at most"):
        write_previews(folder, Previews("images", np.arange(5000), np.zeros((5000, 64, 64, 1), dtype=np.uint8)))


@pytest.mark.parametrize(
    "tensors",
    [
        {"example": np.arange(2), "pixels": np.zeros((2, 8, 8, 4), dtype=np.uint8)},
        {"example": np.arange(2), "pixels": np.zeros((3, 8, 8, 1), dtype=np.uint8)},
        {"example": np.arange(2), "pixels": np.zeros((2, 8, 8, 1), dtype=np.float32)},
        {"example": np.arange(2)},
        {"pixels": np.zeros((2, 8, 8, 1), dtype=np.uint8)},
    ],
)
def test_a_foreign_file_is_no_preview(tmp_path: Path, tensors: dict[str, Any]) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "examples").mkdir()
    save_file(tensors, folder / "examples" / previews.FILE, {"fogline": json.dumps({"kind": "images", "columns": []})})
    assert read_previews(folder) is None
    (folder / "examples" / previews.FILE).write_bytes(b"cut")
    assert read_previews(folder) is None


def test_training_keeps_them_where_it_records_examples(tmp_path: Path) -> None:
    task = fogline.Task(nn.Linear(3, 2), nn.CrossEntropyLoss(), (torch.randn(40, 3), torch.arange(40) % 2))
    recipe = fogline.Recipe(optimizer="sgd", lr=0.1, duration="2ep", step="eager")
    run = fogline.fit(task, recipe, runs=tmp_path, name="kept")
    found = read_previews(run.folder)
    assert found is not None
    assert (found.kind, len(found)) == ("rows", 40)
    other = fogline.fit(task, recipe.replace(examples=False), runs=tmp_path, name="other")
    assert read_previews(other.folder) is None


def test_the_hardest_are_those_of_the_middle_epoch(tmp_path: Path) -> None:
    folder = add_examples(make_run(tmp_path / "run"), wrong=[3, 14, 27])
    assert set(looks.hardest(folder, 3)) == {3, 14, 27}
    assert looks.hardest(make_run(tmp_path / "none")) == []
