"""Pictures and tables: what is compared, and what the run's data adds to its record."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from torch import nn

import fogline
from example_records import CLASSES, planted
from fogline._examples.spaces import embed
from fogline.data.source import InMemory

COUNT = 300


class Net(nn.Module):
    """A convolution, dropout and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop = nn.Conv2d(1, 4, 3), nn.Dropout(0.5)
        self.first, self.last = nn.Linear(4 * 6 * 6, 100), nn.Linear(100, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.last(self.hidden(x))
        return hidden

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.first(self.drop(torch.relu(self.conv(x)).flatten(1))))


@pytest.fixture
def pictures(tmp_path: Path) -> fogline.Examples:
    """A record beside pictures, of which ten held-out ones are training pictures in other light."""
    made = planted(tmp_path / "run", 0.1, count=COUNT, epochs=4)
    generator = torch.Generator().manual_seed(0)
    train = torch.rand(COUNT, 1, 8, 8, generator=generator)
    held = torch.rand(40, 1, 8, 8, generator=generator)
    held[:10] = 0.9 * train[50:60]
    targets = torch.from_numpy(made.targets)
    held_targets = torch.cat([targets[50:60], torch.randint(0, CLASSES, (30,), generator=generator)])
    torch.manual_seed(0)
    model = Net()
    task = fogline.Task(model, nn.CrossEntropyLoss(), (train, targets), (held, held_targets))
    return fogline.examples(fogline.Run(made.folder, task=task, model=model.eval()))


def test_the_embedding_is_what_goes_into_the_last_layer() -> None:
    torch.manual_seed(0)
    model = Net().train()
    inputs = torch.rand(700, 1, 8, 8)  # more than one part
    found = embed(model, {"train": InMemory((inputs, torch.zeros(700)))})["train"].float()
    assert model.training
    assert not model.last._forward_hooks
    with torch.no_grad():
        expected = model.eval().hidden(inputs)
    assert found.shape == (700, 64)
    matrix = torch.randn(100, 64, generator=torch.Generator().manual_seed(0)) / 8
    assert torch.allclose(found, expected @ matrix, atol=2e-3)
    near, wide = torch.cdist(found, found), torch.cdist(expected, expected)
    assert np.corrcoef(near.flatten(), wide.flatten())[0, 1] > 0.75  # a random projection keeps distances roughly


def test_a_narrow_embedding_is_exact_and_a_model_without_linear_layers_has_none() -> None:
    narrow = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    inputs = torch.rand(20, 3)
    found = embed(narrow, {"train": InMemory((inputs, torch.zeros(20)))})["train"]
    with torch.no_grad():
        assert torch.equal(found, narrow[:2](inputs).half())
    assert embed(nn.Sequential(nn.Conv2d(1, 2, 3)), {"train": InMemory((inputs, torch.zeros(20)))}) == {}


def test_pictures_in_other_light_leak(pictures: fogline.Examples) -> None:
    leaks = pictures.leaks()
    assert set(zip(leaks["train"], leaks["valid"], strict=True)) >= {(50 + k, k) for k in range(10)}
    assert len(leaks) < 14
    asked = pictures.leaks(series=True)  # there are no series, so nothing is learned from them
    assert asked["train"].tolist() == leaks["train"].tolist()
    of_train, of_valid = pictures.groups()
    assert (of_train[50:60] == of_valid[:10]).all()


def test_pictures_are_written_for_fiftyone(pictures: fogline.Examples, tmp_path: Path) -> None:
    folder = pictures.to_fiftyone(tmp_path / "out", ids=[3, 5])
    said = json.loads((folder / "labels.json").read_text())
    assert sorted(path.name for path in (folder / "data").iterdir()) == ["3.png", "5.png"]
    assert said["labels"]["5"]["attributes"]["target"] == pictures.record.targets[5]
    assert said["labels"]["5"]["label"] == str(pictures.record.targets[5])


def test_columns_of_a_table_become_slices(tmp_path: Path) -> None:
    made = planted(tmp_path / "run", 0.2, count=COUNT, epochs=6)
    random = np.random.default_rng(0)
    frame = pandas.DataFrame({"age": random.normal(50, 10, COUNT), "ward": np.where(made.wrong, "north", "south")})
    frame["kind"] = [f"k{k}" for k in made.targets]
    # a frame that is its own held-out data is not split, so its rows are those of the record
    task = fogline.Task(nn.Linear(3, CLASSES), nn.CrossEntropyLoss(), frame, frame, target="kind")
    examples = fogline.examples(fogline.Run(made.folder, task=task, model=nn.Linear(3, CLASSES)))
    found = examples.slices()
    assert any("ward" in column for column in found["column"])
    assert not any(column == "age" for column in found["column"])
