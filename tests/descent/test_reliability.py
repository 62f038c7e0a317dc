"""Killed, interrupted, corrupted, out of space: what is on the disk afterwards gives the bits of a quiet run."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fogline
from fogline.descent import checkpoint
from fogline.record.store import read_info, read_table, write_json
from programs.problems import again, classification, counted, final_bits, recipe

Forked = Callable[..., dict[str, Any]]
KILLS = 20


def assert_as_quiet(run: Path, forked: Forked, job: str = "train", **arguments: Any) -> None:
    """The run has the bits of one on the same recipe, from start to end with no checkpoint between."""
    quiet = again(run, run.with_name(run.name + "-quiet"), checkpoint_every="1000000st")
    answer = forked(job, folder=quiet, **arguments)
    assert answer["code"] == 0, answer["errors"]
    assert counted(run) == counted(quiet)
    assert final_bits(run) == final_bits(quiet)
    mine, theirs = (read_table(folder, "steps") for folder in (run, quiet))
    both = np.intersect1d(mine["step"], theirs["step"])  # of many steps that come fast some have no row
    assert both[:100].tolist() == list(range(min(100, len(both))))
    for column in ("step", "loss", "lr", "grad_norm", "examples"):
        rows = (table[column][np.isin(table["step"], both)].tolist() for table in (mine, theirs))
        assert next(rows) == next(rows)
    assert list(read_table(run, "scores")) == list(read_table(quiet, "scores"))


def test_killed_at_twenty_random_moments(forked: Forked, quick_path: Path) -> None:
    moments = random.Random(2)
    run = quick_path / "run"
    changes = {"duration": "1000000st", "schedule": "constant", "ema": 0.9, "clip": "adaptive", "keep": 1}
    writing, reached = [], []
    for _ in range(KILLS):
        answer = forked("train", folder=run, kill_after=moments.uniform(0.02, 0.5), **changes)
        assert answer["code"] == -signal.SIGKILL, answer["errors"]
        writing.append(answer["writing"])
        found, skipped = checkpoint.latest(run)
        assert skipped == []  # a write that was cut leaves nothing that could be taken for a checkpoint
        reached.append(0 if found is None else found.step)
    assert reached == sorted(reached)  # never back
    assert reached[-1] > 0
    assert True in writing
    info = read_info(run)
    assert info["verdict"] is None
    # The schedule is constant, so a shorter run has the same steps.
    write_json(run / "run.json", info | {"asked": info["asked"] | {"duration": f"{reached[-1] + 20}st"}})
    answer = forked("train", folder=run)
    assert answer["code"] == 0, answer["errors"]
    assert_as_quiet(run, forked)


def test_killed_at_every_file_operation_of_a_checkpoint(forked: Forked, quick_path: Path) -> None:
    changes = {"duration": "3st", "keep": 1}
    whole = fogline.fit(classification(), recipe(duration="3st", keep=9), runs=quick_path, name="whole").folder
    # Going on from step 1 first writes that checkpoint again in its place, then a new one, then removes the older.
    for count in itertools.count(1):
        run = again(whole, quick_path / f"killed-{count}", 1, keep=1)
        answer = forked("train_until_file_operation", folder=run, count=count, **changes)
        found, skipped = checkpoint.latest(run)
        assert (found is None, skipped) == (False, [])
        if answer["code"] == 0:  # there are no more operations
            break
        assert answer["code"] == -signal.SIGKILL, answer["errors"]
        if count % 10 == 0:
            answer = forked("train", folder=run)
            assert answer["code"] == 0, answer["errors"]
            assert final_bits(run) == final_bits(whole)
            assert [place.name for place in (run / "checkpoints").iterdir()] == ["step-00000003"]
    assert count > 40


def flip(place: Path) -> str:
    path = place / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return "model.safetensors does not match its checksum"


def truncate(place: Path) -> str:
    os.truncate(place / "optimizer.safetensors", 100)
    return "optimizer.safetensors does not match its checksum"


def remove(place: Path) -> str:
    (place / "state.json").unlink()
    return "state.json is missing"


def remove_manifest(place: Path) -> str:
    (place / "manifest.json").unlink()
    return "manifest.json is missing"


def garble_manifest(place: Path) -> str:
    (place / "manifest.json").write_bytes(b'{"files": \xff')
    return "manifest.json cannot be read"


@pytest.mark.parametrize("damage", [flip, truncate, remove, remove_manifest, garble_manifest])
def test_a_damaged_checkpoint_is_skipped_with_its_reason(
    damage: Callable[[Path], str], quick_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = fogline.fit(classification(), recipe(duration="12st", keep=20), runs=quick_path, name="whole")
    wanted = final_bits(whole.folder)
    cut = quick_path / "cut"
    again(whole.folder, cut, 7)
    reason = f"step-00000007 skipped: {damage(cut / 'checkpoints' / 'step-00000007')}"
    run = fogline.resume(cut, classification())
    skipped = [event for event in run.events if event["kind"] == "checkpoint_skipped"]
    assert [(event["step"], event["message"]) for event in skipped] == [(6, reason)]
    assert reason in capsys.readouterr().err
    assert final_bits(cut) == wanted


def test_without_any_checkpoint_that_verifies_it_starts_again(quick_path: Path) -> None:
    whole = fogline.fit(classification(), recipe(duration="12st", keep=20), runs=quick_path, name="whole")
    wanted = final_bits(whole.folder)
    for place in (whole.folder / "checkpoints").iterdir():
        flip(place)
    cut = again(whole.folder, quick_path / "cut", 12)
    run = fogline.resume(cut, classification())
    assert sum(event["kind"] == "checkpoint_skipped" for event in run.events) == 12
    assert final_bits(cut) == wanted


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small disk could be mounted: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_stops_the_run_and_the_older_checkpoint_is_whole(
    small_disk: Path, quick_path: Path, forked: Forked
) -> None:
    with pytest.raises(OSError, match="cannot be written") as raised:
        fogline.fit(classification(), recipe(duration="1000st", keep=1000), runs=small_disk, name="run")
    assert str(small_disk) in str(raised.value)
    assert shutil.disk_usage(small_disk).free < 100_000
    assert_goes_on_elsewhere(small_disk / "run", quick_path / "run", forked)


@pytest.mark.parametrize(
    ("watch", "named"), [(0, "the checkpoint of step 5 cannot be written"), (0.03, "path.safetensors")]
)
def test_a_file_that_may_not_grow_stops_the_run_likewise(
    quick_path: Path, forked: Forked, watch: float, named: str
) -> None:
    answer = forked(
        "train_until_file_size",
        folder=quick_path / "short",
        width=20_000,
        steps=5,
        most_bytes=300_000,
        duration="12st",
        watch=watch,
    )
    assert answer["code"] == 1
    assert "OSError: " in answer["errors"].splitlines()[-1]
    assert named in answer["errors"].splitlines()[-1]
    assert_goes_on_elsewhere(quick_path / "short", quick_path / "run", forked, width=20_000)


def assert_goes_on_elsewhere(full: Path, run: Path, forked: Forked, **arguments: Any) -> None:
    found, skipped = checkpoint.latest(full)
    assert found is not None
    assert found.step >= 4
    assert skipped == []
    shutil.copytree(full, run)
    info = read_info(run)
    assert info["verdict"] is None
    write_json(run / "run.json", info | {"recipe": info["recipe"] | {"checkpoint_every": "1000000st", "keep": 2}})
    answer = forked("train", folder=run, **arguments)
    assert answer["code"] == 0, answer["errors"]
    assert_as_quiet(run, forked, **arguments)


PLACES = ("training", "validation", "rate", "judging", "scoring")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_with_its_code(
    place: str, number: signal.Signals, forked: Forked, quick_path: Path
) -> None:
    run = quick_path / "run"
    changes = {"lr": "auto" if place == "rate" else 0.05, "checkpoint_every": "1000000st", "ema": 0.9, "watch": 0}
    answer = forked("train_until_signal", folder=run, place=place, numbers=[number], **changes)
    assert answer["code"] == 128 + number, answer["errors"]
    assert "Traceback" not in answer["errors"]
    saved, _ = checkpoint.latest(run)
    assert read_info(run)["verdict"]["name"] == "INTERRUPTED"
    assert saved is not None
    assert saved.step == {"training": 9, "validation": 6, "rate": 0, "judging": 40, "scoring": 40}[place]
    assert [event["message"] for event in read_table(run, "events")] == ["stopped from outside and saved"]
    assert forked("train_whole", folder=run)["code"] == 0
    assert_as_quiet(run, forked, "train_whole")


@pytest.mark.parametrize("place", ["rate", "training"])
def test_a_model_that_draws_other_weights_each_time_goes_on_from_its_first_ones(
    place: str, forked: Forked, quick_path: Path
) -> None:
    """A module built without a seed, stopped before the first checkpoint that is due, resumed in another process."""
    run, numbers = quick_path / "run", [signal.SIGTERM if place == "rate" else signal.SIGKILL]
    changes = {"lr": "auto" if place == "rate" else 0.05, "checkpoint_every": "1000000st", "unseeded": True}
    forked("train_until_signal", folder=run, place=place, numbers=numbers, **changes)
    first, _ = checkpoint.latest(run)
    assert first is not None
    assert first.step == 0
    for name in ("one", "other"):
        resumed = again(run, quick_path / name)
        assert forked("train_whole", folder=resumed, unseeded=True)["code"] == 0
    assert final_bits(quick_path / "one") == final_bits(quick_path / "other")


def test_a_second_ctrl_c_forces(forked: Forked, quick_path: Path) -> None:
    run = quick_path / "run"
    twice = [signal.SIGINT, signal.SIGINT]
    answer = forked("train_until_signal", folder=run, place="training", numbers=twice, checkpoint_every="1000000st")
    assert answer["code"] == -signal.SIGINT
    assert answer["errors"].splitlines()[-1] == "KeyboardInterrupt"
    saved, skipped = checkpoint.latest(run)
    assert (saved is not None and saved.step, skipped) == (0, [])  # nothing but the first weights
    assert forked("train_whole", folder=run)["code"] == 0
    assert_as_quiet(run, forked, "train_whole")
