"""What the page of examples costs at a million examples, and what edits of likely label errors are worth."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import timing

COUNT, EPOCHS, CLASSES = 1_000_000, 20, 100
SEEDS, SUREST = 3, 0.8
FASHION = Path(os.environ.get("FOGLINE_DATA", timing.ROOT.parent / "shared" / "data" / "fashion_mnist_16k.npz"))


# -- a million examples --------------------------------------------------------------------------------------------


def make_run(folder: Path) -> None:
    """A run of a million examples of a hundred classes, a tenth of them labelled wrongly, over twenty epochs."""
    from fogline.record.example_files import epoch_file, targets_file, write
    from fogline.record.store import Store

    store, random = Store(folder), np.random.default_rng(0)
    truth = random.integers(0, CLASSES, COUNT)
    wrong = random.random(COUNT) < 0.1
    target = np.where(wrong, (truth + random.integers(1, CLASSES, COUNT)) % CLASSES, truth)
    ease = random.uniform(1.0, 3.0, COUNT)
    for epoch in range(EPOCHS):
        share = (epoch + 1) / EPOCHS
        sure = 1 / (1 + CLASSES * np.exp(-12 * share * ease + random.normal(0, 1.0, COUNT)))
        learned = np.where(wrong, np.clip(share - 0.6, 0, 1) * random.random(COUNT) * 2, sure).clip(1e-4, 1 - 1e-4)
        predicted = np.where(random.random(COUNT) < sure, truth, random.integers(0, CLASSES, COUNT))
        values = {
            "loss": -np.log(learned),
            "margin": np.log(learned / (1 - learned)),
            "confidence": learned,
            "correct": predicted == target,
            "gradient_norm": 3 * (1 - learned),
        }
        columns: dict[str, Any] = {name: column.astype(np.float16) for name, column in values.items()}
        write(epoch_file(folder, epoch, 1000 * epoch, columns | {"predicted": predicted.astype(np.int16)}))
    write(targets_file(folder, target.astype(np.int64)))
    about = {"kind": "classification", "count": COUNT, "classes": [f"class {k}" for k in range(CLASSES)]}
    store.write_info({"name": folder.name, "verdict": None, "recipe": {}, "task": {}, "examples": about})
    store.close()


def page(folder: Path) -> list[dict[str, Any]]:
    """Seconds of what the page asks for, in this process; the first includes reading the whole record."""
    from fogline._examples.edits import Edits
    from fogline.dashboard import query
    from fogline.dashboard.example_cards import cards
    from fogline.dashboard.example_table import Tables, selected
    from fogline.plots.example_map import example_map_figure

    tables, rows = Tables(), []

    def timed(what: str, call: Any) -> Any:
        begin, processor = time.perf_counter(), _processor()
        found = call()
        rows.append({"what": what, "seconds": time.perf_counter() - begin, "processor": _processor() - processor})
        return found

    seen = timed("the table and the ranking, once", lambda: tables.of(folder))
    timed("the map", lambda: example_map_figure(seen.with_edits, "label_error"))
    sent = timed("the map again, as JSON", lambda: example_map_figure(seen.with_edits, "target").to_json())
    rows[-1]["kilobytes"] = len(sent) / 1e3
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    region = np.stack([0.2 + 0.15 * np.cos(angles), 0.3 + 0.25 * np.sin(angles)], axis=1).tolist()
    chosen = timed("a lasso of sixty corners", lambda: selected(seen, {"region": region}))
    rows[-1]["examples"] = len(chosen)
    timed("a list, ordered for the first time", lambda: selected(seen, {"list": "unsure"}))
    timed("a page of 24 with their curves", lambda: cards(seen, seen.with_edits, chosen[:24].tolist(), "run"))
    timed("deciding about 10,000", lambda: Edits(folder).drop(range(10_000)))
    examples = {"file": str(seen.columns_file), "edits": [], "chosen": []}
    sql = "select target_class, count(*), avg(label_error) from examples group by 1 order by 3 desc limit 10"
    timed("a question in SQL, in its own process", lambda: query.ask(folder, sql, examples))
    rows.append({"what": "peak memory, MB", "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024})
    return rows


def _processor() -> float:
    """Seconds of processor time of this process and those it has waited for."""
    found = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in found)


def measured_page() -> list[dict[str, Any]]:
    """:func:`page` in a process of its own, whose memory is counted."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "million"
        make_run(folder)
        command = [sys.executable, __file__, "--page", str(folder)]
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
        found: list[dict[str, Any]] = json.loads(ended.stdout)
        return found


# -- what edits are worth ------------------------------------------------------------------------------------------


def programs() -> dict[str, Any]:
    """Inputs and labels to train on and held out, a model, and a duration, by name; those whose data is there."""
    from sklearn.datasets import load_digits
    from torch import nn

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    X, y = (digits.data / 16).astype(np.float32)[order], digits.target[order].astype(np.int64)
    found = {
        "digits, MLP": (
            (X[:1000], y[:1000]),
            (X[1000:], y[1000:]),
            lambda: nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)),
            "30ep",
        )
    }
    if FASHION.exists():
        data = np.load(FASHION)
        X, y = (data["x_train"][:, None] / 255).astype(np.float32), data["y_train"].astype(np.int64)
        held = (data["x_test"][:, None] / 255).astype(np.float32), data["y_test"].astype(np.int64)

        def small() -> nn.Module:
            layers = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            layers += [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1568, 10)]
            return nn.Sequential(*layers)

        found["Fashion-MNIST 2k, CNN"] = ((X[:2000], y[:2000]), held, small, "6ep")
    return found


