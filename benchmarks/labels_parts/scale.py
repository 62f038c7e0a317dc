"""A million examples over twenty epochs: what the questions take in time and memory, a process of its own each.

``python benchmarks/labels_parts/scale.py ROWS EPOCHS FOLDER`` prints a JSON line.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

CLASSES = 100


def measure(rows: int, epochs: int) -> dict[str, Any]:
    """Seconds by question, and the largest memory held, in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, __file__, "write", str(rows), str(epochs), folder], check=True)
        answer = subprocess.run(
            [sys.executable, __file__, "ask", str(rows), str(epochs), folder],
            check=True,
            capture_output=True,
            text=True,
        )
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


def write(rows: int, epochs: int, folder: Path) -> None:
    """Files of a run: margins rise, of a tenth of the examples later."""
    from safetensors.numpy import save_file

    from fogline.record.store import Store

    Store(folder).close()
    random = np.random.default_rng(0)
    (folder / "examples").mkdir(exist_ok=True)
    target = random.integers(0, CLASSES, rows)
    slow = random.random(rows) < 0.1
    other = (target + random.integers(1, CLASSES, rows)) % CLASSES
    for epoch in range(epochs):
        margin = random.normal(np.where(slow, 0.8 * (epoch - 0.8 * epochs), 0.6 * epoch), 2.0).astype(np.float32)
        confidence = 1 / (1 + np.exp(-margin))
        save_file(
            {
                "loss": -np.log(confidence + 1e-6).astype(np.float16),
                "margin": margin.astype(np.float16),
                "confidence": confidence.astype(np.float16),
                "correct": (margin > 0).astype(np.float16),
                "predicted": np.where(margin > 0, target, other).astype(np.int16),
                "gradient_norm": (1 - confidence).astype(np.float16),
            },
            folder / "examples" / f"epoch-{epoch:04d}.safetensors",
        )
    save_file({"target": target}, folder / "examples" / "targets.safetensors")
    described = {"kind": "classification", "count": rows, "classes": None}
    (folder / "run.json").write_text(json.dumps({"name": "large", "examples": described}))


def ask(folder: Path) -> dict[str, Any]:
    """Put the questions."""
    import fogline

    torch.set_num_threads(1)
    seconds: dict[str, float] = {}
    before = _largest()

    def timed(name: str, question: Any) -> Any:
        started = time.perf_counter()
        answer = question()
        seconds[name] = round(time.perf_counter() - started, 2)
        return answer

    examples = timed("open", lambda: fogline.examples(folder))
    timed("label_errors", examples.label_errors)
    timed("table", lambda: examples.table)
    timed("sql", lambda: examples.sql("select target, avg(label_error) as e from examples group by target order by e"))
    timed("export", lambda: examples.export(folder / "table.parquet"))
    timed("curve", lambda: examples.record.curve(5))
    return {
        "rows": len(examples),
        "epochs": len(examples.record.epochs),
        "seconds": seconds,
        "before": before,
        "largest": _largest(),
        "parquet": (folder / "table.parquet").stat().st_size / 2**20,
        "files": sum(path.stat().st_size for path in (folder / "examples").iterdir()) / 2**20,
    }


def neighbours(rows: int = 200_000, width: int = 64, exact: int = 20_000) -> dict[str, Any]:
    """Seconds that the ten nearest of each take, in cells and exactly, and the recall of cells on some of them."""
    from fogline._examples.neighbours import MOST_EXACT, nearest, nearest_by_cells, unit

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, CLASSES, (rows,), generator=generator)
    heaps = torch.randn(CLASSES, 16, generator=generator)[label] + 0.5 * torch.randn(rows, 16, generator=generator)
    vectors = unit(heaps @ torch.randn(16, width, generator=generator))
    started = time.perf_counter()
    found, _ = nearest_by_cells(vectors, 10)
    middle = time.perf_counter()
    nearest(vectors[:exact], k=10)
    ended = time.perf_counter()
    truth, _ = nearest(vectors[:500], vectors, k=11)
    hits = [len(set(a) & set(b[1:])) / 10 for a, b in zip(found[:500].tolist(), truth.tolist(), strict=True)]
    return {
        "rows": rows,
        "width": width,
        "seconds": middle - started,
        "recall": float(np.mean(hits)),
        "most_exact": MOST_EXACT,
        "exact_rows": exact,
        "exact_seconds": ended - middle,
    }


def _largest() -> float:
    """MiB; where Linux says so, without what the process had inherited when it began."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    what, rows, epochs, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    if what == "write":
        write(rows, epochs, folder)
    else:
        print(json.dumps(ask(folder)))
