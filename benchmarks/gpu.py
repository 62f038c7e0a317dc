"""What only a GPU can show: steps beside a hand-written loop, many at once, memory, and the doctor's time there.

    python benchmarks/gpu.py                  # everything, about two minutes
    python benchmarks/gpu.py --only steps     # one part
    python benchmarks/gpu.py --json FILE      # also FILE, part by part
    python benchmarks/gpu.py --page FILE      # docs/evidence/gpu.md from such a file, anywhere

Contenders take slices in turn in one process, and a slice ends when the device is done; ``--device cpu`` tries the
script itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fogline
import population
import timing
from fogline import Recipe, Task
from fogline.data.source import InMemory
from fogline.descent.batches import Batches
from fogline.descent.objective import Objective
from fogline.descent.population import Population, populate
from fogline.descent.prepare import operations_of
from fogline.descent.resolve import WORTH_ROUNDING

_FOREVER = "10000000st"


@dataclass(frozen=True)
class Problem:
    """A model, its data on the device, and how it is trained."""

    title: str
    model: Callable[[], nn.Module]
    data: tuple[Tensor, Tensor]
    batch: int
    optimizer: str
    precision: str = "float32"


class LanguageModel(nn.Module):
    """A decoder of six layers, 512 wide, over 1,000 words; logits of shape (rows, words, places)."""

    def __init__(self, words: int = 1000, width: int = 512, layers: int = 6, places: int = 256) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Parameter(0.02 * torch.randn(places, width))
        layer = nn.TransformerEncoderLayer(width, 8, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, words)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(places), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layers(self.words(x) + self.places[: x.shape[1]], mask=self.mask, is_causal=True)
        logits: Tensor = self.head(hidden).transpose(1, 2)
        return logits


def problems(device: torch.device) -> list[Problem]:
    """Made with seed 0."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    def numbers(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator).to(device)

    def mlp() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))

    def cnn() -> nn.Module:
        widths, layers = (3, 32, 64, 128), list[nn.Module]()
        for a, b in pairwise(widths):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, 10))

    text = numbers(1000, 512, 257)
    return [
        Problem("MLP 64-128-128-10, batch 64, AdamW", mlp, (normal(4096, 64), numbers(10, 4096)), 64, "adamw"),
        Problem("CNN 3 x 32 x 32, batch 128, momentum", cnn, (normal(8192, 3, 32, 32), numbers(10, 8192)), 128,
                "momentum"),
        Problem("transformer, 20M, 16 x 256, AdamW, bf16", LanguageModel, (text[:, :-1], text[:, 1:]), 16, "adamw",
                "bf16"),
    ]  # fmt: skip


def raw(problem: Problem, device: torch.device) -> Iterator[Tensor]:
    """The hand-written loop: rows shuffled on the device once an epoch, fused optimizer, nothing waits."""
    torch.manual_seed(0)
    model, loss_fn = problem.model().to(device).train(), nn.CrossEntropyLoss()
    fused = device.type == "cuda"
    optimizer: torch.optim.Optimizer = (
        torch.optim.AdamW(model.parameters(), lr=1e-4, fused=fused)
        if problem.optimizer == "adamw"
        else torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=fused)
    )
    half = problem.precision == "bf16"
    while True:
        order = torch.randperm(len(problem.data[0]), device=device)
        for rows in order.split(problem.batch):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16) if half else nullcontext():
                loss = loss_fn(model(problem.data[0][rows]), problem.data[1][rows])
            loss.backward()
            optimizer.step()
            yield loss


def ours(problem: Problem, device: torch.device, **changes: Any) -> Iterator[Any]:
    """``fogline.descend``, with its log, signals and checkpoints."""
    recipe = Recipe(
        optimizer=problem.optimizer, lr=1e-4 if problem.optimizer == "adamw" else 1e-3, batch_size=problem.batch,
        duration=_FOREVER, schedule="constant", warmup=0, device=str(device), precision=problem.precision, seed=0,
    ).replace(**changes)  # fmt: skip
    task = Task(problem.model, nn.CrossEntropyLoss(), problem.data)
    return fogline.descend(task, recipe, runs=tempfile.mkdtemp(prefix="gpu-"), progress=False)


