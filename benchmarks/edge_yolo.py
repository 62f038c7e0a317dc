"""YOLO26n as an integer file, beside the files of Ultralytics' own export: accuracy at every stage, kernels, latency.

python benchmarks/edge_yolo.py                    # three seeds; half an hour of one core
python benchmarks/edge_yolo.py --seeds 1          # one
python benchmarks/edge_yolo.py --folder FOLDER    # keep trainings and measurements there, and take those that are there
python benchmarks/edge_yolo.py --write            # also the page of evidence
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import timing

timing.one_thread()

import torch  # noqa: E402

import fogline  # noqa: E402
from fogline.edge.kernels import float_twin  # noqa: E402
from fogline.edge.latency import alternating  # noqa: E402
from fogline.edge.subject import Subject  # noqa: E402
from fogline.edge.targets import onnx_call  # noqa: E402
from fogline.edge.training import fine_tuning  # noqa: E402
from yolo_parts.files import head_steps, their_files  # noqa: E402
from yolo_parts.quiet import quiet  # noqa: E402
from yolo_parts.shapes import draw  # noqa: E402

IMAGES, VALID, SIDE, BATCH, EPOCHS, RATE = 256, 96, 96, 8, 20, 3e-3
GENTLER = 30  # times lower is the rate of the fine-tuning
METRIC = "mAP50-95(B)"
METHODS = ("post-training", "quantization-aware")
ROUNDS = 25


def trained(seed: int, folder: Path) -> tuple[Any, fogline.Task, fogline.Run, dict[str, Any]]:
    """YOLO26n from its first weights by Fogline's engine, on shapes drawn with the seed."""
    from ultralytics import YOLO

    from fogline.plugins.ultralytics import recipe, task

    data = draw(folder / "data", train=IMAGES, valid=VALID, side=SIDE, seed=seed)
    settings = {"data": str(data), "imgsz": SIDE, "batch": BATCH, "nbs": BATCH, "epochs": EPOCHS, "seed": seed,
                "device": "cpu"}  # fmt: skip
    yolo: Any = YOLO("yolo26n.yaml")
    learned = task(yolo, **settings)
    place = folder / "runs" / "shapes"
    if (place / "run.json").exists() and fogline.Run.open(place).verdict is not None:
        return yolo, learned, fogline.Run.open(place, task=learned), settings
    how = recipe(yolo, **settings).replace(lr=RATE)
    run = fogline.fit(learned, how, runs=place.parent, name=place.name, progress=False)
    return yolo, learned, run, settings


def measured(seed: int, folder: Path) -> dict[str, Any]:
    """All files of one training, as plain values; what a folder holds of them is not measured again."""
    kept = folder / "measured.json"
    found = json.loads(kept.read_text()) if kept.exists() else {"seed": seed, "ours": {}, "theirs": {}}
    if len(found["ours"]) == len(METHODS) and "stamp" in found:
        return dict(found)
    yolo, learned, run, settings = trained(seed, folder)
    subject = Subject.of(run)
    for method in METHODS:
        if method not in found["ours"]:
            found["ours"][method] = of_ours(run, subject, method, folder)
    files = {f"ours, {method}": folder / f"{method}.onnx" for method in METHODS}
    for name, path in their_files(yolo, run.model, settings, folder / "theirs").items():
        files[f"Ultralytics, {name}"] = path
        if name not in found["theirs"]:
            report = fogline.inspect_export(path, learned)
            print(f"\nseed {seed}, Ultralytics, {name}\n{report}", flush=True)
            found["theirs"][name] = {**report.to_dict(), "path": ""}
    found |= {"times": timed(files, subject.sample(1).numpy()), "stamp": stamp()}
    kept.write_text(json.dumps(found))
    return dict(json.loads(kept.read_text()))


def of_ours(run: fogline.Run, subject: Subject, method: str, folder: Path) -> dict[str, Any]:
    """The report of one file, as plain values."""
    tuning = fine_tuning(subject).replace(lr=RATE / GENTLER, duration=f"{len(run.steps) // 10}st")
    report = fogline.export(run, folder / f"{method}.onnx", qat=None if method == METHODS[0] else tuning)
    print(f"\n{folder.name}, {method}\n{report}", flush=True)
    steps = head_steps(report.path, subject.sample(VALID).numpy())
    return {**report.to_dict(), "path": "", "tuned": "", "optimized_steps": steps}


def timed(files: dict[str, Path], row: Any) -> dict[str, list[float]]:
    """Microseconds a call in each round, of all files and our float one."""
    twin = float_twin(files[f"ours, {METHODS[0]}"])
    assert twin is not None
    calls = {"ours, float": onnx_call(twin, 1)} | {name: onnx_call(path, 1) for name, path in files.items()}
    times = alternating([lambda call=call: call(row) for call in calls.values()], rounds=ROUNDS)
    return dict(zip(calls, times, strict=True))


