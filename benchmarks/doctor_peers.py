"""Published diagnosis tools on the programs of ``doctor.py``: what they detect, cry wolf at, name, and cost.

    python benchmarks/doctor_peers.py --half calibration
    python benchmarks/doctor_peers.py --half all --json build/doctor-peers.json --write   # also docs/evidence

Each program is a plain hand-written loop (``doctor_parts/plain.py``), each tool is used as its documentation says
with its default thresholds (``tools.py``), and its alarms are translated into our identifiers as generously as its
own words allow (``meaning.py``). ``--json`` keeps what every tool said, so that the translation can be checked or made
anew with ``--tables``. The tools that listen to a run do it together; costs are measured alone, for one program in
sixteen, in processor time on one thread.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timing

timing.one_thread()

import torch  # noqa: E402 - after the number of threads is set

from doctor_parts.meaning import MEANING, SEVERE, counted, right  # noqa: E402
from doctor_parts.plain import StandIn, Tool, fingerprint, run  # noqa: E402
from doctor_parts.tools import BEFORE, BY_DEFAULT, DURING, HOOKED  # noqa: E402
from faults import HALVES, Program, programs  # noqa: E402

TOOLS = [*DURING, *BEFORE]
PACKAGES = ["torch", "numpy", "scikit-learn", *TOOLS]
EVERY = 16  # one program in so many is run with each tool alone, to see what it costs
MODULES = ["torchmortem", "torch_audit", "trainwatch", "mldoctor", "torchtest2", "torchtest", "torchdiag"]
AUDIT = "torch-audit"
MESSAGE = 140  # characters of a message that are kept
Row = dict[str, Any]


class Timed(Tool):
    """A tool whose calls are timed, and whose crashes are kept from the program and from other tools."""

    def __init__(self, tool: Tool) -> None:
        super().__init__()
        self.tool, self.seconds, self.error = tool, 0.0, ""
        self.before_training = tool.before_training
        for call in ("begin", "check", "backward", "step", "epoch", "end"):
            setattr(self, call, self._timed(getattr(tool, call)))

    def _timed(self, call: Callable[..., None]) -> Callable[..., None]:
        def timed(*values: Any) -> None:
            if self.error:
                return
            started = time.process_time()
            try:
                call(*values)
            except Exception as error:  # noqa: BLE001 - a crash of the tool is a result
                self.error = _told(error)
            self.seconds += time.process_time() - started

        return timed


def examined(program: Program, *, costed: bool) -> Row:
    """What every tool says of one program, and what the tools cost if that is asked for."""
    warnings.simplefilter("ignore")
    _, losses, error, tools = _ran(program, DURING)
    for name, make in BEFORE.items():
        tools |= _ran(program, {name: make})[3]
    row: Row = {
        "name": program.name,
        "kind": program.kind,
        "causes": list(program.causes),
        "also": list(program.also),
        "half": program.half,
        "program": fingerprint(losses),
        "error": error,
        "tools": {name: {"alarms": _alarms(tool), "error": tool.error} for name, tool in tools.items()},
    }
    return row | {"cost": _costs(program)} if costed and not error else row


def _costs(program: Program) -> dict[str, float]:
    """Processor seconds of each tool alone over those of the run without any."""
    own = _ran(program, {})[0]
    costs = {}
    for name, make in (DURING | BEFORE).items():
        seconds, _, _, tools = _ran(program, {name: make})
        took = seconds - own if name in HOOKED else tools[name].seconds
        costs[name] = round(took / own, 3)
    return costs


def _ran(program: Program, makers: dict[str, Callable[[], Tool]]) -> tuple[float, list[float], str, dict[str, Timed]]:
    """A run with some tools: processor seconds, losses, the program's own error, the tools."""
    tools = {name: Timed(make()) for name, make in makers.items()}
    stand_in, error = StandIn(list(tools.values())), ""
    started = time.process_time()
    try:
        run(program, stand_in)
    except Exception as raised:  # noqa: BLE001 - programs that PyTorch refuses are among the faulty
        error = _told(raised)
    return time.process_time() - started, stand_in.losses, error, tools


def _alarms(tool: Timed) -> list[Row]:
    """What it said, equal alarms once with how often."""
    alarms: dict[tuple[str, str], Row] = {}
    for alarm in tool.tool.found:
        facts = asdict(alarm) | {"message": alarm.message[:MESSAGE], "times": 0}
        kept = alarms.setdefault((alarm.check, alarm.level), facts)
        kept["times"] += 1
        if alarm.where == BY_DEFAULT:
            kept["where"] = BY_DEFAULT
    return list(alarms.values())


