"""Every optimizer by name: built right, resumed bit for bit, equal to the obvious slow version of itself."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from fogline.descent.groups import groups_of, parameter_roles
from fogline.descent.optimizers import (
    OPTIMIZERS,
    build,
    choose_implementation,
    init_state,
    load_state_tensors,
    set_lr,
    spec_of,
    state_scalars,
    state_tensors,
)
from optimizer_cases import assert_same_bits, bits, make, make_model, train

NAMES = tuple(OPTIMIZERS)


def tensor_rates(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer with its rates in tensors, as a step that is one graph reads them."""
    for group in optimizer.param_groups:
        first = group["params"][0]
        dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
        group["lr"] = torch.tensor(float(group["lr"]), dtype=dtype, device=first.device)
    return optimizer


@pytest.mark.parametrize("name", NAMES)
def test_every_name_descends(name: str) -> None:
    model = nn.Linear(3, 1)
    optimizer = build(model, name, {"lion": 0.01, "muon": 0.02}.get(name, OPTIMIZERS[name].lr))
    x = torch.randn(32, 3, generator=torch.Generator().manual_seed(1))
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]])
    losses = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        losses.append(loss.item())
        return loss

    for _ in range(100):
        optimizer.step(closure)
    assert losses[-1] < losses[0]


def test_gd_is_the_textbook_step() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(5.0)
    optimizer = build(model, "gd", 0.1)
    ((model.weight - 2) ** 2).sum().backward()
    optimizer.step()
    assert model.weight.item() == pytest.approx(4.4)


@pytest.mark.parametrize("name", NAMES)
def test_state_round_trip_is_bitwise(name: str) -> None:
    model, twin = make_model(), make_model()
    optimizer, other = make(name, model), make(name, twin)
    train(model, optimizer, range(5))
    twin.load_state_dict(model.state_dict())
    tensors = {key: tensor.clone() for key, tensor in state_tensors(optimizer).items()}
    scalars = json.loads(json.dumps(state_scalars(optimizer), allow_nan=False))
    load_state_tensors(other, tensors, scalars)
    restored = state_tensors(other)
    assert restored.keys() == tensors.keys()
    assert state_scalars(other) == scalars
    for key, tensor in tensors.items():
        assert restored[key].dtype == tensor.dtype
        assert bits(restored[key]) == bits(tensor), key
    train(model, optimizer, range(5, 9))
    train(twin, other, range(5, 9))
    assert_same_bits(model, twin)


@pytest.mark.parametrize(
    ("name", "how"), [(spec.name, how) for spec in OPTIMIZERS.values() for how in spec.implementations]
)
def test_state_made_in_advance_changes_no_bit(name: str, how: str) -> None:
    model, twin = make_model(), make_model()
    optimizer, other = (make(name, m, implementation=how) for m in (model, twin))
    lr = OPTIMIZERS[name].lr * 0.1
    set_lr(other, lr)
    weights = {key: value.clone() for key, value in twin.state_dict().items()}
    made = init_state(other)
    assert made == (name != "lbfgs")
    assert all(bits(weights[key]) == bits(value) for key, value in twin.state_dict().items())
    train(model, optimizer, range(6), lr)
    train(twin, other, range(6), lr)
    assert_same_bits(model, twin)
    for (key, a), b in zip(state_tensors(optimizer).items(), state_tensors(other).values(), strict=True):
        assert (a.shape, a.dtype, bits(a)) == (b.shape, b.dtype, bits(b)), key


@pytest.mark.parametrize(
    ("name", "options"),
    [("rmsprop", {"momentum": 0.5, "centered": True}), ("adam", {"amsgrad": True}), ("sgd", {"momentum": 0.5})],
)
def test_state_made_in_advance_with_options(name: str, options: dict[str, Any]) -> None:
    model, twin = make_model(), make_model()
    optimizer, other = (make(name, m, options=options) for m in (model, twin))
    assert init_state(other)
    train(model, optimizer, range(6))
    train(twin, other, range(6))
    assert_same_bits(model, twin)
    assert state_tensors(optimizer).keys() == state_tensors(other).keys()


def test_state_that_cannot_be_made_in_advance() -> None:
    optimizer = build(make_model(), "sgd", 0.1, options={"momentum": 0.9, "dampening": 0.1})
    assert not init_state(optimizer)
    assert not state_tensors(optimizer)


def test_a_negative_zero_gradient_keeps_its_sign() -> None:
    results = []
    for advance in (False, True):
        model = nn.Linear(1, 1, bias=False)
        model.weight.data.fill_(-0.0)
        optimizer = build(model, "momentum", 0.1)
        if advance:
            init_state(optimizer)
        model.weight.grad = torch.full_like(model.weight, -0.0)
        optimizer.step()
        results.append(bits(state_tensors(optimizer)["weight/momentum_buffer"]) + bits(model.weight))
    assert results[0] == results[1]