def stamp() -> dict[str, Any]:
    return timing.stamp(("torch", "ultralytics", "onnx", "onnxscript", "onnxruntime", "numpy"))


# -- the page ----------------------------------------------------------------------------------------------------------

ABOUT = f"""# YOLO26n as an integer file

Made by `python benchmarks/edge_yolo.py --write`. YOLO26n from its first weights on drawn shapes: {IMAGES} images of
{SIDE} pixels with one to four shapes of three kinds, {VALID} held out, {EPOCHS} epochs in batches of {BATCH} by
Fogline's engine through the plug-in. Each seed draws its own data, weights and order. All scores are mAP50-95 by
Ultralytics' own validator on images padded to squares, in hundredths, of the branch that needs no suppression.

## Accuracy

*Fake* is the model that rounds, *converted* the graph with integers, *runtime* the file in ONNX Runtime, with decoding
and choice in it. The last columns are of class logits and box distances before the choice, over all held-out images:
*fake - converted* and *steps off* (converted against runtime, in 1/255 of the range of an output) are the largest of
any value, *within 2* the share of values at most two steps apart, *equal* the share of equal decisions among the places
where either says that there is something (confidence 0.25). *Optimised* is the same file against itself in ONNX
Runtime, with its optimisations and without: the most steps between the integers the last convolutions give.
Quantization-aware training takes a tenth of the steps at a thirtieth of the learning rate; where no validation of it
was better than before its first step, or its result lost more, the post-training weights are kept, which *tuned* tells.
At a third, the default when this was measured, that was so on seed 0; since then the default measures its own rate.
"""

LATENCY = """## Latency

Microseconds a call of one image, one thread, all files in turn in one process: of each of {rounds} rounds the fastest
call, of these the median. *Float over it* is the time of our float file over its own, *their int8 over it* that of the
int8 file of Ultralytics with the same outputs (`nms=False`), both as the median over rounds of the ratio in a round.
The file *int8, default* of theirs has the other branch, whose boxes still have to be suppressed, which is not in its
time. A busy machine slows large files more than small ones: of several ratios the lowest counts.
"""


def hundredths(row: dict[str, Any], stage: str) -> str:
    return f"{100 * row['scores'][stage][METRIC]:.2f}"


def accuracy_rows(results: list[dict[str, Any]]) -> list[list[str]]:
    lines = []
    for found in results:
        for method, row in found["ours"].items():
            exact, runtime = row["differences"]["fake - converted"], row["differences"]["converted - runtime"]
            tuned = "yes" if row["method"] == "quantization-aware" else "no"
            lines.append([str(found["seed"]), method, tuned if method != METHODS[0] else "",
                          *(hundredths(row, stage) for stage in ("float", "fake", "converted", "runtime")),
                          f"{exact['largest']:g}", f"{runtime['steps']:.1f}", f"{100 * runtime['close']:.2f} %",
                          f"{100 * runtime['decisions']:.1f} %", str(row["optimized_steps"])])  # fmt: skip
        lines += [
            [str(found["seed"]), f"Ultralytics, {name}", "", "", "", "", hundredths(row, "runtime"), *[""] * 5]
            for name, row in found["theirs"].items()
        ]
    return lines


def over(found: dict[str, Any], first: str, second: str) -> float:
    """The median over rounds of one file's time over another's."""
    times = found["times"]
    return median(a / b for a, b in zip(times[first], times[second], strict=True))


def latency_rows(results: list[dict[str, Any]]) -> list[list[str]]:
    lines = []
    for found in results:
        for name, times in found["times"].items():
            ratios = (over(found, other, name) for other in ("ours, float", "Ultralytics, int8"))
            lines.append([str(found["seed"]), name, f"{median(times):.0f}", *(f"{ratio:.2f}" for ratio in ratios)])
    return lines


