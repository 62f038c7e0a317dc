"""A run written to the loggers of others: TensorBoard, MLflow, Weights & Biases, trackio. One function each.

All of them write the numbers of the steps as ``train/...`` and the held-out scores as ``valid/...`` over the step of
the optimizer, the recipe as settings, and findings and verdict in words. With ``live=True`` they wait for what comes
until the run has ended, from another process or a thread; else they write what there is.

::

    from fogline.plugins.loggers import to_tensorboard
    to_tensorboard(run, "logs")
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fogline.errors import needed
from fogline.plugins.news import News, Number, news, settings, verdict_of
from fogline.run import Run

_MOST_AT_ONCE = 1000  # numbers that MLflow takes in one call
_MOST_LETTERS = 5000
_NOT_MLFLOW = re.compile(r"[^\w./: -]")


def to_tensorboard(run: Run | str | Path, folder: str | Path = "tensorboard", *, live: bool = False) -> Path:
    """Write a run as TensorBoard event files.

    Args:
        run: finished or not, or its folder.
        folder: the log directory; the run gets a folder of its own name in it.
        live: whether to wait for what comes until the run has ended.

    Returns:
        The folder of the event files.

    Raises:
        ModuleNotFoundError: TensorBoard is not installed.
        FileNotFoundError: there is no such run.
    """
    needed("tensorboard", "loggers", "tensorboard")
    writers = needed("torch.utils.tensorboard", "loggers")
    place, begun = Path(folder) / _name(run), False
    with writers.SummaryWriter(str(place)) as writer:
        for told in news(run, live=live):
            if not begun:
                lines = [f"| {name} | `{value}` |" for name, value in settings(told.info).items()]
                writer.add_text("recipe", "\n".join(["| field | value |", "|:--|:--|", *lines]), 0)
                begun = True
            for n in told.numbers:
                writer.add_scalar(n.name, n.value, n.step, n.time)
            for found in told.findings:
                writer.add_text(f"findings/{found['cause']}", found["text"], found["step"])
            verdict = verdict_of(told.info)
            if told.last and verdict is not None:
                writer.add_text("verdict", verdict[1], told.info.get("steps", 0))
            writer.flush()
    return place


def to_mlflow(
    run: Run | str | Path, experiment: str = "fogline", *, tracking_uri: str | None = None, live: bool = False
) -> str:
    """Write a run to MLflow.

    Args:
        run: finished or not, or its folder.
        experiment: its name; made where there is none.
        tracking_uri: where MLflow keeps its runs, such as ``sqlite:///mlflow.db``; by default as MLflow is set.
        live: whether to wait for what comes until the run has ended.

    Returns:
        The id of the MLflow run; its status says whether training ended well.

    Raises:
        ModuleNotFoundError: MLflow is not installed.
        FileNotFoundError: there is no such run.
    """
    mlflow = needed("mlflow", "loggers", "mlflow")
    entities = mlflow.entities
    client, made = mlflow.MlflowClient(tracking_uri=tracking_uri), None
    found: list[dict[str, Any]] = []
    for told in news(run, live=live):
        if made is None:
            there = client.get_experiment_by_name(experiment)
            number = client.create_experiment(experiment) if there is None else there.experiment_id
            made = client.create_run(number, run_name=_name(run), start_time=_started(told)).info.run_id
            params = [entities.Param(name, str(value)[:_MOST_LETTERS]) for name, value in settings(told.info).items()]
            client.log_batch(made, params=params)
        metrics = [
            entities.Metric(_NOT_MLFLOW.sub("_", n.name), n.value, round(1000 * n.time), n.step) for n in told.numbers
        ]
        for part in range(0, len(metrics), _MOST_AT_ONCE):
            client.log_batch(made, metrics=metrics[part : part + _MOST_AT_ONCE])
        found += told.findings
        for one in told.findings:
            client.set_tag(made, f"fogline.finding.{one['cause']}", one["text"][:_MOST_LETTERS])
        if told.last:
            _end_mlflow(client, made, told, found)
    assert made is not None
    return str(made)


def _end_mlflow(client: Any, made: str, told: News, found: list[dict[str, Any]]) -> None:
    verdict = verdict_of(told.info)
    if found:
        client.log_dict(made, {"findings": found}, "findings.json")
    if verdict is None:
        return  # it goes on, or nobody saw its end
    client.set_tag(made, "fogline.verdict", verdict[0])
    client.set_tag(made, "mlflow.note.content", verdict[1])
    client.set_terminated(made, {"NONFINITE": "FAILED", "INTERRUPTED": "KILLED"}.get(verdict[0], "FINISHED"))


def to_wandb(
    run: Run | str | Path,
    project: str = "fogline",
    *,
    folder: str | Path = ".",
    mode: str = "offline",
    live: bool = False,
) -> Path:
    """Write a run for Weights & Biases, by default offline: ``wandb sync`` sends it when you say so.

    Every series is drawn over its own ``step``, so that held-out scores may come later than the steps they are of.

    Args:
        run: finished or not, or its folder.
        project: its name.
        folder: where ``wandb/`` is made.
        mode: ``offline``, ``online`` or ``disabled``.
        live: whether to wait for what comes until the run has ended.

    Returns:
        The folder that ``wandb sync`` takes.

    Raises:
        ModuleNotFoundError: wandb is not installed.
        FileNotFoundError: there is no such run.
    """
    wandb = needed("wandb", "loggers", "wandb")
    made: Any = None
    found: list[dict[str, Any]] = []
    for told in news(run, live=live):
        if made is None:
            quiet = wandb.Settings(silent=True, x_disable_stats=True, console="off")
            options = {"project": project, "name": _name(run), "dir": str(folder), "mode": mode, "settings": quiet}
            made = wandb.init(config=settings(told.info), reinit="create_new", **options)
            made.define_metric("step")
            made.define_metric("train/*", step_metric="step")
            made.define_metric("valid/*", step_metric="step")
        for step, numbers in by_step(told.numbers):
            made.log(numbers | {"step": step})
        found += told.findings
        verdict = verdict_of(told.info)
        if told.last and found:
            rows = [[one["step"], one["cause"], one["severity"], one["text"]] for one in found]
            made.log({"findings": wandb.Table(["step", "cause", "severity", "text"], data=rows)})
            made.summary["causes"] = [one["cause"] for one in found]
        if told.last and verdict is not None:
            made.summary.update({"verdict": verdict[0], "verdict_text": verdict[1]})
    place = Path(made.dir).parent
    made.finish()
    return place


def to_trackio(run: Run | str | Path, project: str = "fogline", *, live: bool = False) -> str:
    """Write a run to trackio, on this machine (the folder that the variable ``TRACKIO_DIR`` names).

    Findings are alerts, at the step they were seen at. A trackio run that this process has open is finished by it.

    Args:
        run: finished or not, or its folder.
        project: its name.
        live: whether to wait for what comes until the run has ended.

    Returns:
        The name of the trackio run.

    Raises:
        ModuleNotFoundError: trackio is not installed.
        FileNotFoundError: there is no such run.
    """
    trackio = needed("trackio", "loggers", "trackio")
    made: Any = None
    for told in news(run, live=live):
        if made is None:
            made = trackio.init(
                project, _name(run), config=settings(told.info), embed=False, auto_log_gpu=False, auto_log_cpu=False
            )
        alerts = sorted(told.findings, key=lambda one: one["step"])
        for step, numbers in by_step(told.numbers):
            made.log(numbers, step=step)
            while alerts and alerts[0]["step"] <= step:  # an alert has the step that was logged last
                _alert(trackio, made, alerts.pop(0))
        for one in alerts:
            _alert(trackio, made, one)
        verdict = verdict_of(told.info)
        if told.last and verdict is not None:
            made.alert(verdict[0], verdict[1], level=trackio.AlertLevel.INFO)
    name = str(made.name)
    trackio.finish()
    return name


def _alert(trackio: Any, made: Any, found: dict[str, Any]) -> None:
    levels = {"fatal": trackio.AlertLevel.ERROR, "serious": trackio.AlertLevel.WARN}
    made.alert(found["cause"], found["text"], level=levels.get(found["severity"], trackio.AlertLevel.INFO))


def by_step(numbers: Iterable[Number]) -> list[tuple[int, dict[str, float]]]:
    """The numbers of each step together, in the order of the steps.

    >>> by_step([Number("train/loss", 0, 0.0, 2.0), Number("train/lr", 0, 0.0, 0.1), Number("train/loss", 1, 0.0, 1.0)])
    [(0, {'train/loss': 2.0, 'train/lr': 0.1}), (1, {'train/loss': 1.0})]
    """
    found: dict[int, dict[str, float]] = {}
    for number in numbers:
        found.setdefault(number.step, {})[number.name] = number.value
    return sorted(found.items())


def _name(run: Run | str | Path) -> str:
    return run.name if isinstance(run, Run) else Path(run).name


def _started(told: News) -> int | None:
    return round(1000 * min((n.time for n in told.numbers), default=0)) or None
