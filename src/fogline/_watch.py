"""``watch``: what somebody else's training loop is made of, and everything that looks at it."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from fogline._watched_run import WatchedRun
from fogline.descent.optimizers import OPTIMIZERS
from fogline.doctor.finding import Finding
from fogline.doctor.unmoved import held_by
from fogline.doctor.watching import Inspector
from fogline.errors import some
from fogline.progress import ProgressFunction, make_progress
from fogline.record.columns import is_compiled
from fogline.record.info import frame, new_folder, now
from fogline.record.observer import Observer
from fogline.record.probes import Budget
from fogline.record.signals import Recorder
from fogline.record.store import Store

_NOT_OPTIONS = ("params", "lr", "initial_lr", "weight_decay", "foreach", "fused", "capturable", "differentiable")


def watch(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    loss_fn: Any = None,
    scheduler: Any = None,
    runs: str | Path = "runs",
    name: str | None = None,
    share: float = 0.02,
    progress: bool | ProgressFunction | None = None,
) -> WatchedRun:
    """Record the signals of a training loop that is not ours, find the faults of the loop, and judge how it went.

    Faults are told as soon as they are seen, as events and in :attr:`~fogline.run.Run.findings`.

    Weights, gradients, optimizer state and random numbers are bitwise what they are without it. Use it as a context
    manager around the loop, or call :meth:`WatchedRun.close` at the end.

    Args:
        model: the module that is trained; compiled or not.
        optimizer: the one that trains it; for several optimizers, a watch each.
        loss_fn: of the loop. Where it is a module its outputs are taken for the loss of a step that logs none.
        scheduler: of the learning rate; it is only looked at, the rate itself is read at every step.
        runs: the folder that run folders lie in.
        name: of the run folder; a dated name by default.
        share: the most that watching may cost, as a share of the time. 0 turns off what can be left out.
        progress: True draws a bar, a function is called with a :class:`~fogline.progress.ProgressReport`; by default
            nothing is drawn, since the loop may draw its own.

    Returns:
        The run, which is a :class:`~fogline.run.Run` and goes on while the loop does.

    Raises:
        TypeError, ValueError: what was given does not fit together.
        FileExistsError: there is a run of this name.

    >>> import torch
    >>> model, loss_fn = nn.Linear(2, 1), nn.MSELoss()
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> X = torch.eye(2)
    >>> with watch(model, optimizer, loss_fn=loss_fn) as run:
    ...     for _ in range(100):
    ...         optimizer.zero_grad()
    ...         loss = loss_fn(model(X), X[:, :1])
    ...         loss.backward()
    ...         optimizer.step()
    ...         run.log(loss)
    >>> len(run.steps), run.info["source"]
    (100, {'kind': 'watch'})
    """
    optimizer = _checked(model, optimizer, share)
    inner = getattr(model, "_orig_mod", model)
    trained, left_out = _trained(inner, optimizer)
    folder = new_folder(Path(runs), name, type(inner).__name__)
    info = _beginning(folder, inner, optimizer, loss_fn, scheduler, share)
    resources = ExitStack()
    store = resources.enter_context(closing(Store(folder)))
    report = resources.enter_context(make_progress(progress or False, folder.name))
    if left_out:
        info["notes"].append(_left_out(left_out))
        store.event(0, "note", _left_out(left_out), {"parameters": left_out})
    store.write_info(info)
    inspector = _inspector(model, optimizer, loss_fn, scheduler, trained, left_out, store)
    if not share:
        inspector.rest()
    observer = Observer(model, optimizer, loss_fn, Recorder(store, Budget(share)), trained, report, inspector)
    return WatchedRun(folder, model, observer, info, resources, loss_fn)


def _inspector(
    model: nn.Module,
    optimizer: Optimizer,
    loss_fn: Any,
    scheduler: Any,
    trained: list[tuple[str, nn.Parameter]],
    left_out: list[str],
    store: Store,
) -> Inspector:
    """Finds faults and writes them down where they are seen."""

    def tell(step: int, found: Finding) -> None:
        store.finding(step, found.to_dict(), found.sentence)

    inner = getattr(model, "_orig_mod", model)
    return Inspector(inner, optimizer, loss_fn, scheduler, trained, left_out, tell, compiled=is_compiled(model))


def _checked(model: object, optimizer: Any, share: object) -> Optimizer:
    """The optimizer whose hooks are called: trainers wrap theirs."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"watch: expected a torch.nn.Module as `model`, received {type(model).__name__}; pass the module you train"
        )
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    if not isinstance(optimizer, Optimizer):
        several = "; watch each optimizer on its own" if isinstance(optimizer, list | tuple) else ""
        raise TypeError(
            f"watch: expected a torch.optim.Optimizer as `optimizer`, received {type(optimizer).__name__}"
            f"{several or '; pass the one whose step() your loop calls'}"
        )
    if isinstance(share, bool) or not isinstance(share, int | float):
        raise TypeError(f"watch: expected a number from 0 to 1 as `share`, received {share!r}")
    if not 0 <= share < 1:
        raise ValueError(f"watch: expected a share of the time from 0 to 1, received {share!r}; 0.02 is two percent")
    return optimizer