def targets(results: list[dict[str, Any]]) -> list[str]:
    """What was to be reached, and whether it was."""
    rows = {method: [found["ours"][method] for found in results] for method in METHODS}
    every = [row for group in rows.values() for row in group]
    tuned = [row for row in rows[METHODS[1]] if row["method"] == METHODS[1]]
    gaps = {
        name: max(100 * (row["scores"]["float"][METRIC] - row["scores"]["runtime"][METRIC]) for row in group)
        for name, group in (("post-training", rows[METHODS[0]]), (f"the {len(tuned)} fine-tuned files", tuned))
        if group
    }
    runtime = [row["differences"]["converted - runtime"] for row in every]
    beyond = {
        method: [
            found["ours"][method]["scores"]["runtime"][METRIC] - found["theirs"]["int8"]["scores"]["runtime"][METRIC]
            for found in results
        ]
        for method in METHODS
    }
    apart, most = max(map(abs, beyond[METHODS[0]])), max(beyond[METHODS[1]])
    faster = min(over(found, "ours, float", f"ours, {method}") for found in results for method in METHODS)
    beside = min(over(found, "Ultralytics, int8", f"ours, {method}") for found in results for method in METHODS)
    steps = max(item["steps"] for item in runtime)
    exact = max(row["differences"]["fake - converted"]["largest"] for row in every)
    claims = [
        *((f"{name}: at most 0.5 points below float, {gap:+.2f} at worst", gap <= 0.5) for name, gap in gaps.items()),
        ("fake and converted give the same bits", exact == 0),
        (f"converted and runtime at most two steps apart: {steps:.1f} at worst", steps <= 2),
        ("converted and runtime: 99.5 % equal decisions", min(item["decisions"] for item in runtime) >= 0.995),
        (f"int8 faster than float: {faster:.2f}x at least", faster > 1),
        (f"at least 2x faster than the int8 file of Ultralytics: {beside:.2f}x at least", beside >= 2),
        (
            f"mAP50-95 within 0.01 of the int8 file of Ultralytics, post-training as it is: {apart:.4f} at most (with "
            f"fine-tuning up to {most:.4f} above it)",
            apart <= 0.01,
        ),
    ]  # fmt: skip
    told = [f"- {claim}: **{'reached' if met else 'missed'}**" for claim, met in claims]
    untold = (
        "- fine-tuned at most 0.5 points below float: **not shown**, no fine-tuning was better than what it began with"
    )
    return told if tuned else [*told, untold]


def kernels(results: list[dict[str, Any]]) -> list[str]:
    """Of the first seed's files."""
    found = {"ours": results[0]["ours"][METHODS[0]], "Ultralytics, int8": results[0]["theirs"]["int8"]}
    lines = []
    for name, row in found.items():
        integer = ", ".join(f"{count} {kind}" for kind, count in row["kernels"]["integer"].items())
        floats = sum(item["kind"] == "Conv" for item in row["kernels"]["floating"])
        lines.append(
            f"- {name}: {integer}; {floats} convolutions and {len(row['kernels']['floating']) - floats} other "
            f"operators in floats; {row['bytes']:,} bytes."
        )
    return lines


def fine_tunings(results: list[dict[str, Any]]) -> list[str]:
    """What the reports say of them; shares are of the score of float, and a negative one is a gain."""
    noted = [(found["seed"], note) for found in results for note in found["ours"][METHODS[1]]["notes"]]
    return [f"- Seed {seed}: {note}." for seed, note in noted if "fine-tun" in note]


def page(results: list[dict[str, Any]]) -> str:
    """The page of evidence."""
    head = ("seed", "file", "tuned", "float", "fake", "converted", "runtime", "fake - converted", "steps off",
            "within 2", "equal", "optimised")  # fmt: skip
    lines = [ABOUT, timing.table(head, accuracy_rows(results), text_columns=3), ""]
    lines += [*fine_tunings(results), "", STEPS, "", LATENCY.format(rounds=ROUNDS)]
    lines += [timing.table(("seed", "file", "us", "float over it", "their int8 over it"), latency_rows(results),
                           text_columns=2)]  # fmt: skip
    lines += ["", "## Kernels in ONNX Runtime", "", *kernels(results), "", "## Targets", "", *targets(results)]
    lines += ["", "## Where and when", ""]
    return "\n".join([*lines, *(f"- seed {found['seed']}: {timing.describe(found['stamp'])}" for found in results)])


STEPS = """Why the steps are more than two: a hundred layers of rounding one after another are a chaotic map. Sums in
floats and in integers differ in the last bit, once in a hundred thousand values that is enough to round to the other
side, and every such value changes many in the layers behind it. The column *optimised* shows the same between two ways
to run one and the same file, which no export could mend."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="for trainings and measurements, which are kept there")
    parser.add_argument("--write", action="store_true", help="write docs/evidence/edge-yolo.md and edge-yolo.json")
    options = parser.parse_args()
    missing = [name for name in ("ultralytics", "onnxslim", "onnxruntime") if find_spec(name) is None]
    if missing:
        print(f"{', '.join(missing)} not installed here; benchmarks/README.md says how to have an environment for it")
        return
    torch.set_num_threads(1)
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="edge-yolo-"))).resolve()
    quiet(folder)
    results = [measured(seed, folder / f"seed-{seed}") for seed in range(options.seeds)]
    print("\n" + page(results))
    if options.write:
        timing.write_evidence("edge-yolo", page(results), {"results": results})


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # as in yolo.py
