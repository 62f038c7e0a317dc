"""A point where the gradient vanishes and that is no minimum."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fogline.data.source import cast, float_type
from fogline.descent.randomness import private_randomness
from fogline.doctor.case import CPU, FAILURES
from fogline.doctor.closeup import path_of, some_rows, spreads, wide
from fogline.doctor.examination import Examination
from fogline.doctor.finding import BODY, RATE, Evidence, Remedy, Suspicion
from fogline.doctor.standing import motion, resolved, standing
from fogline.doctor.surgery import reset
from fogline.lanczos import lanczos


def saddle(exam: Examination) -> Suspicion | None:
    """The descent begins next to a saddle point: flat in all directions but with a way down that is hardly a slope."""
    anatomy, seen = wide(exam), exam.observed
    if seen is None or seen.error or anatomy.stage or len(anatomy.weighted) < 2:
        return None
    moves, stands = motion(exam), standing(exam)
    small = [spread for spread in spreads(anatomy) if spread.excess < 0]
    # Products of small numbers: at the saddle, where all of them are 0, every gradient is 0 as well.
    if -sum(spread.excess for spread in small) < math.log(10) or moves.refused:
        return None
    plateau = moves.fallen < 0.1 or stands.short
    if not plateau or resolved(exam).optimizer not in ("gd", "sgd", "momentum", "nesterov"):
        return None
    values = _curvatures(exam)
    if values is None or not values[0] < 0:
        return None
    lowest, highest = values
    names = list(dict.fromkeys(spread.name for spread in small))
    fresh = Remedy(
        "begin further away: PyTorch's own first weights",
        "\n".join(f"{path_of(name)}.reset_parameters()" for name in names),
        on_model=lambda model: reset(model, names),
        place="init",
        order=BODY,
    )
    adaptive = Remedy(
        "use adamw, its learning rate measured",
        'fogline.Recipe(optimizer="adamw", lr="auto")',
        on_recipe=lambda recipe: recipe.replace(optimizer="adamw", lr="auto", options={}),
        place="rate",
        order=RATE,
    )
    return Suspicion(
        "saddle",
        0.5,
        (
            Evidence(
                "lowest and highest curvature at the first weights", f"{lowest:.3g}, {highest:.3g}", "none below 0"
            ),
            Evidence("share of the loss that is gone", moves.fallen),
        ),
        "The first weights are next to a saddle: each layer's gradient is multiplied by the others' small weights, so "
        "the slope is almost zero although there is a way down. Plain steps need very long to find it.",
        (fresh, adaptive),
    )


def _curvatures(exam: Examination) -> tuple[float, float] | None:
    """Lowest and highest eigenvalue of the Hessian at first weights, about, by Lanczos iteration."""
    from fogline.descent.objective import Objective

    model = exam.program.new_model(exam.case.recipe.seed)
    floats = float_type(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    with private_randomness(CPU), torch.enable_grad():
        try:
            loss = Objective(model, exam.program.loss)(cast(some_rows(exam, 128), floats))
            gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
            used = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None and g.requires_grad]
            if not used:
                return None

            def product(vector: Tensor) -> Tensor:
                pieces = torch.split(vector, [p.numel() for p, _ in used])
                found = torch.autograd.grad(
                    [g for _, g in used],
                    [p for p, _ in used],
                    [v.to(p).view_as(p) for v, (p, _) in zip(pieces, used, strict=True)],
                    retain_graph=True,
                    allow_unused=True,
                )
                flat = [torch.zeros_like(p) if h is None else h for h, (p, _) in zip(found, used, strict=True)]
                return torch.cat([piece.flatten().double() for piece in flat])

            size = sum(p.numel() for p, _ in used)
            start = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            _, values, _ = lanczos(product, start, min(10, size))
        except FAILURES:  # an operation without a second derivative
            return None
    return (float(values[0]), float(values[-1])) if len(values) else None