def _trained(model: nn.Module, optimizer: Optimizer) -> tuple[list[tuple[str, nn.Parameter]], list[str]]:
    """The model's trainable parameters in the optimizer, all where it has none, and the names of those it has not."""
    held = held_by(optimizer)
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    trained = [(n, p) for n, p in named if id(p) in held]
    if not named:
        raise ValueError(
            "watch: expected a model with trainable parameters, received one whose parameters all have "
            "requires_grad=False; nothing can be learned: model.requires_grad_(True) before the optimizer is made"
        )
    # An optimizer of none of them is a fault of the loop, which its first steps will show.
    return trained or named, [n for n, p in named if id(p) not in held]


def _left_out(names: list[str]) -> str:
    return f"not in the optimizer, though trainable: {some(names)}; they stay as they are"


def _beginning(
    folder: Path, model: nn.Module, optimizer: Optimizer, loss_fn: Any, scheduler: Any, share: float
) -> dict[str, Any]:
    recipe = _recipe(optimizer) | {"watch": share}
    device = str(next(model.parameters()).device)
    return {
        **frame(folder, recipe, device, {"kind": "watch"}),
        "started": now(),
        "task": {
            "model": type(model).__name__,
            "architecture": str(model)[:20000],
            "parameters": sum(p.numel() for p in model.parameters()),
            "loss": None if loss_fn is None else getattr(loss_fn, "__name__", type(loss_fn).__name__),
        },
        "recipe": recipe,
        "resolved": {},
        "notes": [],
        "mechanics": {
            "mode": "watched",
            "optimizer": type(optimizer).__name__,
            "scheduler": None if scheduler is None else type(scheduler).__name__,
            "groups": len(optimizer.param_groups),
        },
        "verdict": None,
    }


def _recipe(optimizer: Optimizer) -> dict[str, Any]:
    """What is known of the recipe, in its own terms: the first group stands for all."""
    kind, group = type(optimizer), optimizer.param_groups[0]
    name = kind.__name__.lower()
    ours = name in OPTIMIZERS and OPTIMIZERS[name].cls is kind
    plain = {n: _plain(v) for n, v in group.items() if n not in _NOT_OPTIONS and v not in (None, False)}
    recipe: dict[str, Any] = {
        "optimizer": name if ours else f"{kind.__module__}:{kind.__qualname__}",
        "options": {n: v for n, v in plain.items() if isinstance(v, bool | int | float | str | list)},
    }
    lr, decay = float(group.get("initial_lr", group.get("lr", 0.0))), group.get("weight_decay")
    if lr > 0:
        recipe["lr"] = lr
    if isinstance(decay, int | float):
        recipe["weight_decay"] = decay
    return recipe


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.squeeze().tolist()
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
