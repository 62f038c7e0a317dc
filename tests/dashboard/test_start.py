"""How it starts: without PyTorch, on this machine only, and with a plain word where something is missing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dashboard.conftest import served, start
from fogline.record.store import read_info
from run_folders import add_examples, make_run, measured_rate

TASK = """
import torch, fogline
from torch import nn
X = torch.linspace(-1, 1, 64)[:, None]
task = fogline.Task(model=nn.Linear(1, 1), loss=nn.MSELoss(), train=(X, 2 * X))
"""


def test_no_page_imports_pytorch(tmp_path: Path) -> None:
    add_examples(make_run(tmp_path / "run", resolved=measured_rate()))
    code = f"""
import sys, types
from pathlib import Path
sys.modules["torch"] = None  # importing it fails from here on
from fogline.cli import app
import fogline.dashboard.server, fogline.dashboard.beside
from fogline.dashboard import example_cards, run_page, runs_page
from fogline.dashboard.example_table import Tables
from fogline.dashboard.runs import Folder
from fogline.plots import FIGURES
folder = Folder(Path({str(tmp_path)!r}))
view, summary = folder.view("run"), folder.summary("run")
runs_page.runs_page(folder), runs_page.compare_page(folder, ["run", "run"])
run_page.overview(view, summary), run_page.rate_page(view), run_page.landscape_page(view)
seen = Tables().of(view.folder)
run_page.examples_page(view, seen), example_cards.cards(seen, seen.with_edits, [0, 1], "run")
for name in (*run_page.overview_figures(view), "rate"):
    FIGURES[name](view)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_extra_names_the_command(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['uvicorn'] = None\nfrom fogline.cli import main\nsys.argv = ['fogline', 'ui']\nmain()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 2
    assert "pip install 'fogline[dashboard]'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_it_listens_on_this_machine_only_and_ends_with_its_input(tmp_path: Path) -> None:
    process, line = start("ui", tmp_path, "--no-browser", "--port", 0, "--attached", stdin=subprocess.PIPE)
    port = served(tmp_path, line).port
    with socket.socket() as other, pytest.raises(OSError, match=r"refused|unreachable"):
        other.connect(("127.0.0.2", port))
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=30) == 0
    assert process.stdout is not None
    process.stdout.close()


def test_a_port_in_use_is_replaced_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process, line = start("ui", tmp_path, "--no-browser", "--port", taken.getsockname()[1])
        dashboard = served(tmp_path, line)
        assert dashboard.port != taken.getsockname()[1]
        assert dashboard.ask("/").status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) in (0, 130, -2)
    assert process.stdout is not None
    process.stdout.close()


def test_one_run_is_shown_first_and_its_neighbours_behind_it(tmp_path: Path) -> None:
    for name in ("one", "other"):
        make_run(tmp_path / name)
    process, line = start("ui", tmp_path / "one", "--no-browser", "--port", 0)
    dashboard = served(tmp_path, line)
    assert 'url=/runs/one"' in dashboard.ask(f"/?token={dashboard.token}", Cookie=None).text
    assert "other" in dashboard.ask("/").text
    process.terminate()
    process.wait(timeout=30)
    assert process.stdout is not None
    process.stdout.close()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = subprocess.run(
        [sys.executable, "-m", "fogline", "ui", str(tmp_path / "file")], capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert "expected a folder of runs" in ended.stderr


def test_train_with_ui_stops_by_the_button_and_stays_until_told(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(TASK)
    arguments = ["train", tmp_path / "task.py", "--runs", tmp_path / "runs", "--name", "run", "--ui", "--lr", 0.01]
    arguments += ["--optimizer", "sgd", "--duration", "5000000st", "--step", "eager"]
    process, line = start(*arguments, cwd=tmp_path, stderr=subprocess.DEVNULL)
    dashboard = served(tmp_path / "runs", line)
    folder, end = tmp_path / "runs" / "run", time.monotonic() + 120
    while not ((folder / "run.json").exists() and "mechanics" in read_info(folder)):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert dashboard.ask("/runs/run/stop", "POST").status == 202
    while read_info(folder)["verdict"] is None:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert read_info(folder)["verdict"]["name"] == "INTERRUPTED"
    assert process.stdout is not None
    assert any("stays open" in said for said in process.stdout)
    assert "Interrupted" in dashboard.ask("/runs/run").text
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 143
    process.stdout.close()
    with pytest.raises(OSError, match="refused"):
        dashboard.ask("/")


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="there are no such signals here")
def test_train_with_ui_ends_with_a_signal(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(TASK)
    arguments = ["train", tmp_path / "task.py", "--runs", tmp_path / "runs", "--name", "run", "--ui", "--lr", 0.01]
    process, line = start(
        *arguments, "--duration", "5000000st", "--step", "eager", cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    dashboard = served(tmp_path / "runs", line)
    folder, end = tmp_path / "runs" / "run", time.monotonic() + 120
    while not ((folder / "run.json").exists() and "mechanics" in read_info(folder)):
        assert time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert process.stdout is not None
    process.stdout.close()
    with pytest.raises(OSError, match="refused"):
        dashboard.ask("/")