def waited(device: torch.device) -> None:
    """Until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turn(
    loops: dict[str, Iterator[Any]], device: torch.device, seconds: float, rounds: int
) -> dict[str, list[float]]:
    """Seconds a step of each loop, slice by slice."""
    counts = {}
    for name, loop in loops.items():
        for _ in range(30):
            next(loop)
        waited(device)
        started = time.perf_counter()
        for _ in range(30):
            next(loop)
        waited(device)
        counts[name] = max(10, int(30 * seconds / (time.perf_counter() - started)))
    found: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(rounds):
        for name in list(loops) if turn % 2 else list(loops)[::-1]:
            started = time.perf_counter()
            for _ in range(counts[name]):
                next(loops[name])
            waited(device)
            found[name].append((time.perf_counter() - started) / counts[name])
    return found


def steps(device: torch.device, seconds: float, rounds: int) -> list[dict[str, Any]]:
    """Microseconds a step, and the ratio to the hand-written loop."""
    rows = []
    for problem in problems(device):
        loops = {
            "raw": raw(problem, device),
            "fogline eager": ours(problem, device, step="eager"),
            "fogline": ours(problem, device),
            "fogline, no examples": ours(problem, device, examples=False),
            "fogline, no watching": ours(problem, device, examples=False, watch=0.0),
        }
        found = in_turn(loops, device, seconds, rounds)
        for name, times in found.items():
            ratios = [a / b for a, b in zip(times, found["raw"], strict=True)]
            rows.append({"problem": problem.title, "loop": name, "us": 1e6 * statistics.median(times),
                         "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)})  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def sizes(device: torch.device) -> list[Problem]:
    """Networks of growing width: where a step of bfloat16 begins to be the faster one."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (2048,), generator=generator).to(device)
    rows = torch.randn(2048, 256, generator=generator).to(device)
    pictures = torch.randn(2048, 3, 32, 32, generator=generator).to(device)

    def perceptron(width: int) -> Callable[[], nn.Module]:
        def made() -> nn.Module:
            wide = [layer for _ in range(3) for layer in (nn.Linear(width, width), nn.ReLU())]
            return nn.Sequential(nn.Linear(256, width), nn.ReLU(), *wide, nn.Linear(width, 10))

        return made

    def cnn(width: int) -> Callable[[], nn.Module]:
        def made() -> nn.Module:
            layers = list[nn.Module]()
            for a, b in pairwise((3, width, width, 2 * width, 2 * width)):
                layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
            return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))

        return made

    return [
        *(Problem(f"perceptron, 4 of {w}", perceptron(w), (rows, labels), 256, "adamw") for w in (256, 1024, 4096)),
        *(Problem(f"CNN, 4 of {w} to {2 * w}", cnn(w), (pictures, labels), 128, "adamw") for w in (16, 64)),
        *(problem for problem in problems(device) if problem.precision == "bf16"),
    ]