def _told(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:MESSAGE]} ({Path(frames[-1].filename).name}:{frames[-1].lineno})"


COLUMNS = [
    "tool", "detected", "false alarms", "severe: detected", "severe: false alarms", "first right", "right among three",
    "causes an alarm", "cost, times the run", "crashes",
]  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """A line for each tool."""
    lines = [_line(name, name, rows) for name in TOOLS]
    lines.insert(TOOLS.index(AUDIT) + 1, _line("torch-audit, default interval", AUDIT, rows, BY_DEFAULT))
    return timing.table(COLUMNS, lines)


def _line(title: str, tool: str, rows: Sequence[Row], where: str = "") -> list[str]:
    faulty, healthy = [row for row in rows if row["causes"]], [row for row in rows if not row["causes"]]

    def said(row: Row, severe: bool = False) -> list[str]:
        alarms = [alarm for alarm in row["tools"][tool]["alarms"] if where in alarm["where"]]
        return counted(tool, [alarm["check"] for alarm in alarms if not severe or alarm["level"] in SEVERE])

    def named(row: Row, first: int) -> bool:
        return right(tool, said(row)[:first], [*row["causes"], *row["also"]])

    first = [len(MEANING[tool][said(row)[0]]) for row in rows if said(row)]
    costs = timing.Spread.of([row["cost"][tool] for row in rows if "cost" in row] or [0.0])
    return [
        title,
        _share(bool(said(row)) for row in faulty),
        _share(bool(said(row)) for row in healthy),
        _share(bool(said(row, True)) for row in faulty),
        _share(bool(said(row, True)) for row in healthy),
        _share(named(row, 1) for row in faulty),
        _share(named(row, 3) for row in faulty),
        f"{statistics.fmean(first):.1f}" if first else "-",
        "-" if where else f"{costs.median:.2f} ({costs.low:.2f} to {costs.high:.2f})",
        str(sum(bool(row["tools"][tool]["error"]) for row in rows)),
    ]


def _constant(rows: Sequence[Row]) -> str:
    """What naming a cause is worth: how often the best answer that is always the same is right."""
    faulty = [row for row in rows if row["causes"]]
    answers = [cause for row in faulty for cause in {*row["causes"], *row["also"]}]
    best = max(sorted(set(answers)), key=answers.count)
    share = _share(best in [*row["causes"], *row["also"]] for row in faulty)
    return f"To say `{best}` of every program would be right for {share}."


def _share(values: Iterable[bool]) -> str:
    found = list(values)
    return f"{sum(found)} of {len(found)} ({sum(found) / len(found):.0%})" if found else "none"


def by_check(rows: Sequence[Row]) -> str:
    """How often each check speaks: at faulty programs, rightly, and at healthy ones."""
    lines = []
    for tool in TOOLS:
        for check in MEANING[tool]:
            spoke = [row for row in rows if check in [alarm["check"] for alarm in row["tools"][tool]["alarms"]]]
            faulty = [row for row in spoke if row["causes"]]
            hits = [row for row in faulty if right(tool, [check], [*row["causes"], *row["also"]])]
            if spoke:
                numbers = [str(len(part)) for part in (faulty, hits)]
                lines.append([tool, check, *numbers, str(len(spoke) - len(faulty))])
    return timing.table(["tool", "check", "faulty", "rightly", "healthy"], lines, text_columns=2)