@pytest.mark.parametrize("name", NAMES)
def test_missing_gradients_are_left_out(name: str) -> None:
    model = make_model()
    optimizer = make(name, model)
    frozen = model[6].weight
    before = frozen.detach().clone()
    model(torch.randn(4, 1, 6, 6)).sum().backward()
    frozen.grad = None
    if not spec_of(name).needs_closure:
        optimizer.step()
        assert torch.equal(before, frozen)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "lbfgs"])
def test_a_tensor_rate_gives_the_same_weights(name: str) -> None:
    model, twin = make_model(torch.float64), make_model(torch.float64)
    optimizer, other = make(name, model), tensor_rates(make(name, twin))
    kept = other.param_groups[0]["lr"]
    train(model, optimizer, range(4), OPTIMIZERS[name].lr)
    train(twin, other, range(4), OPTIMIZERS[name].lr)
    assert other.param_groups[0]["lr"] is kept
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_set_lr_keeps_the_ratios_of_groups() -> None:
    for as_tensor in (False, True):
        optimizer = build(make_model(), "adamw", 0.1)
        optimizer = tensor_rates(optimizer) if as_tensor else optimizer
        optimizer.param_groups[1]["lr_scale"] = 0.5
        set_lr(optimizer, 0.2)
        assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([0.2, 0.1])