def rounding(device: torch.device, seconds: float, rounds: int) -> list[dict[str, Any]]:
    """A step in bfloat16 over one in float32, by the operations of a forward pass."""
    rows = []
    for problem in sizes(device):
        loops = {p: ours(problem, device, precision=p, examples=False) for p in ("float32", "bf16")}
        found = in_turn(loops, device, seconds, rounds)
        ratios = [a / b for a, b in zip(found["bf16"], found["float32"], strict=True)]
        counted = Objective(problem.model().to(device), nn.CrossEntropyLoss(), device_type=device.type)
        batch = tuple(leaf[: problem.batch] for leaf in problem.data)
        rows.append({"problem": problem.title, "operations": operations_of(counted, batch),
                     "us": 1e6 * statistics.median(found["float32"]), "ratio": statistics.median(ratios),
                     "low": min(ratios), "high": max(ratios)})  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def together(device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """A step of 32 members in one program, in steps of one model, and which form is chosen."""
    rows = []
    for problem in population.problems():
        data = tuple(leaf.to(device) for leaf in problem.data)
        objective = Objective(problem.model.to(device), problem.loss)
        batches = Batches(InMemory(data), 64, device=device)
        recipe = Recipe(optimizer=problem.optimizer, batch_size=64)
        chosen = populate(objective, recipe, population.MEMBERS, batches)
        held = [batches.at(k) for k in range(8)]

        def loop(many: Population, held: list[Any] = held) -> Iterator[None]:
            rates = [10 ** (-4 + 3 * k / 31) for k in range(many.size)]
            k = 0
            while True:
                many.step(k, held[k % 8], rates)
                k += 1
                yield

        one = populate(objective, recipe, 1, batches, together=False).population
        many = populate(objective, recipe, population.MEMBERS, batches, together=True).population
        found = in_turn({"one": loop(one), "many": loop(many)}, device, 0.3, rounds)
        ratio = statistics.median(a / b for a, b in zip(found["many"], found["one"], strict=True))
        rows.append({"problem": problem.title, "one_us": 1e6 * statistics.median(found["one"]), "ratio": ratio,
                     "chosen": "together" if chosen.together else "in turn", "why": chosen.why})  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def memory(device: torch.device) -> list[dict[str, Any]]:
    """Peak of device memory of 20 steps of the language model, and seconds a step."""
    rows = []
    problem = problems(device)[2]
    for name, changes in {
        "as it is": {},
        "activations computed again": {"checkpoint_activations": True},
        "four micro-batches": {"accumulate": 4, "batch_size": problem.batch // 4},
        "state in 8 bits": {"optimizer": "adamw8bit"},
    }.items():
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        try:
            # What a CUDA graph holds for itself does not show in this count.
            loop = ours(problem, device, examples=False, step="eager", **changes)
            for _ in range(10):
                next(loop)
        except (ImportError, RuntimeError, ValueError) as error:
            rows.append({"what": name, "failed": str(error)[:300]})
            print(rows[-1], flush=True)
            continue
        waited(device)
        torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        for _ in range(10):
            next(loop)
        waited(device)
        rows.append({"what": name, "MiB": (torch.cuda.max_memory_allocated() - before) / 2**20,
                     "ms": 100 * (time.perf_counter() - started)})  # fmt: skip
        loop.close()  # type: ignore[attr-defined]  # a generator
        print(rows[-1], flush=True)
    return rows


def doctor(device: torch.device) -> list[dict[str, Any]]:
    """Causes found, seconds of the diagnosis and of a run, there and on the CPU."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(2048, 16, generator=generator)
    y = ((X[:, :4] ** 2).sum(1) > 3.4).long()

    def net(*last: nn.Module) -> Callable[[], nn.Module]:
        return lambda: nn.Sequential(
            nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2), *last
        )

    cases = {
        "sound": (net(), X, 1e-2), "rate too high": (net(), X, 3.0), "softmax twice": (net(nn.Softmax(1)), X, 1e-2),
        "inputs not scaled": (net(), 3e3 * X + 1e4, 1e-3),
    }  # fmt: skip
    rows = []
    for name, (model, inputs, lr) in cases.items():
        row: dict[str, Any] = {"case": name}
        for where in ("cpu", str(device)):
            task = Task(model, nn.CrossEntropyLoss(), (inputs[:1536], y[:1536]), valid=(inputs[1536:], y[1536:]))
            recipe = Recipe(optimizer="adamw", lr=lr, batch_size=64, duration="1000st", device=where,
                            precision="float32")  # fmt: skip
            started = time.perf_counter()
            fogline.fit(task, recipe, runs=tempfile.mkdtemp(), progress=False)
            row[f"{where} run"] = time.perf_counter() - started
            started = time.perf_counter()
            report = fogline.diagnose(task, recipe)
            row[f"{where} diagnosis"] = time.perf_counter() - started
            row[f"{where} says"] = [report.verdict, *(finding.cause for finding in report.findings)]
        rows.append(row)
        print(row, flush=True)
    return rows


ABOUT = """# On a GPU

Made by `python benchmarks/gpu.py --json FILE` on the machine named below and `--page FILE`. {stamp}

PyTorch there is {torch}: an older one than this project asks for, of which the same code runs. Contenders take slices
in turn in one process, a slice ends when the device is done, and the ratio is that of neighbours: median, and the
lowest and highest of the rounds.

## A step

*Raw* is a loop written by hand: data on the device, rows shuffled there, fused optimizer, nothing that waits.
`fogline` is `fogline.descend` as it is, with its log, signals and checkpoints; its step is one CUDA graph, replayed
(`step="eager"` beside it). What an example did is recorded or not.

{steps}

## Rounding

A step in bfloat16 over one in float32. `precision="auto"` takes bfloat16 where the forward pass over a batch has at
least {worth:.0e} operations.

{rounding}

## Many at once

A step of 32 models in one program, in steps of one of them taken eagerly; taking turns would cost 32. The target is 4.

{together}

## Memory

Peak of the device's memory over ten eager steps of the transformer, without what was there before, and the time of a
step. The state in 8 bits is compiled by torchao; most of this network's memory is activations.

{memory}

## The doctor

Seconds of a whole run and of its diagnosis, there and on the CPU of the same machine, and what was said. The models are
small: their steps wait for launches, and trials step eagerly. {doctor_stamp}

{doctor}

## What `tests/test_gpu.py` holds there

No host synchronisation between log points; a captured step has the bits of the eager one (at a rate that float32 holds
exactly), and what an example did is the same to three digits; a run that was cut and resumed has the same bits, also
where it goes on at a short batch; a refused step changes nothing and is named; memory that does not suffice changes no
result; every optimizer steps as on the CPU, and gradients are clipped as there; two processes on one device (gloo) take
the steps of one, and so does a group of one process over NCCL, both with the whole model in each (`ddp`) and with a
part of it (`fsdp`, PyTorch's FSDP2); small steps stay in float32 and large ones do not; `nn.BCELoss` is trained in
mixed precision; what was trained there is exported, with quantization-aware training; the doctor and `find_lr` say what
they say on the CPU.

On 2026-11-27 (commit 5002506 and the tests of groups) 40 of 42 passed: `adagrad` fails in PyTorch {torch}, which makes
its state when the optimizer is made (it works from 2.13 on, on the CPU at least), and a model that reads a number of
its own on the way failed because the doctor's first look made PyTorch warn, and the tests take warnings for errors.
Such warnings are caught since. 1,954 of the other tests ran there as well, their data on the CPU and `device="auto"`.
They showed, beside what compares a tensor on the device with one on the CPU, forks a process or compiles for want of an
older PyTorch: that a NaN which reaches `nn.BCELoss` on a device ends the process, in PyTorch itself (such rows are
taken out before it is asked since, and the step is refused as on the CPU); that copies of recurrent layers lay in many
pieces; and that a leverage of the doctor's reference was a difference of nearly equal numbers, and so another one with
another library of linear algebra. All are mended; the run that was to show it there reached its limit of time with two
of 112 failed, which it did not come to name.

The doctor said the same there as on the CPU about 124 of 127 programs (a sample, a one-off), and first the same about
125. Of eleven watched loops ten had the same findings; rows with NaN in a watched loop are told as `nan_in_data` on the
CPU and as `nan_source` there, where nobody waits to look at the batch in time.

Tests that were added on 2026-11-28 have not run there: losses of a batch, batches whose tensors are no rows, and the
look ahead at the end, each beside the CPU.

Not measured: several GPUs. Small models are examined faster on the CPU: the doctor's trials step eagerly, one model
after another.
"""


def page(found: dict[str, Any]) -> str:
    """The evidence page from what was measured."""
    ratio = [
        [
            row["problem"],
            row["loop"],
            f"{row['us']:,.0f}",
            f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})",
        ]
        for row in found["steps"]
    ]
    rounded = [
        [row["problem"], f"{row['operations']:.1e}", f"{row['us']:,.0f}",
         f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"]
        for row in sorted(found["rounding"], key=lambda row: row["operations"])
    ]  # fmt: skip
    many = [
        [row["problem"], f"{row['one_us']:,.0f}", f"{row['ratio']:.1f}", row["chosen"]] for row in found["together"]
    ]
    memories = [
        [row["what"], *(["", "", row["failed"]] if "failed" in row else [f"{row['MiB']:,.0f}", f"{row['ms']:.1f}", ""])]
        for row in found["memory"]
    ]
    doctors = [
        [row["case"], *(f"{row[f'{where} {what}']:.1f}" for where in ("cpu", "cuda") for what in ("run", "diagnosis")),
         ", ".join(row["cuda says"]), "the same" if row["cpu says"] == row["cuda says"] else ", ".join(row["cpu says"])]
        for row in found["doctor"]
    ]  # fmt: skip
    return ABOUT.format(
        stamp=timing.describe(found["stamp"]).rstrip(".") + f"; {found['device']}.",
        torch=found["stamp"]["versions"]["torch"],
        steps=timing.table(["problem", "loop", "us a step", "of raw"], ratio, text_columns=2),
        worth=WORTH_ROUNDING,
        rounding=timing.table(["problem", "operations", "us, float32", "of float32"], rounded),
        together=timing.table(["problem", "us, one", "32 together", "chosen"], many),
        memory=timing.table(["what", "MiB", "ms a step", ""], memories),
        doctor_stamp=timing.describe(found["stamps"]["doctor"]),
        doctor=timing.table(["case", "CPU: run", "diagnosis", "GPU: run", "diagnosis", "said", "on the CPU"], doctors),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=["steps", "rounding", "together", "memory", "doctor"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.4)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    asked = parser.parse_args()
    if asked.page is not None:
        found = json.loads(asked.page.read_text())
        timing.write_evidence("gpu", page(found), found)
        return
    if asked.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here, which this benchmark is about")
        return
    device = torch.device(asked.device)
    found: dict[str, Any] = {"device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
                             "stamp": timing.stamp()}  # fmt: skip
    parts: dict[str, Callable[[], Any]] = {
        "steps": lambda: steps(device, asked.seconds, asked.rounds),
        "rounding": lambda: rounding(device, asked.seconds, asked.rounds),
        "together": lambda: together(device, asked.rounds),
        "memory": lambda: memory(device),
        "doctor": lambda: doctor(device),
    }
    for part in asked.only:
        found[part] = parts[part]()
        found.setdefault("stamps", {})[part] = timing.stamp()
        if asked.json is not None:
            asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