PAGE = """# Published diagnosis tools on programs with known faults

Made by `python benchmarks/doctor_peers.py --half {half} --json build/doctor-peers.json --write`. The programs are those
of `benchmarks/faults`, each as a plain hand-written PyTorch loop with the same model, loss, optimizer, rate, batches
and number of steps; each tool is used as its documentation says, with its default thresholds. Fogline's own figures
on the same programs are in [doctor.md](doctor.md).

{stamp}

{tables}

*Detected*: any alarm of a warning or worse at a faulty program; *false alarm*: the same at a healthy one. *Severe*:
only levels at which the tool says that something is wrong (critical, error, fail, a diagnosis), not that it may be.
*First right* and *right among three*: its first alarm, or one of its first three different ones, stands for a planted
cause or one that says the same; an alarm stands for every cause that the tool's own words name, as written down in
`benchmarks/doctor_parts/meaning.py`. *Causes an alarm*: for how many it stands, a mean over first alarms; a tool that
names many is right more easily. Advice about speed and style is no alarm. *Crashes*: of the tool. The
cost is the processor time a tool adds over that of the run, alone with it, for one program in {every}: the median and
quartiles; for the three that look at one batch before training it is the time of the look.

## What was run

- **torchmortem**: `Autopsy` around the loop, default sampling.
- **torch-audit**: `autopatch`, an audit every step; in the second line only what it says with its default interval of
  1000 steps, more than most of these programs have.
- **torchtest2**: `check_model` on the first batch with the program's loss and optimizer. It cannot see the loop itself.
- **torchtest**: `test_suite` on the first batch with the tests of variables, NaN and infinity; it stops at the first
  that fails. Its test of the output's range needs a range that nobody tells.
- **torchdiag**: the calls of its quick start on the first batch.
- **trainwatch**: `Watcher`; without a GPU its only check is the variance of the loss.
- **mldoct**: `mldoctor diagnose` on a CSV of losses and gradient norms by epoch. Its linter reads scripts, and all
  loops here are one script.

Left out: cockpit-for-pytorch, which draws signals and gives no verdict, and trainlint, which is not on the index.

## By check

{checks}

## Programs that PyTorch itself refuses

{refused}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--half", choices=(*HALVES, "all"), default="calibration")
    parser.add_argument("--only", default="", help="programs whose name contains this")
    parser.add_argument("--quick", action="store_true", help="every eighth program")
    parser.add_argument("--json", type=Path, help="keep every row here")
    parser.add_argument("--reuse", action="store_true", help="take the rows that --json has, and run what it lacks")
    parser.add_argument("--tables", action="store_true", help="only of the rows that --json has; nothing is run")
    parser.add_argument("--write", action="store_true", help="write the page of evidence")
    arguments = parser.parse_args()
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if missing and not arguments.tables:
        parser.exit(0, f"not installed: {', '.join(missing)}; benchmarks/README.md says how to get them\n")
    torch.set_num_threads(1)
    chosen = [
        one for one in programs(None if arguments.half == "all" else arguments.half) if arguments.only in one.name
    ]
    if arguments.tables:
        known = _known(arguments.json)
        rows = [known[key] for key in map(_key, chosen) if key in known]
    else:
        rows = list(_all(chosen[::8] if arguments.quick else chosen, arguments.json, arguments.reuse))
    print(_tables(rows), by_check(rows), sep="\n\n")
    if arguments.write:
        stamped = timing.stamp(PACKAGES)
        refused = [f"- {row['name']}: {row['error']}" for row in rows if row["error"]]
        page = PAGE.format(
            half=arguments.half,
            stamp=timing.describe(stamped),
            tables=_tables(rows),
            every=EVERY,
            checks=by_check(rows),
            refused="\n".join(refused) or "None.",
        )
        timing.write_evidence("doctor-peers", page, {"stamp": stamped, "rows": rows})


def _tables(rows: Sequence[Row]) -> str:
    """One table a half."""
    parts = []
    for half in HALVES:
        group = [row for row in rows if row["half"] == half]
        if len(group) > 1:
            faulty = sum(bool(row["causes"]) for row in group)
            left_out = len(programs(half)) - len(group)
            title = f"## Half {half}: {faulty} faulty, {len(group) - faulty} healthy"
            title += f", {left_out} not run" if left_out else ""
            parts += [title, table(group), _constant(group)]
    return "\n\n".join(parts)


def _all(chosen: Sequence[Program], file: Path | None, reuse: bool) -> Iterator[Row]:
    known = _known(file)
    examined(chosen[0], costed=False)  # the first call of everything imports and allocates, which is no part of a cost
    for number, program in enumerate(chosen):
        key = _key(program)
        row = known.get(key) if reuse else None
        if row is None:
            known[key] = row = examined(program, costed=number % EVERY == 0)
        said = {tool: ",".join(alarm["check"] for alarm in facts["alarms"]) for tool, facts in row["tools"].items()}
        print(f"{program.name:<60} {row['error']:.40} {said}", flush=True)
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(known))
        yield row


def _known(file: Path | None) -> dict[str, Row]:
    found: dict[str, Row] = json.loads(file.read_text()) if file and file.exists() else {}
    return found


def _key(program: Program) -> str:
    return f"{program.half} {program.name}"


if __name__ == "__main__":
    main()
