"""The study behind a search: where Optuna keeps it, and what it has cost so far."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fogline.errors import needed
from fogline.record.store import write_json

if TYPE_CHECKING:
    from fogline._tune.plan import Plan

JOURNAL = "study.journal"
SUMMARY = "tune.json"
"""What the dashboard reads of a study, beside it."""
FEWEST = 6
"""Whole trials from which on it can be told what matters."""


def need_optuna() -> Any:
    """Optuna.

    Raises:
        ImportError: it is not installed; names the command that does.
    """
    return needed("optuna", "tune")


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna says nothing of its own below a warning; left as it was."""
    optuna = need_optuna()
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def open_storage(folder: Path, storage: str | None) -> Any:
    """The storage: a journal in the folder, or the database at an address that SQLAlchemy understands.

    Raises:
        ImportError: the driver of the database is missing.
        ValueError: nothing answers at the address.
    """
    optuna = need_optuna()
    if storage is None:
        folder.mkdir(parents=True, exist_ok=True)
        backend = optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL))
        return optuna.storages.JournalStorage(backend)
    from sqlalchemy.exc import ArgumentError, OperationalError
    from sqlalchemy.pool import NullPool

    address = storage.replace("postgresql://", "postgresql+psycopg://", 1)
    try:
        return optuna.storages.RDBStorage(address, engine_kwargs={"poolclass": NullPool})  # none is left open
    except (ArgumentError, OperationalError) as error:
        raise ValueError(
            f"storage: expected the address of a database that answers, such as "
            f"'postgresql://user@host/database', received {hidden(storage)!r} ({str(error).splitlines()[0]})"
        ) from None
    except ImportError as error:
        raise ImportError(f"{error}; PostgreSQL's driver comes with pip install 'fogline[tune]'") from error


def hidden(address: str) -> str:
    """An address without its password.

    >>> hidden("postgresql://me:secret@host/db")
    'postgresql://me:***@host/db'
    """
    before, at, host = address.rpartition("@")
    scheme, slashes, user = before.partition("://")
    return f"{scheme}{slashes}{user.split(':')[0]}:***@{host}" if at and ":" in user else address


def open_study(plan: Plan) -> Any:
    """The study of a plan, made where there is none.

    Raises:
        ValueError: there is one of this name over another space, recipe or method.
    """
    optuna = need_optuna()
    study = optuna.create_study(
        storage=open_storage(plan.folder, plan.storage), study_name=plan.folder.name, load_if_exists=True
    )
    asked = {
        "space": plan.space.to_dict(),
        "recipe": json.loads(plan.recipe.to_json()),
        "method": plan.method,
        "pruning": plan.pruning,
        "together": plan.together,
    }
    known = study.user_attrs.get("asked")
    if known is None:
        study.set_user_attr("asked", asked)
    elif known != asked:
        differs = next(name for name in asked if known.get(name) != asked[name])
        raise ValueError(
            f"expected the search that {plan.folder} was begun with, received another {differs}: "
            f"{asked[differs]} instead of {known.get(differs)}; take another name=, or go on with the one that is there"
        )
    return study


def mine() -> dict[str, Any]:
    """Who works on a trial."""
    return {"host": socket.gethostname(), "pid": os.getpid()}


def left_behind(worker: Mapping[str, Any] | None, active: bool) -> bool:
    """Whether a trial that is said to run was left by a process of this machine that is gone."""
    if worker is None or worker.get("host") != socket.gethostname() or active:
        return False
    pid = int(worker["pid"])
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def spent(study: Any, unit: str) -> float:
    """What the search has cost: whole trials, steps or seconds, measuring included."""
    total = sum(float(each[unit]) for name, each in study.user_attrs.items() if name.startswith("rate/"))
    for trial in study.get_trials(deepcopy=False):
        total += float(trial.user_attrs.get("cost", {}).get(unit, 0.0))
    return total


def over(study: Any, plan: Plan) -> bool:
    """Whether no further trial may begin."""
    if plan.trials is not None and len(study.get_trials(deepcopy=False)) >= plan.trials:
        return True
    return plan.budget is not None and spent(study, plan.budget[1]) >= plan.budget[0]


def write_summary(study: Any, plan: Plan) -> None:
    """Write what the dashboard shows, in the place of what was there."""
    rows = table(study)
    best = best_row(rows)
    found = {
        "format": 1,
        "name": plan.folder.name,
        "storage": None if plan.storage is None else hidden(plan.storage),
        **study.user_attrs["asked"],
        "trials_wanted": plan.trials,
        "budget": None if plan.budget is None else list(plan.budget),
        "spent": {unit: spent(study, unit) for unit in ("trials", "steps", "seconds")},
        "over": over(study, plan),
        "best": None if best is None else best["number"],
        "distributions": distributions_of(study),
        "trials": rows,
    }
    write_json(plan.folder / SUMMARY, found)


def distributions_of(study: Any) -> dict[str, str]:
    """What each choice was drawn from, as Optuna writes it."""
    optuna = need_optuna()
    found: dict[str, str] = {}
    for trial in study.get_trials(deepcopy=False):
        for name, each in trial.distributions.items():
            found.setdefault(name, optuna.distributions.distribution_to_json(each))
    return found


def importance_of(study: Any) -> dict[str, float]:
    """How much of the spread of the loss each choice accounts for; empty where too few trials were whole."""
    optuna = need_optuna()
    whole = (optuna.trial.TrialState.COMPLETE,)  # pruned trials have a value too: the last one they told
    losses = [trial.value for trial in study.get_trials(deepcopy=False, states=whole)]
    if len(losses) < FEWEST or len(set(losses)) < 2:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in found.items()}


def table(study: Any) -> list[dict[str, Any]]:
    """A row for each trial, in the order they began."""
    return [_row(trial) for trial in study.get_trials(deepcopy=False)]


def best_row(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The trial with the lowest held-out loss among those that were trained to their end."""
    whole = [row for row in rows if row["state"] == "complete" and row["loss"] is not None]
    return min(whole, key=lambda row: row["loss"], default=None)


def _row(trial: Any) -> dict[str, Any]:
    attributes = trial.user_attrs
    values = trial.intermediate_values
    loss = trial.value if trial.value is not None else (values[max(values)] if values else None)
    return {
        "number": trial.number,
        "state": attributes.get("ended", "running"),
        "loss": loss if loss is not None and loss == loss and abs(loss) != float("inf") else None,
        "why": attributes.get("why", ""),
        "lr": attributes.get("lr"),
        "values": dict(attributes.get("values", {})),
        "steps": attributes.get("cost", {}).get("steps", 0),
        "seconds": attributes.get("cost", {}).get("seconds", 0.0),
        "run": attributes.get("run"),
        "together": attributes.get("together", 1),
        "curve": attributes.get("curve", []),
        "findings": attributes.get("findings", []),
        "params": dict(trial.params),
        "compared": {str(part): loss for part, loss in values.items()},
        "began": _moment(trial.datetime_start),
        "over": _moment(trial.datetime_complete),
    }


def _moment(when: Any) -> str | None:
    return None if when is None else str(when.isoformat())
