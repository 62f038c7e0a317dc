"""How soon the dashboard answers and what it holds, beside TensorBoard and trackio; how soon large runs are seen.

    python benchmarks/dashboard.py                                     # prints the tables
    python benchmarks/dashboard.py --peers .venv-dashboard/bin/python --write   # with peers; the page of evidence

*First byte* is from the start of the process to the first byte of the start page, on an empty folder of logs; memory
is what the process and its children hold then (unique to them, and resident). *Opened* is in a headless Chromium, from
asking for the page until the last figure is drawn, or the last row of the table is there; of the server, its memory
afterwards. The contenders take turns.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import timing
from fogline.record.store import Store
from fogline.verdict import Verdict

STEPS, RUNS = 1_000_000, 500
FIRST_BYTE, MEGABYTES, OPENED = 1.0, 100.0, 2.0
_AT_ONCE = 50_000
_PATIENCE = 120.0
_ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+/\?token=\S+")
_NOTHING = (None,) * 4


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


Command = Callable[[Path, int], list[str]]
"""Of a folder of logs and a port."""


def ours(folder: Path, port: int) -> list[str]:
    return [sys.executable, "-m", "fogline", "ui", str(folder), "--no-browser", "--port", str(port)]


def peers(python: Path) -> dict[str, Command]:
    """The commands of the peers that an environment has."""
    board = python.with_name("tensorboard")
    show = "import sys, trackio; trackio.show(open_browser=False, block_thread=True)"
    return {
        "TensorBoard": lambda folder, port: [
            str(board),
            "--logdir",
            str(folder),
            "--port",
            str(port),
            "--host",
            "127.0.0.1",
        ],
        "trackio": lambda folder, port: [str(python), "-c", show],
    }


@contextmanager
def started(command: Sequence[str], folder: Path, port: int) -> Iterator[tuple[subprocess.Popen[str], float]]:
    """A process and when it was started; it and its children are ended at the end."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "GRADIO_SERVER_PORT": str(port)}
    environment |= {"TRACKIO_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    begin = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process, begin
    finally:
        family = [*psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
        for one in family:
            one.terminate()
        process.terminate()
        process.wait(timeout=30)
        assert process.stdout is not None
        process.stdout.close()


def first_byte(url: str, process: subprocess.Popen[str], begin: float) -> float:
    """Seconds from the start until the start page answers, asked for a hundred times a second.

    Args:
        url: of the start page; ours is asked for with the key, which is exchanged for a cookie first.
    """
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
    while time.perf_counter() - begin < _PATIENCE:
        if process.poll() is not None:
            raise RuntimeError(f"ended with code {process.returncode}")
        try:
            if "?token=" in url:
                opener.open(url, timeout=_PATIENCE).close()
            with opener.open(url.partition("?")[0], timeout=_PATIENCE) as answer:
                answer.read(1)
                return time.perf_counter() - begin
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.01)
    raise RuntimeError(f"did not answer within {_PATIENCE:.0f} s")


def memory(process: subprocess.Popen[str]) -> dict[str, float]:
    """Megabytes of a process and its children: unique to them, and resident, which counts shared pages again."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    held = [one.memory_full_info() for one in family]
    return {"unique": sum(one.uss for one in held) / 2**20, "resident": sum(one.rss for one in held) / 2**20}


def start_once(command: Command) -> dict[str, float]:
    """First byte and memory of one start on an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        with started(command(Path(folder), port), Path(folder), port) as (process, begin):
            url = _printed(process) if command is ours else f"http://127.0.0.1:{port}/"
            seconds = first_byte(url, process, begin)
            return {"first_byte": seconds, **memory(process)}


def _printed(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    found = _ADDRESS.search(process.stdout.readline())
    assert found
    return found[0]


def starts(commands: dict[str, Command], rounds: int) -> dict[str, Any]:
    """Medians over rounds in which the contenders take turns; what does not run says why."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    failed: dict[str, str] = {}
    for _ in range(rounds):
        for name, command in commands.items():
            if name in failed:
                continue
            try:
                found[name].append(start_once(command))
            except (RuntimeError, OSError) as error:
                failed[name] = str(error)
    spreads = {
        name: {key: timing.Spread.of([each[key] for each in all_of_it]) for key in all_of_it[0]}
        for name, all_of_it in found.items()
        if all_of_it
    }
    return {"measured": spreads, "failed": failed}


def make_long(folder: Path) -> None:
    """A run of a million recorded steps, probed every fiftieth, with seed 0."""
    random = np.random.default_rng(0)
    losses = (2.3 * np.exp(-np.arange(STEPS) / (STEPS / 5)) + 0.05) * random.lognormal(0, 0.25, STEPS)
    store = Store(folder)
    for first in range(0, STEPS, _AT_ONCE):
        store.steps([_row(step, float(losses[step])) for step in range(first, first + _AT_ONCE)])
        store.flush()
    store.write_info(_info(folder.name, STEPS))
    store.close()


def _row(step: int, loss: float) -> tuple[Any, ...]:
    probed = (0.01, 0.002, 0.1, 0.5) if step % 50 == 0 else _NOTHING
    return (step, step / 1000, 32 * step, 1e-3 * step, loss, 0.1 * (1 - step / STEPS), 1 / (1 + step / 1000), *probed)


def make_many(folder: Path) -> None:
    """Five hundred short runs."""
    for number in range(RUNS):
        store = Store(folder / f"run-{number:03}")
        store.steps([_row(step, 1 / (step + 1 + number)) for step in range(500)])
        store.scores(499, "valid", {"loss": 0.3, "accuracy": number / RUNS})
        store.write_info(_info(f"run-{number:03}", 500))
        store.close()


def _info(name: str, steps: int) -> dict[str, Any]:
    return {
        "format": 1,
        "name": name,
        "task": {"model": "Sequential", "parameters": 1000},
        "recipe": {"optimizer": "adamw", "lr": 0.1},
        "started": "2026-01-01T00:00:00",
        "steps": steps,
        "verdict": {"name": "CONVERGED", "message": str(Verdict.CONVERGED), "evidence": {}},
        "scores": {"loss": 0.3, "accuracy": 0.9},
    }


def opened(rounds: int, chromium: str) -> dict[str, Any]:
    """Seconds until a page is complete: anew in a server that has read nothing, and again in the same."""
    from playwright.sync_api import sync_playwright

    found: dict[str, list[float]] = {}
    held: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        make_long(Path(folder) / "long" / "run")
        make_many(Path(folder) / "many")
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(rounds):
            for place, path, ready in (
                ("long", "/runs/run", ".plot:not(.drawn)"),
                ("many", "/", f"#rows:not(:has(tr:nth-child({RUNS})))"),
            ):
                with started(ours(Path(folder) / place, 0), Path(folder), 0) as (process, _):
                    address = _printed(process)
                    page = _let_in(browser, address)
                    for turn in ("first", "again"):
                        begin = time.perf_counter()
                        page.goto(address.split("/?")[0] + path, wait_until="load")
                        page.locator(ready).first.wait_for(state="detached")
                        found.setdefault(f"{place} {turn}", []).append(time.perf_counter() - begin)
                    held.append(memory(process) | {"place": place})  # type: ignore[dict-item]
                    page.context.close()
        browser.close()
    spreads: dict[str, Any] = {name: timing.Spread.of(values) for name, values in found.items()}
    for place in ("long", "many"):
        spreads[f"{place} megabytes"] = timing.Spread.of([each["unique"] for each in held if each["place"] == place])
    return spreads


def _let_in(browser: Any, address: str) -> Any:
    """A page of a new window that has the cookie, while the server has read no run yet."""
    jar = CookieJar()
    urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar)).open(address).close()
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.add_cookies([{"name": one.name, "value": one.value, "url": address.split("/?")[0]} for one in jar])
    return context.new_page()


def start_table(found: dict[str, Any]) -> str:
    """The table of the starts."""
    rows = [
        [name, *(_spread(each[key], digits) for key, digits in (("first_byte", 2), ("unique", 0), ("resident", 0)))]
        for name, each in found["measured"].items()
    ]
    rows += [[name, f"not measured: {why}", "", ""] for name, why in found["failed"].items()]
    return timing.table(["dashboard", "first byte, s", "memory, MB", "resident, MB"], rows)


def open_table(found: dict[str, Any]) -> str:
    """The table of large runs."""
    rows = []
    for place, words in (("long", f"a run of {STEPS:,} steps"), ("many", f"a folder of {RUNS} runs")):
        first = found[f"{place} first"]
        passed = "pass" if first.median < OPENED else "**short**"
        rows.append(
            [
                words,
                _spread(first, 2),
                _spread(found[f"{place} again"], 2),
                f"{OPENED:g}",
                passed,
                _spread(found[f"{place} megabytes"], 0),
            ]
        )
    return timing.table(["opened", "first time, s", "again, s", "at most", "", "server, MB"], rows)


def _spread(spread: timing.Spread, digits: int) -> str:
    return f"{spread.median:.{digits}f} ({spread.low:.{digits}f} to {spread.high:.{digits}f})"


PAGE = """# The dashboard

How soon `fogline ui` answers, what it holds, and how soon large runs are seen; made by `python benchmarks/dashboard.py
--peers PYTHON --write`. Medians (quartiles) of {rounds} rounds in which the contenders take turns, seed 0, wall time.

{stamp} Peers: {peers}. Browser: {browser}.

*First byte*: from the start of the process to the first byte of the start page, on an empty folder of logs. *Memory* is
what is unique to the process and its children after that byte; *resident* counts pages they share with others again.
Asked for are at most {first_byte:g} s and {megabytes:g} MB: {judged}.

{starts}

*Opened*: in a headless browser at 1280 pixels, from asking for the page until its last figure is drawn or its last row
is there; the first time in a server and a browser that have read nothing yet, Plotly's JavaScript included.

{opens}

The rows of the long run are those that the recorder writes when steps are slow enough for a row each; the dashboard
reads of them the extremes of about 500 stretches. What is measured beside it on the same cores counts in wall times:
the load stands in the stamp.
"""


def page(found: dict[str, Any]) -> str:
    mine = found["starts"]["measured"]["fogline ui"]
    passed = mine["first_byte"].median < FIRST_BYTE and mine["unique"].median < MEGABYTES
    return PAGE.format(
        rounds=found["rounds"],
        stamp=timing.describe(found["stamp"]),
        peers=found["peers"] or "none",
        browser=found["browser"],
        first_byte=FIRST_BYTE,
        megabytes=MEGABYTES,
        judged="passed" if passed else "**missed**",
        starts=start_table(found["starts"]),
        opens=open_table(found["opened"]) if found["opened"] else "Not measured: no Chromium is installed.",
    )


def _versions(python: Path) -> str:
    names = "('tensorboard', 'trackio')"
    code = f"from importlib.metadata import version as v; print(*(f'{{n}} {{v(n)}}' for n in {names}), sep=', ')"
    return _said([str(python), "-c", code]) or "not all installed"


def _said(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", type=Path, help="the Python of an environment with dashboard-requirements.txt")
    parser.add_argument("--write", action="store_true", help="write the page of evidence")
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    commands: dict[str, Command] = {"fogline ui": ours} | (peers(arguments.peers) if arguments.peers else {})
    found: dict[str, Any] = {
        "rounds": arguments.rounds,
        "peers": _versions(arguments.peers) if arguments.peers else "",
        "browser": _said([chromium, "--version"]) if chromium else "none",
        "starts": starts(commands, arguments.rounds),
        "opened": opened(arguments.rounds, chromium) if chromium else None,
    }
    print(start_table(found["starts"]))
    if found["opened"]:
        print(open_table(found["opened"]))
    if arguments.write:
        found = {"stamp": timing.stamp(["fogline", "starlette", "uvicorn", "plotly"]), **found}
        timing.write_evidence("dashboard", page(found), found)


if __name__ == "__main__":
    main()
