"""A search as its folder tells it: for the dashboard, which opens no database and reads nobody's journal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fogline._tune.study import SUMMARY, importance_of, need_optuna

if TYPE_CHECKING:
    from typing import TypeAlias

    from fogline._tune.result import Tuned

    Search: TypeAlias = "Tuned | Kept"

_MOST = 64 * 2**20  # bytes


def read_summary(folder: Path) -> dict[str, Any]:
    """What ``tune.json`` says.

    Raises:
        ValueError, OSError: it cannot be read.
    """
    path = folder / SUMMARY
    if path.stat().st_size > _MOST:
        raise ValueError(f"expected a {SUMMARY} of at most {_MOST} bytes")
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or not isinstance(found.get("trials"), list):
        raise ValueError(f"expected a search in {SUMMARY}")
    return found


class Kept:
    """What figures ask of a search: its trials, its importance, and a study with the same trials in memory.

    Args:
        summary: of :func:`read_summary`.
    """

    def __init__(self, summary: Mapping[str, Any]) -> None:
        optuna = need_optuna()
        self.trials: list[dict[str, Any]] = list(summary["trials"])
        before = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study()
        optuna.logging.set_verbosity(before)
        known = {
            name: optuna.distributions.json_to_distribution(text) for name, text in summary["distributions"].items()
        }
        for row in self.trials:
            self.study.add_trial(_frozen(optuna, row, known))
        self.importance = importance_of(self.study)


def _frozen(optuna: Any, row: Mapping[str, Any], known: Mapping[str, Any]) -> Any:
    states = optuna.trial.TrialState
    whole = row["state"] == "complete" and row["loss"] is not None
    running = row["state"] == "running"
    values = {int(part): float(loss) for part, loss in row["compared"].items() if math.isfinite(float(loss))}
    trial = optuna.trial.create_trial(
        state=states.COMPLETE if whole else states.RUNNING if running else states.PRUNED,
        value=float(row["loss"]) if whole else None,
        params=row["params"],
        distributions={name: known[name] for name in row["params"]},
        intermediate_values=values | ({9: float(row["loss"])} if whole else {}),
    )
    if row["began"]:
        trial.datetime_start = datetime.fromisoformat(row["began"])
    if row["over"] and not running:
        trial.datetime_complete = datetime.fromisoformat(row["over"])
    return trial
