"""Snapshots are few, depend on the steps alone, and are the same after a resume."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import fogline
from fogline.record.probes import Budget
from fogline.record.snapshots import FILE, MOST, KeptPath, Snapshots, read_path
from programs.problems import again, classification, recipe


def snapshots(folder: Path, parameters: list[nn.Parameter], expected: int | None = None) -> Snapshots:
    made = Snapshots(folder, [f"p{k}" for k in range(len(parameters))], parameters, Budget(0.02), expected)
    assert made.wanted
    return made


def kept(folder: Path) -> KeptPath:
    found = read_path(folder)
    assert found is not None
    return found


def walk(folder: Path, start: int, stop: int, stride: int = 1) -> Snapshots:
    """Weights that are the number of the step; ``stride`` steps in each call."""
    weight = nn.Parameter(torch.zeros(3))
    made = snapshots(folder, [weight])
    made.restore(start)
    for step in range(start, stop, stride):
        weight.data.fill_(float(step))
        if step >= made.following:
            made.take(step)
    made.save()
    return made


@pytest.mark.parametrize("steps", [1, 64, 65, 66, 1000, 5000])
def test_they_are_evenly_spaced_and_never_many(tmp_path: Path, steps: int) -> None:
    walk(tmp_path, 0, steps)
    found = kept(tmp_path)
    assert found.steps == tuple(range(0, steps, found.stride))
    assert MOST / 2 < len(found.steps) <= MOST or steps < MOST / 2
    assert torch.equal(found.weights, torch.tensor(found.steps).float()[:, None].expand(-1, 3))


@pytest.mark.parametrize(("expected", "stride"), [(None, 1), (1, 1), (32, 1), (33, 2), (1000, 32), (1025, 64)])
def test_where_the_length_is_known_there_is_room_from_the_start(
    tmp_path: Path, expected: int | None, stride: int
) -> None:
    assert snapshots(tmp_path, [nn.Parameter(torch.zeros(3))], expected).stride == stride


@pytest.mark.parametrize("stride", [1, 7, 16])
@pytest.mark.parametrize("cut", [112, 560, 1008])
def test_a_run_that_goes_on_keeps_what_the_uninterrupted_one_keeps(tmp_path: Path, cut: int, stride: int) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    walk(whole, 0, 1680, stride)
    walk(broken, 0, cut + 224, stride)  # killed later than the checkpoint it goes on from
    walk(broken, cut, 1680, stride)
    assert kept(broken).steps == kept(whole).steps
    assert torch.equal(kept(broken).weights, kept(whole).weights)


def test_those_of_steps_that_are_taken_again_are_dropped(tmp_path: Path) -> None:
    made = walk(tmp_path, 0, 40)
    made.forget(10)
    assert [each.step for each in made.kept] == list(range(11))
    assert made.following == 11


def test_the_shapes_and_names_are_kept(tmp_path: Path) -> None:
    layer = nn.Linear(3, 2)
    made = snapshots(tmp_path, list(layer.parameters()))
    made.take(0)
    made.save()
    found = kept(tmp_path)
    assert (found.names, found.shapes) == (("p0", "p1"), ((2, 3), (2,)))
    assert torch.equal(found.weights[0], torch.cat([p.detach().reshape(-1) for p in layer.parameters()]))


def test_large_models_keep_fewer_and_the_largest_none(tmp_path: Path) -> None:
    half = nn.Parameter(torch.empty(2**20))
    assert snapshots(tmp_path, [half]).most == 16
    assert not Snapshots(tmp_path, ["p0"], [nn.Parameter(torch.empty(2**21 + 1))], Budget(0.02)).wanted
    assert not Snapshots(tmp_path, ["p0"], [half], Budget(0.0)).wanted


def test_what_cannot_be_read_is_no_path(tmp_path: Path) -> None:
    assert read_path(tmp_path) is None
    (tmp_path / FILE).write_bytes(b"half a file")
    assert read_path(tmp_path) is None


def test_a_resumed_run_keeps_the_same_snapshots_bit_for_bit(tmp_path: Path) -> None:
    task, chosen = classification(), recipe(keep=1000, duration="150st")
    whole = fogline.fit(task, chosen, runs=tmp_path, name="whole")
    found = kept(whole.folder)
    assert found.steps == tuple(range(0, 150, 8))
    for step in (1, 63, 64, 97, 150):
        folder = again(whole.folder, tmp_path / str(step), step, checkpoint_every="1000st")
        shutil.copy(whole.folder / FILE, folder)
        fogline.resume(folder, task)
        assert (folder / FILE).read_bytes() == (whole.folder / FILE).read_bytes(), step


def test_the_weights_are_those_of_the_run(tmp_path: Path) -> None:
    task = classification()
    seen = [
        torch.cat([p.detach().reshape(-1) for p in step.run.model.parameters()])
        for step in fogline.descend(task, recipe(duration="9st"), runs=tmp_path, name="run")
    ]
    found = kept(tmp_path / "run")
    assert found.steps == tuple(range(9))
    assert torch.equal(found.weights[1:], torch.stack(seen[:8]))
