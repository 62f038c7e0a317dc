"""The page of evidence of the label benchmark."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timing

Cell = Mapping[str, Any]

_KINDS = {
    ("symmetric", 0.2): "symmetric 20 %",
    ("symmetric", 0.4): "symmetric 40 %",
    ("pair", 0.2): "pair 20 %",
    ("none", 0.0): "none",
}
_TARGETS = {"symmetric 20 %": 0.985, "symmetric 40 %": 0.985, "pair 20 %": 0.975}
_PEER = "cleanlab, 5 folds"
_NAMES = ("fogline", "fogline, record alone", _PEER, "margin, first half", "last-epoch loss", "forgetting events")


def page(cells: Mapping[str, Cell], stamp: Mapping[str, Any]) -> str:
    """Everything that was measured, as Markdown."""
    parts = [
        _INTRODUCTION,
        timing.describe(stamp),
        "## Which labels are wrong",
        _WHICH,
        *(_ranked(cells, problem) for problem in _problems(cells)),
        "## How many are wrong, and where to cut",
        _HOW_MANY,
        _counts(cells),
        _misses(cells),
        "## What it costs",
        _COSTS,
        _cost_table(cells),
        "## Rare, but right",
        _rare(cells),
        "## A leak",
        _leak(cells),
        "## A million examples",
        _scale(cells),
    ]
    return "\n\n".join(part for part in parts if part)


_INTRODUCTION = """# Which labels are wrong, how many, and what is rare but right

Wrong labels are planted in 5,000 MNIST images (a perceptron, 784-256-128-10, 20 epochs) and in 12,000 of
Fashion-MNIST (two convolutions, 12 epochs): to any other class (*symmetric*) or to the next one (*pair*).
`fogline.fit` trains with its defaults, batches of 64, and nothing held out; then
`fogline.examples(run).label_errors()` is asked, once with the data at hand and once from the recorded epochs alone.
Made by `python benchmarks/labels.py --seeds 3 --write`; seeds 20 to 22 (Fashion-MNIST: 20 and 21; cleanlab: 20). The
method and its few weights were chosen on `load_digits`, on noise of 5, 10 and 30 percent, and on seeds 0 and 1 of the
problems here; the count was mended once after a look at seeds 10 to 12, which are not shown. How pairs of classes go
wrong was changed on seeds 0 and 1, scored here, and kept; a count taken up to two epochs later was chosen and scored
with it, missed almost half of 2,000 wrong labels once, and was taken back. What overlap takes off the count was
chosen on seeds 0 and 1, after the count without it had been seen on seed 20 of Fashion-MNIST. Measured before, and
not again: cleanlab on MNIST at commit 034e35c; the million examples and the neighbours at e5262c4; the
trainings of Fashion-MNIST with seeds 20 and 21, and cleanlab there, at aa7fc7a."""

_WHICH = """Average precision: the mean over the wrong labels of the share of wrong ones among all that are ranked at
least as high. Median over seeds, the lowest in brackets. cleanlab ranks by out-of-fold probabilities of the same model
trained the same way (AdamW at the rate our run found); of its two scores the better one is shown. A blank was not
measured."""

_HOW_MANY = """The number the run gives with the data at hand, with its interval, and from the record alone. *Off*
is the first against the number planted. F1 is that of the labels whose probability is above one half; *right label* is
how often the label proposed for a wrong one is the true one. *Expected* is the precision it foretells where as many are
looked at as are wrong, beside the true one there."""

_OVERLAP = """Where classes overlap, what is between them looks like what is wrong. With the data at hand the count is
less what lies among others of its own label (*said*); from the record alone that cannot be told, and of
labels that are as published more are called wrong."""

_COSTS = """Processor seconds, one thread. Training happens anyway; what comes on top is, for us, the questions
(embedding, neighbours, ranking), and for cleanlab five more trainings. What recording adds to training is measured in
[the evidence on recording](recording.md)."""


def _of(cells: Mapping[str, Cell], start: str) -> list[Cell]:
    return [cell for name, cell in cells.items() if name.startswith(start) and cell]


def _noisy(cells: Mapping[str, Cell]) -> dict[str, Cell]:
    return {name: cell for name, cell in cells.items() if "rankings" in cell}


def _problems(cells: Mapping[str, Cell]) -> list[str]:
    return list(dict.fromkeys(cell["problem"] for cell in _noisy(cells).values()))


def _kind(cell: Cell) -> str:
    return _KINDS[cell["kind"], cell["rate"]]


def _rankings(cells: Mapping[str, Cell], name: str) -> dict[str, Cell]:
    """The rankings of a cell with the peer's among them."""
    peer = cells.get(f"peer {name}")
    return {**cells[name]["rankings"], **({_PEER: peer} if peer else {})}