def edited(program: str, seen: Any, truth: Any, wrong: Any) -> list[dict[str, Any]]:
    """Retrain with each way to edit; the edits are taken back."""
    likely = seen.label_errors()
    surest = int((likely.probability > SUREST).sum())
    ways: list[tuple[str, Any, Any]] = [
        ("all above one half as likely", likely.ids[: likely.cut], likely.likely[: likely.cut]),
        (f"those above {SUREST} as likely", likely.ids[:surest], likely.likely[:surest]),
        ("all truly wrong ones", wrong, truth[wrong]),
    ]
    rows = []
    for how, chosen, labels in ways:
        seen.edit(chosen, "relabel", labels.tolist())
        found = seen.retrain(seeds=SEEDS).difference
        seen.edits.undo()
        without, with_edits = float(np.mean(found.without)), float(np.mean(found.with_edits))
        row = {"program": program, "how": how, "edited": len(chosen)}
        row |= {"truly_wrong": int(np.isin(chosen, wrong).sum()), "right": int((labels == truth[chosen]).sum())}
        scores = {"without": without, "with": with_edits, "difference": found.mean, "interval": found.interval}
        rows.append({**row, **scores, "words": str(found)})
    return rows


def worth(noise: float) -> list[dict[str, Any]]:
    """Held-out accuracy with edits against without, for three ways to edit, over paired seeds."""
    import torch
    from torch import nn

    import fogline

    rows = []
    for name, ((X, y), held, model, duration) in programs().items():
        random = np.random.default_rng(1)
        wrong = np.flatnonzero(random.random(len(y)) < noise)
        given = y.copy()
        given[wrong] = (y[wrong] + random.integers(1, 10, len(wrong))) % 10
        task = fogline.Task(model, nn.CrossEntropyLoss(), (X, given), valid=tuple(map(torch.from_numpy, held)))
        recipe = fogline.Recipe(optimizer="adamw", lr=2e-3, batch_size=64, duration=duration, step="eager", watch=0.01)
        with tempfile.TemporaryDirectory() as runs:
            run = fogline.fit(task, recipe, runs=runs, progress=False)
            rows += edited(name, fogline.examples(fogline.Run.open(run.folder), task), y, wrong)
    return rows


# -- tables --------------------------------------------------------------------------------------------------------


def page_table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        more = f"{row['kilobytes']:.0f} kB" if "kilobytes" in row else ""
        more = f"{row['examples']:,} examples" if "examples" in row else more
        if "megabytes" in row:
            more = f"{row['megabytes']:.0f} MB"
        times = [f"{row[key]:.2f}" if key in row else "" for key in ("processor", "seconds")]
        lines.append([row["what"].removesuffix(", MB"), *times, more])
    return timing.table(["what", "processor, s", "wall, s", ""], lines)


def worth_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        [
            row["program"],
            row["how"],
            row["edited"],
            row["truly_wrong"],
            row["right"],
            f"{row['without']:.4f}",
            f"{row['with']:.4f}",
            f"{row['difference']:+.4f} ({row['interval'][0]:+.4f} to {row['interval'][1]:+.4f})",
        ]
        for row in rows
    ]
    head = ["program", "relabelled", "how many", "truly wrong", "now right", "without", "with", "difference (95 %)"]
    return timing.table(head, lines, text_columns=2)


PAGE = """# The page of examples, and what edits are worth

Made by `python benchmarks/example_page.py --write`.

{stamp}

## A million examples

{count:,} examples of {classes} classes over {epochs} epochs, drawn with seed 0; one process, as the dashboard has it.

{page}

The first line is needed once, and again when an epoch has been recorded. Wall times are those of a machine that was
busy with other things, as the load says.

## Edits of likely label errors

Symmetric noise of 20 % was planted in the training labels (seed 1); held-out labels are as they were. The run is one of
seed 0; likely label errors are those of `fogline.examples(run, task)`. Held-out accuracy, mean over seeds 0 to {last},
and the paired difference with its interval over seeds.

{worth}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the page of evidence")
    parser.add_argument("--page", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    timing.one_thread()
    if arguments.page:
        print(json.dumps(page(arguments.page)))
        return
    rows, edits = measured_page(), worth(0.2)
    print(page_table(rows))
    print(worth_table(edits))
    if arguments.write:
        stamped = timing.stamp(["torch", "numpy", "duckdb", "plotly", "scikit-learn"])
        text = PAGE.format(
            stamp=timing.describe(stamped),
            count=COUNT,
            classes=CLASSES,
            epochs=EPOCHS,
            page=page_table(rows),
            worth=worth_table(edits),
            last=SEEDS - 1,
        )
        timing.write_evidence("examples", text, {"stamp": stamped, "page": rows, "worth": edits})


if __name__ == "__main__":
    main()
