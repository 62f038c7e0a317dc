"""First weights: all alike, too large or too small."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from torch import Tensor, nn

from fogline.doctor.anatomy import Anatomy, rms
from fogline.doctor.closeup import (
    DEFAULT_GAIN,
    HE_GAIN,
    bend_before,
    listed,
    loose_matrices,
    loose_spreads,
    path_of,
    spreads,
    stepped,
    summed_over,
    undropped,
    wide,
)
from fogline.doctor.examination import Examination
from fogline.doctor.finding import BODY, Evidence, Remedy, Suspicion
from fogline.doctor.inventory import alike
from fogline.doctor.surgery import NONE, he, keeping, orthogonal, reset

_TENFOLD, _HUNDREDFOLD = math.log(10), math.log(100)


def symmetric_init(exam: Examination) -> Suspicion | None:
    """Units of a layer with the same weights and the same gradient: whatever the optimizer, they stay the same."""
    anatomy = wide(exam)
    if anatomy.stage:
        return None
    names = all_twins(exam)
    dropped = not _twins(anatomy)
    if not names:
        return None
    weights = [name for name, p in anatomy.named_parameters() if p.ndim >= 2 and _constant(p)]
    loose = dict.fromkeys(loose_matrices(anatomy), 0) | summed_over(anatomy)
    again = sorted({name if name in loose else name.rpartition(".")[0] for name in weights} | set(names))
    ways = drawn_for_relu(again, loose), drawn_anew(again, loose)  # rows of a table of length one first
    modules = [name for name in again if name not in loose]
    return Suspicion(
        "symmetric_init",
        0.95,
        tuple(Evidence("units with different first weights or gradients", 1, "all", layer=name) for name in names[:4]),
        "All units of a layer begin with the same weights and get the same gradient, "
        + (
            "but for what dropout takes away: that alone tells them apart, and it takes long to."
            if dropped
            else "so they take the same steps for ever: however wide the layer is, it does the work of a single unit."
        ),
        ways if any(isinstance(anatomy.model.get_submodule(n), nn.Embedding) for n in modules) else ways[::-1],
        proof=True,
        severity="serious" if dropped else "fatal",
    )


def all_twins(exam: Examination) -> list[str]:
    """Layers of which all units are alike, and remain so but for dropout; not the last one, whose units have targets of
    their own.

    A layer that no gradient comes to yet, because a later one begins at zero, may not be alike for long.
    """
    anatomy = wide(exam)
    found, model = _twins(anatomy), anatomy.model
    drops = any(isinstance(module, nn.modules.dropout._DropoutNd) for module in model.modules())
    if not found and drops and any(alike(module) for module in model.modules()):
        anatomy = undropped(exam)
        found = _twins(anatomy)
    if any(not bool(slope.any()) for name in found for slope in _slopes(anatomy, name)):
        later = _twins(stepped(exam, anatomy))
        found = [name for name in found if name in later]
    return found


def _slopes(anatomy: Anatomy, name: str) -> list[Tensor]:
    """Gradients of what is below a module, or of a parameter."""
    below = ((own, slope) for own, slope in anatomy.gradients.items() if own == name or own.startswith(f"{name}."))
    return [slope.to_dense() for _, slope in below if slope is not None]


def _twins(anatomy: Anatomy) -> list[str]:
    found = []
    last = anatomy.weighted[-1].name if anatomy.weighted else ""
    for name, module in anatomy.named_modules():
        if name == last or not isinstance(module, (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase)):
            continue
        gates = {"LSTM": 4, "GRU": 3}.get(getattr(module, "mode", ""), 1)
        for own, parameter in module.named_parameters(recurse=False):
            gradient = anatomy.gradients.get(f"{name}.{own}" if name else own)
            if own.startswith("weight") and gradient is not None and _all_alike(parameter, gradient, gates):
                found.append(name)
                break
    return found + _other_twins(anatomy)


def _other_twins(anatomy: Anatomy) -> list[str]:
    """Tables of embeddings whose columns are alike, and matrices of no module at zero to which no slope leads."""
    found = []
    for name, module in anatomy.named_modules():
        slope = anatomy.gradients.get(f"{name}.weight")
        if (
            isinstance(module, nn.Embedding)
            and slope is not None
            and _all_alike(module.weight.mT, slope.to_dense().mT, 1)
        ):
            found.append(name)
    summed = summed_over(anatomy)
    for name, parameter in loose_matrices(anatomy).items():
        slope = anatomy.gradients.get(name)
        if slope is None:
            continue
        over = summed.get(name)
        units = [p.mT if over == 0 else p for p in (parameter, slope)]
        alike = over is not None and parameter.shape[over] > 1 and _all_alike(units[0], units[1], 1)
        if alike or (_constant(parameter) and not bool(slope.any())):
            found.append(name)
    return found


def _all_alike(parameter: Tensor, gradient: Tensor, gates: int) -> bool:
    values, slopes = parameter.detach().flatten(1).chunk(gates), gradient.flatten(1).chunk(gates)
    if len(values[0]) < 2:
        return False
    same = all(bool((block == block[0]).all()) for block in values)
    scale = float(gradient.abs().max())
    # Rounding of sums in another order is all that may differ.
    return same and all(float((block - block[0]).abs().max()) <= 1e-5 * scale for block in slopes)


def _constant(value: Tensor) -> bool:
    return value.numel() > 1 and float(value.detach().max()) == float(value.detach().min())


def drawn_anew(names: list[str], loose: Mapping[str, int] = NONE, attention: Collection[str] = ()) -> Remedy:
    """PyTorch's own first weights for modules, and for ``loose`` parameters such as a layer of their size has.

    Of these the dimension is given that is summed over when something is multiplied with them. Modules of ``attention``
    have another method for that.
    """
    return Remedy(
        f"give {listed(names)} PyTorch's own first weights",
        "\n".join(
            _drawn(name, "1 / 3", loose[name])
            if name in loose
            else _attention(name)
            if name in attention
            else f"{path_of(name)}.reset_parameters()"
            for name in names
        ),
        on_model=lambda model: reset(model, names, loose),
        place="init",
        order=BODY,
    )


def drawn_for_relu(names: list[str], loose: Mapping[str, int] = NONE, attention: Collection[str] = ()) -> Remedy:
    lines = [
        _drawn(name, "2", loose[name])
        if name in loose
        else _attention(name)
        if name in attention
        else f"nn.init.kaiming_normal_({path_of(name)}.weight, nonlinearity='relu'); "
        f"nn.init.zeros_({path_of(name)}.bias)"
        for name in names
    ]
    return Remedy(
        f"give {listed(names)} He's first weights",
        "\n".join(lines),
        on_model=lambda model: he(model, names, loose),
        place="init",
        order=BODY,
    )


def _attention(name: str) -> str:
    return f"nn.init.xavier_uniform_({path_of(name)}.in_proj_weight); {path_of(name)}.out_proj.reset_parameters()"


def _drawn(name: str, variance: str, over: int) -> str:
    return f"nn.init.normal_({path_of(name)}, std=({variance} / {path_of(name)}.shape[{over}]) ** 0.5)"


def bad_init(exam: Examination) -> Suspicion | None:
    """First weights that multiply a signal by far more, or far less, than keeps it in size."""
    anatomy = wide(exam)
    if anatomy.stage == "forward" or all_twins(exam):
        return None
    found, loose = spreads(anatomy), loose_spreads(anatomy)
    large = [spread for spread in (*found, *loose) if spread.excess > 0]
    small = [spread for spread in found if spread.excess < 0]
    if not _signal_shrinks(anatomy, -sum(spread.excess for spread in small)):
        small = [s for s in small if isinstance(anatomy.model.get_submodule(s.name), nn.RNNBase)]
    up, down = sum(spread.excess for spread in large), -sum(spread.excess for spread in small)
    if max(up, down) < _TENFOLD:
        return None
    guilty = large if up >= down else small
    names = list(dict.fromkeys(spread.name for spread in guilty))
    strength = 0.7 if max(up, down) > _HUNDREDFOLD else 0.5
    evidence = [
        Evidence("gain of the first weights", spread.gain, f"{DEFAULT_GAIN:.2g} to {HE_GAIN:.2g}", layer=spread.name)
        for spread in guilty[:4]
    ]
    evidence.append(Evidence("all of them together, times what keeps a signal in size", math.exp(max(up, down)), "1"))
    size = (
        "large: every layer multiplies the signal, outputs and gradients begin enormous"
        if up >= down
        else (
            "small: every layer shrinks the signal, so that outputs hardly depend on the inputs and the first layers "
            "get almost no gradient"
        )
    )
    own = summed_over(anatomy)
    remedies = drawn_again(anatomy, names, own)
    if any(isinstance(anatomy.model.get_submodule(name), nn.RNNBase) for name in names if name not in own):
        remedies = (drawn_orthogonal(), drawn_anew(names, own))
    return Suspicion("bad_init", strength, tuple(evidence), f"The first weights are too {size}.", remedies)


def _signal_shrinks(anatomy: Anatomy, down: float) -> bool:
    """Whether small weights do make the signal small: beside a skip connection they do not."""
    layers = anatomy.weighted
    if len(layers) < 2:
        return False
    first, last = _variation(layers[0].received), _variation(layers[-1].received)
    return last < first * math.exp(-down / 2)


def _variation(value: Tensor | None) -> float:
    """Root mean square of what differs from row to row: biases are the same for all."""
    if value is None or not value.ndim:
        return 0.0
    value = value.detach().double()
    return rms(value - value.mean(0, keepdim=True))


def drawn_again(anatomy: Anatomy, names: list[str], loose: Mapping[str, int] = NONE) -> tuple[Remedy, Remedy]:
    """First weights for these layers: in a deep ReLU network those that keep the gradient in size come first."""
    deep = sum(bend_before(layer) == "relu" for layer in anatomy.weighted) >= 3
    attention = {name for name, module in anatomy.named_modules() if isinstance(module, nn.MultiheadAttention)}
    either = drawn_for_relu(names, loose, attention), drawn_anew(names, loose, attention)
    return either if deep else (either[1], either[0])


def drawn_orthogonal() -> Remedy:
    return Remedy(
        "give recurrent layers orthogonal first weights",
        "model.rnn.reset_parameters()\n"
        "nn.init.orthogonal_(model.rnn.weight_hh_l0)  # nn.init.eye_ where its units are ReLU",
        on_model=orthogonal,
        place="init",
        order=BODY,
    )


def gates_opened() -> Remedy:
    return Remedy(
        "keep the past: PyTorch's own first weights, and biases of 1 in the gates that let it through",
        "rnn = model.rnn; rnn.reset_parameters(); n = rnn.hidden_size\n"
        "with torch.no_grad():\n    rnn.bias_ih_l0[n : 2 * n] = 1  # the forget gate of an LSTM, z of a GRU",
        on_model=keeping,
        place="init",
        order=BODY,
    )