class Mixed(nn.Module):
    """One parameter of every sort."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 4)
        self.position = nn.Parameter(torch.zeros(1, 5, 4))
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.attention = nn.MultiheadAttention(4, 2)
        self.norm = nn.LayerNorm((3, 4))
        self.grouped = nn.Conv1d(4, 6, 3, groups=2)
        self.recurrent = nn.GRU(4, 3)
        self.scaled = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.head = nn.Linear(4, 1)
        self.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)


def test_decay_goes_by_the_type_of_the_module() -> None:
    decayed, kept = groups_of(parameter_roles(Mixed()), 0.1)
    assert set(decayed["names"]) == {
        "position",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "grouped.weight",
        "recurrent.weight_ih_l0",
        "recurrent.weight_hh_l0",
        "scaled.parametrizations.weight.original1",
        "head.weight",
    }
    assert {"words.weight", "token", "temperature", "norm.weight", "head.bias"} <= set(kept["names"])
    assert "frozen" not in kept["names"] + decayed["names"]
    assert (decayed["weight_decay"], kept["weight_decay"], kept["lr_scale"]) == (0.1, 0.0, 1.0)
    assert all(len(group["names"]) == len(group["params"]) for group in (decayed, kept))


def test_a_weight_shared_with_an_embedding_counts_once_as_an_embedding() -> None:
    model = nn.ModuleDict({"words": nn.Embedding(7, 4), "head": nn.Linear(4, 7)})
    model["head"].weight = model["words"].weight
    (group,) = groups_of(parameter_roles(model), 0.1)
    assert group["names"] == ["words.weight", "head.bias"]


def test_one_group_without_decay() -> None:
    (group,) = groups_of(parameter_roles(make_model()), None)
    assert "weight_decay" not in group


def test_hidden_matrices_and_their_stacks() -> None:
    hidden = {role.name: role.hidden for role in parameter_roles(Mixed()) if role.hidden}
    assert hidden == {
        "attention.in_proj_weight": (3, 4, 4),
        "attention.out_proj.weight": (1, 4, 4),
        "grouped.weight": (2, 3, 6),
    }


@pytest.mark.parametrize(("name", "flag"), [("nadam", True), ("radam", True), ("adam", False)])
def test_decay_is_decoupled_where_torch_offers_it(name: str, flag: bool) -> None:
    assert build(make_model(), name, 0.1, weight_decay=0.1).defaults["decoupled_weight_decay"] is flag


def test_the_default_decay_is_the_methods_own() -> None:
    assert {g["weight_decay"] for g in build(make_model(), "adamw", 0.1).param_groups} == {0.01, 0.0}
    assert {g["weight_decay"] for g in build(make_model(), "adamw", 0.1, weight_decay=0).param_groups} == {0.0}
    assert {g["weight_decay"] for g in build(make_model(), "muon", 0.1).param_groups} == {0.01, 0.0}


def test_a_class_of_the_user() -> None:
    optimizer = build(make_model(), torch.optim.Adafactor, 0.1, options={"d": 2.0})
    assert optimizer.param_groups[0]["d"] == 2.0
    assert not init_state(optimizer)


@pytest.mark.parametrize(
    ("name", "keywords", "message"),
    [
        ("momentun", {}, "unknown optimizer 'momentun': did you mean 'momentum'"),
        ("adamw", {"options": {"beta": (0.9, 0.9)}}, r"option of adamw \(betas, eps.*'beta'.*did you mean 'betas'"),
        ("adamw", {"options": {"lr": 0.1}}, "expected lr as its own setting"),
        ("lbfgs", {"weight_decay": 0.1}, "expected no weight decay for lbfgs"),
        ("sgd", {"weight_decay": -1.0}, "expected weight_decay to be a finite number"),
        ("lion", {"implementation": "fused"}, r"implementation that lion has \(forloop\)"),
        ("lion", {"options": {"betas": (0.9, 1.0)}}, "every beta of Lion"),
        ("muon", {"options": {"precision": "float7"}}, "expected precision of Muon"),
    ],
)
def test_mistakes_are_named(name: str, keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(make_model(), name, 0.1, **keywords)


def test_more_mistakes() -> None:
    model = make_model()
    with pytest.raises(TypeError, match="pass the class, SGD"):
        build(model, torch.optim.SGD(model.parameters()), 0.1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="received 3"):
        build(model, 3, 0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lr to be a finite number"):
        build(model, "sgd", float("nan"))
    with pytest.raises(ValueError, match="at least one trainable parameter"):
        build(nn.ReLU(), "sgd", 0.1)
    with pytest.raises(ValueError, match="pass one batch through its lazy modules"):
        build(nn.LazyLinear(3), "sgd", 0.1)
    optimizer = build(model, "adamw", 0.1)
    with pytest.raises(ValueError, match="saved from another model"):
        load_state_tensors(optimizer, {"other/exp_avg": torch.zeros(1)})


@pytest.mark.parametrize("name", NAMES)
def test_choosing_an_implementation_disturbs_nothing(name: str) -> None:
    model = make_model()
    model(torch.randn(4, 1, 6, 6)).sum().backward()
    before = [(bits(p), bits(p.grad)) for p in model.parameters() if p.grad is not None]
    random = torch.get_rng_state()
    how, seconds = choose_implementation(lambda m, how: make(name, m, implementation=how), model, budget=0.0)
    assert [(bits(p), bits(p.grad)) for p in model.parameters() if p.grad is not None] == before
    assert torch.equal(torch.get_rng_state(), random)
    assert not seconds or how in seconds
    assert ("fused" in seconds) == (name in {"gd", "sgd", "momentum", "nesterov", "adam", "adamw", "adagrad"})


@pytest.mark.parametrize("name", [name for name in NAMES if name != "lbfgs"])
def test_the_step_traces_into_one_graph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a compiled step does it: settings for graphs, the rate and all state as inputs of the graph."""
    model, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    optimizer, other = tensor_rates(make(name, model)), make(name, twin)
    for group in optimizer.param_groups:
        group.update({key: True for key in ("foreach", "capturable") if key in group})
    init_state(optimizer)
    grads = [torch.full_like(p, 0.3) for p in model.parameters()]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    graph = make_fx(traceable_step(optimizer))(
        [g.clone() for g in grads],
        [p.detach().clone() for p in model.parameters()],
        {key: value.clone() for key, value in state_tensors(optimizer).items()},
        [group["lr"].clone() for group in optimizer.param_groups],
    )
    monkeypatch.undo()
    rates = [group["lr"] for group in optimizer.param_groups]
    for _ in range(3):
        graph([g.clone() for g in grads], [p.detach() for p in model.parameters()], state_tensors(optimizer), rates)
        for p, g in zip(twin.parameters(), grads, strict=True):
            p.grad = g.clone()
        other.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def traceable_step(optimizer: torch.optim.Optimizer) -> Callable[..., int]:
    """The step as a function of gradients, parameters, state and rates."""
    owners = [(n, p) for group in optimizer.param_groups for n, p in zip(group["names"], group["params"], strict=True)]
    names = sorted((name for name, _ in owners), key=["weight", "bias"].index)
    scalars = {name: {k: v for k, v in optimizer.state[p].items() if not torch.is_tensor(v)} for name, p in owners}

    def step(grads: list[Tensor], params: list[Tensor], state: dict[str, Tensor], rates: list[Tensor]) -> int:
        held = [(group["params"], group["lr"]) for group in optimizer.param_groups]
        kept = dict(optimizer.state)
        given = dict(zip(names, params, strict=True))
        optimizer.state.clear()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["params"], group["lr"] = [given[name] for name in group["names"]], rate
        for name, param, grad in zip(names, params, grads, strict=True):
            param.grad = grad
            mine = {key.removeprefix(f"{name}/"): value for key, value in state.items() if key.startswith(f"{name}/")}
            optimizer.state[param] = mine | scalars[name]
        optimizer.step()
        for group, (group_params, rate) in zip(optimizer.param_groups, held, strict=True):
            group["params"], group["lr"] = group_params, rate
        optimizer.state.clear()
        optimizer.state.update(kept)
        return 0

    return step
