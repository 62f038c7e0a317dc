"""What the demo costs: seconds, and memory beside that of PyTorch alone. Writes docs/evidence/demo.md and demo.json."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

REPEATS = 3
EVIDENCE = Path(__file__).resolve().parents[1] / "docs" / "evidence"

# What a process costs that imports PyTorch and takes one step of a network as small as the demo's.
PYTORCH_ALONE = """
import torch
model = torch.nn.Sequential(torch.nn.Conv2d(1, 16, 3), torch.nn.Flatten(), torch.nn.Linear(16 * 36, 10))
optimizer = torch.optim.AdamW(model.parameters())
torch.nn.functional.cross_entropy(model(torch.randn(64, 1, 8, 8)), torch.zeros(64, dtype=torch.long)).backward()
optimizer.step()
"""


@dataclass(frozen=True)
class Cost:
    """Of one process: wall-clock seconds, processor seconds, and the most memory it ever held, in megabytes (1e6)."""

    seconds: float
    processor: float
    megabytes: float


def measure(command: list[str], folder: str) -> tuple[Cost, str]:
    """Run a command to its end; returns its cost and what it printed."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{command} ended with {process.returncode}")
    kilobytes = usage.ru_maxrss / 1024 if sys.platform == "darwin" else usage.ru_maxrss
    seconds = time.perf_counter() - begin
    return Cost(seconds, usage.ru_utime + usage.ru_stime, kilobytes * 1024 / 1e6), printed


def main() -> None:
    demos, alone, accuracies = [], [], []
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as folder:
            alone.append(measure([sys.executable, "-c", PYTORCH_ALONE], folder)[0])
            cost, printed = measure([sys.executable, "-m", "fogline", "demo"], folder)
        demos.append(cost)
        accuracies.append([float(found) for found in re.findall(r"test accuracy ([0-9.]+)", printed)])
    rows = [("demo", demos), ("PyTorch alone", alone)]
    table = ["| | seconds | processor seconds | peak memory, MB |", "|---|---|---|---|"]
    for name, costs in rows:
        columns = ([getattr(cost, field) for cost in costs] for field in ("seconds", "processor", "megabytes"))
        table.append(f"| {name} | " + " | ".join(spread(values) for values in columns) + " |")
    beyond = statistics.median(d.megabytes - a.megabytes for d, a in zip(demos, alone, strict=True))
    write(table, beyond, accuracies, {name: [asdict(cost) for cost in costs] for name, costs in rows})


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def write(
    table: list[str], beyond: float, accuracies: list[list[float]], raw: dict[str, list[dict[str, float]]]
) -> None:
    import torch

    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    # The other work on the machine decides the wall clock: the processor seconds are what the demo needs.
    load = f"load average {os.getloadavg()[1]:.1f}"
    where = f"{os.cpu_count()} processors ({platform.machine()}), {load}, {versions}"
    names = ("breast cancer (logistic regression)", "handwritten digits (small CNN)")
    scores = [f"- {name}: {', '.join(f'{run[at]:.3f}' for run in accuracies)}" for at, name in enumerate(names)]
    lines = [
        "# The demo",
        "",
        f"{datetime.date.today()}; {where}; made by `benchmarks/demo.py`.",
        "",
        f"{REPEATS} repeats: median (lowest to highest). Seconds are after set-up and count every import.",
        "",
        *table,
        "",
        f"Memory beyond PyTorch's own: {beyond:.0f} MB.",
        "",
        "Test accuracy in each repeat, on data used for nothing else:",
        "",
        *scores,
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    (EVIDENCE / "demo.md").write_text(text)
    (EVIDENCE / "demo.json").write_text(json.dumps({"where": where, "accuracies": accuracies, **raw}, indent=2) + "\n")


if __name__ == "__main__":
    main()
