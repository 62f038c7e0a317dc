"""A run in the files of real loggers, read back by their own readers."""

from __future__ import annotations

import sqlite3
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
import trackio
import trackio.sqlite_storage
import wandb
from google.protobuf.message import DecodeError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from wandb.proto import wandb_internal_pb2

import fogline
from fogline.plugins.loggers import to_mlflow, to_tensorboard, to_trackio, to_wandb
from fogline.run import Run

STEPS = 40


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Forty steps of a loop that never clears its gradients, so that there is a finding."""
    torch.manual_seed(0)
    model, loss_fn, x = nn.Linear(4, 1), nn.MSELoss(), torch.randn(32, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with fogline.watch(model, optimizer, loss_fn=loss_fn, runs=tmp_path / "runs", name="faulty") as run:
        for step in range(STEPS):
            loss = loss_fn(model(x), x.sum(dim=1, keepdim=True))
            loss.backward()
            optimizer.step()
            run.log(loss)
            if step % 10 == 9:
                run.log(valid=loss.item(), accuracy=step / STEPS)
    return run


def test_tensorboard_reads_every_series_at_its_steps(run: Run) -> None:
    place = to_tensorboard(run, "logs")
    assert place == Path("logs/faulty")
    read = EventAccumulator(str(place))
    read.Reload()
    losses, scores = read.Scalars("train/loss"), read.Scalars("valid/accuracy")
    assert [event.step for event in losses] == list(range(STEPS))
    assert [event.value for event in losses] == pytest.approx(run.steps["loss"].tolist(), rel=1e-6)
    assert [event.step for event in scores] == [9, 19, 29, 39]
    assert [event.value for event in scores] == pytest.approx([0.225, 0.475, 0.725, 0.975])
    texts = [tag for tag in read.Tags()["tensors"] if tag.endswith("text_summary")]
    assert {tag.rpartition("/")[0] for tag in texts} == {"recipe", "findings/missing_zero_grad", "verdict"}
    times = [event.wall_time for event in losses]
    assert times == sorted(times)


def test_mlflow_reads_settings_numbers_findings_and_verdict(run: Run, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    number = to_mlflow(run, "descents", tracking_uri=uri)
    client = mlflow.MlflowClient(tracking_uri=uri)
    read = client.get_run(number)
    history = client.get_metric_history(number, "train/loss")
    assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)] == [
        (step, pytest.approx(loss)) for step, loss in enumerate(run.steps["loss"].tolist())
    ]
    assert sorted(m.step for m in client.get_metric_history(number, "valid/accuracy")) == [9, 19, 29, 39]
    assert read.data.params["optimizer"] == "sgd"
    assert float(read.data.params["lr"]) == 0.01
    assert "clear the gradients" in read.data.tags["fogline.finding.missing_zero_grad"]
    assert read.data.tags["fogline.verdict"] == run.verdict.name  # type: ignore[union-attr]
    assert read.info.status == "FINISHED"
    assert [item.path for item in client.list_artifacts(number)] == ["findings.json"]


def test_wandb_keeps_the_run_for_a_later_sync(run: Run, tmp_path: Path) -> None:
    place = to_wandb(run, "descents", folder=tmp_path)
    (written,) = place.glob("*.wandb")
    records = _once_whole(written)
    rows = [{_key(item): item.value_json for item in r.history.item} for r in records if r.HasField("history")]
    losses = {int(row["step"]): float(row["train/loss"]) for row in rows if "train/loss" in row}
    assert losses == pytest.approx(dict(enumerate(run.steps["loss"].tolist())))
    assert [int(row["step"]) for row in rows if "valid/accuracy" in row] == [9, 19, 29, 39]
    assert wandb.run is None


def _key(item: Any) -> str:
    return str(item.key or "/".join(item.nested_key))


def _once_whole(path: Path, patience: float = 60.0) -> list[Any]:
    """The records of a file of wandb, whose own process may still be writing the last of them after ``finish``."""
    until = time.monotonic() + patience
    while True:
        with suppress(DecodeError):  # a block that is not yet written is zeros or cut short
            records = list(_records(path.read_bytes()))
            if any(record.HasField("exit") for record in records):
                return records
        assert time.monotonic() < until, f"{path.name} has no closing record after {patience:g} s"
        time.sleep(0.1)


def _records(data: bytes) -> Iterator[Any]:
    """The records in a file of wandb: after seven bytes, blocks of 32 KiB with parts of them as in LevelDB's log."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def test_trackio_reads_numbers_and_alerts(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "trackio"
    monkeypatch.setattr(trackio.sqlite_storage, "TRACKIO_DIR", folder)
    name = to_trackio(run, "descents")
    with sqlite3.connect(folder / "descents.db") as connection:
        connection.row_factory = sqlite3.Row
        rows = [dict(row) for row in connection.execute("select * from metrics order by step")]
        alerts = [dict(row) for row in connection.execute("select * from alerts order by id")]
    assert name == "faulty"
    assert sorted({row["step"] for row in rows}) == list(range(STEPS))
    assert [alert["title"] for alert in alerts] == ["missing_zero_grad", run.verdict.name]  # type: ignore[union-attr]
    assert alerts[0]["step"] == run.findings["step"][0]


def test_a_live_run_is_followed_to_its_end(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, loss_fn, x = nn.Linear(4, 1), nn.MSELoss(), torch.randn(32, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watched = fogline.watch(model, optimizer, loss_fn=loss_fn, runs=tmp_path / "runs", name="live", share=0.5)
    following = threading.Thread(target=to_tensorboard, args=(watched.folder, "logs"), kwargs={"live": True})
    following.start()
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_fn(model(x), x.sum(dim=1, keepdim=True))
        loss.backward()
        optimizer.step()
        watched.log(loss)
    watched.close()
    following.join(timeout=60)
    assert not following.is_alive()
    read = EventAccumulator("logs/live")
    read.Reload()
    assert [event.step for event in read.Scalars("train/loss")] == list(range(STEPS))
