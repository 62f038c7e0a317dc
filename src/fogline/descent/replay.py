"""A refused step again, slowly: the first module, and the rows, that a NaN or infinity came from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fogline.data.source import Batch, leaves
from fogline.descent.batches import part, rows_of
from fogline.descent.objective import Objective
from fogline.descent.randomness import TRAIN, seed_step
from fogline.descent.tracing import Operation, first_bad_backward, traced

_ROWS_TRIED = 512


def explain_refusal(
    objective: Objective,
    batch: Batch,
    step: int,
    seed: int,
    device: torch.device,
    rows: NDArray[Any] | None,
) -> dict[str, Any]:
    """Replay a refused step from the same weights, batch and random numbers, and say where it went wrong.

    Returns:
        ``where`` ("data", "module", "loss" or "gradient"), ``module`` (its name, None for data and loss), ``rows``
        (positions in the data set; in the batch where those are not known), ``operation`` (the first that gave what is
        not finite: its name and the ranges of the values that went in; None for data, and where it cannot be told),
        ``step`` and ``message``.
    """
    buffers = [buffer.clone() for buffer in objective.model.buffers()]
    found = _bad_rows(leaves(batch))
    where, module, operation = "data", None, None
    if not found:
        seed_step(seed, step, TRAIN, device)
        with traced(objective.model) as tracer:
            module, found, loss = _first_bad_output(objective, batch)
        where, operation = "module" if module is not None else "loss", tracer.found
        if module is None and loss is not None and bool(torch.isfinite(loss)):
            where = "gradient"
            parameters = [p for p in objective.model.parameters() if p.requires_grad]
            operation = first_bad_backward(loss, parameters, tracer.owners)
            module = _first_bad_gradient(objective, loss)
        if not found:
            found = _rows_by_trial(objective, batch, where == "gradient")
    with torch.no_grad():
        for buffer, old in zip(objective.model.buffers(), buffers, strict=True):
            buffer.copy_(old)
    named = [int(rows[k]) for k in found] if rows is not None and found else found
    return {
        "step": step,
        "where": where,
        "module": module,
        "rows": named,
        "operation": None if operation is None else operation.to_dict() | {"module": operation.module or None},
        "message": _message(step, where, module, named, operation),
    }


def data_refusal(batch: Batch, step: int, rows: NDArray[Any] | None) -> dict[str, Any]:
    """:func:`explain_refusal` as far as the data tells it, without going through the model."""
    found = _bad_rows(leaves(batch))
    named = [int(rows[k]) for k in found] if rows is not None else found
    message = f"step {step} refused: loss or gradient is not finite; of a model in parts it is not told where"
    if found:
        message = _message(step, "data", None, named, None)
    where = "data" if found else "loss"
    return {"step": step, "where": where, "module": None, "rows": named, "operation": None, "message": message}


def _first_bad_output(objective: Objective, batch: Batch) -> tuple[str | None, list[int], Tensor | None]:
    first: list[tuple[str, list[int]]] = []
    size = rows_of(batch)

    def watch(name: str) -> Any:
        def hook(_: nn.Module, __: object, output: object) -> None:
            tensors = [t for t in leaves(output) if t.is_floating_point()]
            if not first and any(not bool(torch.isfinite(t).all()) for t in tensors):
                first.append((name, _bad_rows(t for t in tensors if t.ndim and t.shape[0] == size)))

        return hook

    # Leaves only: a parent's output is bad because of a child's.
    named = [(n, m) for n, m in objective.model.named_modules() if not any(m.children())]
    handles = [module.register_forward_hook(watch(name or type(module).__name__)) for name, module in named]
    try:
        loss = objective(batch)
    finally:
        for handle in handles:
            handle.remove()
    name, rows = first[0] if first else (None, [])
    return name, rows, loss


def _first_bad_gradient(objective: Objective, loss: Tensor) -> str | None:
    """The last module of the forward pass with a bad gradient: back-propagation reaches it first."""
    named = [(name, p) for name, p in objective.model.named_parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    bad = [
        name.rpartition(".")[0] or name
        for (name, _), gradient in zip(named, gradients, strict=True)
        if gradient is not None and not bool(torch.isfinite(gradient).all())
    ]
    return bad[-1] if bad else None


def _rows_by_trial(objective: Objective, batch: Batch, gradients: bool) -> list[int]:
    """Rows that go wrong on their own; empty where only their company does it (or a layer wants more than one row)."""
    parameters = [p for p in objective.model.parameters() if p.requires_grad]
    found = []
    for row in range(min(rows_of(batch), _ROWS_TRIED)):
        try:
            loss = objective(part(batch, row, row + 1))
        except (ValueError, RuntimeError):  # batch normalisation of a single row
            return []
        values: Iterable[Tensor | None] = (
            torch.autograd.grad(loss, parameters, allow_unused=True) if gradients else [loss]
        )
        if any(value is not None and not bool(torch.isfinite(value).all()) for value in values):
            found.append(row)
    return found


def _bad_rows(tensors: Iterable[Tensor]) -> list[int]:
    found: set[int] = set()
    for value in tensors:
        if value.is_floating_point() and value.ndim:
            bad = ~torch.isfinite(value.detach()).reshape(value.shape[0], -1).all(dim=1)
            found.update(bad.nonzero().flatten().tolist())
    return sorted(found)


def _message(step: int, where: str, module: str | None, rows: list[int], operation: Operation | None) -> str:
    which = f"rows {', '.join(map(str, rows[:10]))}{', ...' if len(rows) > 10 else ''}" if rows else "no single row"
    source = {
        "data": "the data hold NaN or infinity",
        "module": f"the output of module {module!r} is not finite",
        "loss": "the loss is not finite although the outputs are",
        "gradient": "the norm of the gradient overflows"
        if module is None
        else f"the gradient of module {module!r} is not finite although the loss is",
    }[where]
    first = "" if operation is None else f"; the first operation was {operation}"
    return f"step {step} refused: {source}; {which}{first}"