def _ranked(cells: Mapping[str, Cell], problem: str) -> str:
    kinds = [kind for kind in _KINDS.values() if kind != "none"]
    found: dict[tuple[str, str], list[float]] = {}
    for name, cell in _noisy(cells).items():
        if cell["problem"] == problem and cell["kind"] != "none":
            for ranking, row in _rankings(cells, name).items():
                found.setdefault((ranking, _kind(cell)), []).append(row["average_precision"])
    rows = [[name, *(_median(found.get((name, kind), []), "{:.4f}") for kind in kinds)] for name in _NAMES]
    if problem.startswith("MNIST"):
        rows.append(["target", *(f"{_TARGETS[kind]:.3f}" for kind in kinds)])
    return f"**{problem}**\n\n" + timing.table(["", *kinds], rows)


def _median(values: Sequence[float], form: str) -> str:
    if not values:
        return ""
    middle = form.format(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({form.format(min(values))})"


def _counts(cells: Mapping[str, Cell]) -> str:
    rows = []
    for name, cell in _noisy(cells).items():
        ours = cell["rankings"]["fogline"]
        low, high = ours["interval"]
        wrong = cell["wrong"]
        row = [cell["problem"], _kind(cell), cell["seed"], wrong, f"{ours['count']:.0f} ({low:.0f} to {high:.0f})"]
        row.append(f"{cell['rankings']['fogline, record alone']['count']:.0f}")
        if wrong:
            cut = str(2 * max(1, wrong // 2))
            expected = f"{ours['expected_precision'][cut]:.2f} / {ours['precision'][cut]:.2f}"
            row += [f"{ours['count'] / wrong - 1:+.1%}", f"{ours['f1']:.3f}", f"{ours['likely']:.3f}", expected]
            peer = cells.get(f"peer {name}")
            row += [f"{peer['count'] / wrong - 1:+.1%}", f"{peer['f1']:.3f}"] if peer else ["", ""]
        else:
            row += [f"{ours['count'] / cell['examples']:.2%} of all", f"{ours['flagged']} flagged", "", "", "", ""]
        rows.append(row)
    head = ["problem", "noise", "seed", "wrong", "said", "record alone", "off", "F1", "right label", "expected / true"]
    return timing.table([*head, "cleanlab: off", "F1"], rows, text_columns=2)


def _misses(cells: Mapping[str, Cell]) -> str:
    """What is below a target, or below another ranking, in words."""
    lines = []
    for name, cell in _noisy(cells).items():
        rankings = _rankings(cells, name)
        ours = rankings["fogline"]
        where = f"{cell['problem']}, {_kind(cell)}, seed {cell['seed']}"
        if not cell["wrong"]:
            share = ours["count"] / cell["examples"]
            if share > 0.01:
                lines.append(f"- {where}: of labels that are as published, {share:.1%} are said to be wrong.")
            continue
        if abs(ours["count"] / cell["wrong"] - 1) > 0.15:
            lines.append(f"- {where}: the number is off by more than 15 percent.")
        if ours["f1"] < 0.9:
            lines.append(f"- {where}: F1 {ours['f1']:.3f} is below .90.")
        for other, row in rankings.items():
            if row["average_precision"] > ours["average_precision"]:
                lines.append(f"- {where}: *{other}* ranks better, {row['average_precision']:.4f}.")
    if not lines:
        return "Every number is within 15 percent, every F1 above .90, and no other ranking is better in any row."
    return "**What does not hold:**\n\n" + "\n".join(lines) + "\n\n" + _OVERLAP


def _cost_table(cells: Mapping[str, Cell]) -> str:
    rows = []
    for problem in _problems(cells):
        ours, theirs, training = [], [], []
        for name, cell in _noisy(cells).items():
            peer = cells.get(f"peer {name}")
            if cell["problem"] == problem and peer:
                ours.append(cell["rankings"]["fogline"]["seconds"])
                theirs.append(peer["seconds"])
                training.append(cell["training_seconds"])
        if ours:
            a, b, c = (statistics.median(values) for values in (training, ours, theirs))
            rows.append([problem, f"{a:.1f}", f"{b:.2f}", f"{c:.1f}", f"{c / b:.0f} x", f"{(a + c) / (a + b):.1f} x"])
    return timing.table(["", "training", "fogline", "cleanlab", "cleanlab over fogline", "with the training"], rows)


def _rare(cells: Mapping[str, Cell]) -> str:
    found = _of(cells, "rare")
    if not found:
        return ""
    rows = [
        [
            cell["seed"],
            cell["problem"],
            cell["rare"],
            cell["wrong"],
            f"{cell['fogline']['area']:.3f}",
            f"{cell['fogline, record alone']['area']:.3f}",
            f"{cell['last-epoch loss']['area']:.3f}",
            f"{cell['fogline']['flagged_rare']:.0%}",
            f"{cell['fogline']['flagged_wrong']:.0%}",
        ]
        for cell in found
    ]
    words = """One digit is taken out of MNIST but for 1 percent, which bears the label of another digit: a rare kind of
that class, unlike the rest of it. 5 percent of the other labels are wrong. The area under the curve of wrong labels
against rare examples, ranked by the probability of a label error (target .9), and how many of either are flagged."""
    head = [
        "seed",
        "rare kind",
        "rare",
        "wrong",
        "fogline",
        "record alone",
        "last loss",
        "rare flagged",
        "wrong flagged",
    ]
    return words + "\n\n" + timing.table(head, rows)


def _leak(cells: Mapping[str, Cell]) -> str:
    found = _of(cells, "leak")
    if not found:
        return "The file of traffic signs is not there: not measured."
    columns: dict[str, Callable[[Cell], str]] = {
        "seed": lambda cell: str(cell["seed"]),
        "pairs": lambda cell: f"{cell['pairs']:,}",
        "recall at precision .9": lambda cell: f"{cell['recall_at_90']:.2f}",
        "held-out frames": lambda cell: f"{cell['frames']:,}",
        "their recall at precision .9": lambda cell: f"{cell['frames_recall_at_90']:.2f}",
        "`leaks(series=True)`": lambda cell: (
            f"{cell['default_pairs']} pairs, precision {cell['default_precision']:.2f}, "
            f"recall {cell['default_recall']:.2f}"
        ),
        "`groups(series=True)`": lambda cell: (
            f"{cell['groups']} of {cell['tracks']}, precision {cell['group_precision']:.2f}, "
            f"recall {cell['group_recall']:.2f}"
        ),
    }
    scores = {
        "seed": lambda cell: str(cell["seed"]),
        "at random": lambda cell: f"{cell['random']:.3f}",
        "by the groups found": lambda cell: f"{cell['by_group']:.3f}",
        "by `track`": lambda cell: f"{cell['by_track']:.3f}",
        "test set of other signs": lambda cell: f"{cell['test']:.3f}",
    }
    reached = min(cell["recall_at_90"] for cell in found) >= 0.9
    verdict = (
        "The target is reached."
        if reached
        else "**The target, recall .9 at precision .9, is not reached.** The ten frames of a sign were taken while the "
        "car came nearer: the first and the last are further apart than frames of different signs in the same light, "
        "and at least one track holds two signs. For an honest score it is enough that of each held-out frame *one* "
        "other frame of its sign is found."
    )
    words = """2,000 frames of 200 German traffic signs, ten each, split at random: nearly every held-out frame has
others of its sign in the training data. *Pairs* are those of one `track` across the split; *held-out frames* those that
have another of their track in the training data, each ranked by its nearest pair. The track is not shown to the method,
but what it compares was chosen on these frames: there are no others with tracks. That the frames come in series is
said to it (`series=True`). A small CNN, 15 epochs."""
    second = """Held-out accuracy of the same model where the split is made at random, in whole groups that were found,
and in whole tracks; and on the 600 frames of signs that are in neither."""
    return "\n\n".join(
        [
            words,
            timing.table(list(columns), [[read(cell) for read in columns.values()] for cell in found]),
            verdict,
            second,
            timing.table(list(scores), [[read(cell) for read in scores.values()] for cell in found]),
        ]
    )


def _scale(cells: Mapping[str, Cell]) -> str:
    cell = cells.get("scale")
    if not cell:
        return ""
    words = f"""{cell["rows"]:,} examples over {cell["epochs"]} epochs, 100 classes, drawn and not trained:
{cell["files"]:.0f} MiB of files. Seconds by the clock, one thread, in a process of its own; it holds
{cell["before"]:.0f} MiB before the first question and {cell["largest"]:.0f} MiB at most."""
    names = {
        "open": "open",
        "label_errors": "`label_errors()`",
        "table": "`table`",
        "sql": '`sql("select target, avg(label_error) ... group by target")`',
        "export": f"`export` as Parquet ({cell['parquet']:.0f} MiB)",
        "curve": "one example's curve",
    }
    rows = [[said, f"{cell['seconds'][name]:.2f}"] for name, said in names.items()]
    parts = [words, timing.table(["", "s"], rows)]
    if near := cells.get("neighbours"):
        parts.append(
            f"With a task, neighbours come on top. Of {near['rows']:,} examples in {near['width']} dimensions (heaps "
            f"of 100 classes, drawn) the ten nearest take {near['seconds']:.0f} s in cells, which find "
            f"{near['recall']:.1%} of those an exact search finds; the time grows as the number of examples. Up to "
            f"{near['most_exact']:,} the search is exact: {near['exact_seconds']:.0f} s for {near['exact_rows']:,}."
        )
    return "\n\n".join(parts)
