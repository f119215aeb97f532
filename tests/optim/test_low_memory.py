"""Optimisers of less memory: updates by hand, states, refusals, and exact resume."""

from __future__ import annotations

import importlib.util
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from caldpo.config.conf_dir import conf_dir
from caldpo.estimation.optimizer_memory import optimizer_memory
from caldpo.optim import AdamW, Schedule
from caldpo.optim.low_memory import Lion, LowMemoryAdamW, StochasticAdamW
from caldpo.optim.torch_optimizers import Adafactor
from tests.evaluation.runs import write_data
from tests.helpers.messages import refused
from tests.resume.child import Kill
from tests.resume.runs import BASE, outcome, train

CONSTANT = Schedule("constant", warmup_steps=0)
PACKAGES = {"adamw_8bit": "bitsandbytes", "adamw_paged": "bitsandbytes", "lion": "bitsandbytes"}
PACKAGES["adamw_stochastic"] = "torchao"
OPTIONS = sorted(path.stem for path in (conf_dir() / "optim").glob("*.yaml"))


def needs(option: str) -> None:
    if option in PACKAGES:
        pytest.importorskip(PACKAGES[option], reason="needs its extra")


def matrix(rows: int = 64, columns: int = 64, seed: int = 0) -> torch.nn.Linear:
    torch.manual_seed(seed)
    return torch.nn.Linear(columns, rows, bias=False)


def trained(spec: Any, layer: torch.nn.Linear, steps: int = 3) -> list[torch.Tensor]:
    """The gradients it was given."""
    optimizer = spec.build(layer, 10)["optimizer"]
    generator = torch.Generator().manual_seed(1)
    seen = []
    for _ in range(steps):
        layer.weight.grad = torch.randn(layer.weight.shape, generator=generator).to(layer.weight.dtype)
        seen.append(layer.weight.grad.clone())
        optimizer.step()
    return seen


def test_lion_by_hand() -> None:
    needs("lion")
    layer = matrix()
    expected, moment = layer.weight.detach().clone(), torch.zeros(64, 64)
    for grad in trained(Lion(CONSTANT, lr=1e-3, beta1=0.8, beta2=0.95, weight_decay=0.1), layer):
        expected = expected * (1 - 1e-3 * 0.1) - 1e-3 * torch.sign(0.8 * moment + 0.2 * grad)
        moment = 0.95 * moment + 0.05 * grad
    torch.testing.assert_close(layer.weight.detach(), expected, rtol=0, atol=1e-6)


def test_adafactor_by_hand() -> None:
    layer = matrix(6, 4)
    expected = layer.weight.detach().double()
    rows, columns = torch.zeros(6, 1).double(), torch.zeros(1, 4).double()
    spec = Adafactor(CONSTANT, lr=1e-2, beta2_decay=-0.7, min_size=1e-3)
    for step, grad in enumerate(trained(spec, layer), start=1):
        squares, new = grad.double() ** 2, step**-0.7
        rows = rows + new * (squares.mean(1, keepdim=True) - rows)
        columns = columns + new * (squares.mean(0, keepdim=True) - columns)
        update = grad.double() / (rows @ columns / rows.mean()).sqrt()
        update = update / max(1.0, float(update.square().mean().sqrt()))
        size = max(1e-3, float(expected.square().mean().sqrt()))
        expected = expected - min(1e-2, step**-0.5) * size * update
    torch.testing.assert_close(layer.weight.detach().double(), expected, rtol=1e-4, atol=1e-6)


def test_paged_moments_of_full_size_are_adamws() -> None:
    needs("adamw_paged")
    layer, plain = matrix(), matrix()
    trained(LowMemoryAdamW(CONSTANT, lr=1e-3, weight_decay=0.1, bits=32, paged=True), layer)
    trained(AdamW(CONSTANT, lr=1e-3, weight_decay=0.1, fused=False), plain)
    torch.testing.assert_close(layer.weight, plain.weight, rtol=0, atol=2e-6)


def test_8_bit_moments_are_adamws_to_a_few_per_cent_of_a_step() -> None:
    """But for elements whose second moment is small beside the largest of its block, which 8 bits know badly."""
    needs("adamw_8bit")
    layer, plain, start = matrix(128, 128), matrix(128, 128), matrix(128, 128)
    trained(LowMemoryAdamW(CONSTANT, lr=1e-3), layer)
    trained(AdamW(CONSTANT, lr=1e-3, fused=False), plain)
    weights = [one.weight.detach() for one in (layer, plain, start)]
    apart, moved = (weights[0] - weights[1]).abs(), (weights[1] - weights[2]).abs().mean()
    assert float(apart.median() / moved) < 0.05
    assert float(apart.mean() / moved) < 0.15
    assert float(apart.max()) > 0, "it did round"


def test_stochastic_rounding_moves_weights_by_the_update_on_average() -> None:
    """A step of a tenth of the last digit of 1.5: rounding to the nearest would not move a single weight."""
    needs("adamw_stochastic")
    digit = 2.0**-7  # between bfloat16 numbers from 1 to 2
    moved = {}
    specs = {"stochastic": StochasticAdamW(CONSTANT, lr=digit / 10), "nearest": AdamW(CONSTANT, lr=digit / 10)}
    for name, spec in specs.items():
        layer = matrix().bfloat16()
        with torch.no_grad():
            layer.weight.fill_(1.5)
        optimizer = spec.build(layer, 10)["optimizer"]
        layer.weight.grad = torch.ones_like(layer.weight)
        torch.manual_seed(0)
        optimizer.step()  # Adam's first step is lr x the gradient's sign
        steps = (1.5 - layer.weight.detach().float()) / digit
        assert set(steps.unique().tolist()) <= {0.0, 1.0}
        moved[name] = float(steps.mean())
    assert moved["nearest"] == 0
    assert moved["stochastic"] == pytest.approx(0.1, abs=4 * (0.1 * 0.9 / 64**2) ** 0.5)


@pytest.mark.parametrize("option", OPTIONS)
def test_what_the_estimate_says_is_what_it_keeps(option: str) -> None:
    needs(option)
    spec = instantiate(OmegaConf.load(conf_dir() / "optim" / f"{option}.yaml"), _convert_="all")
    layer = matrix(256, 512)
    if option == "adamw_stochastic":
        layer = layer.bfloat16()
    optimizer = spec.build(layer, 10)["optimizer"]
    layer.weight.grad = torch.ones_like(layer.weight)
    optimizer.step()
    kept = sum(s.nbytes for s in optimizer.state[layer.weight].values() if isinstance(s, torch.Tensor))
    said = optimizer_memory(spec, [layer.weight], "cpu").state
    assert kept <= said <= 1.02 * kept + layer.weight.numel() / 16
    assert said / layer.weight.numel() == pytest.approx(
        {"adamw": 8, "rmsprop": 4, "adafactor": 0.06, "lion": 4, "adamw_stochastic": 4}.get(option, 2),
        rel=0.06,
        abs=0.05,
    ), "bytes an element"


@pytest.mark.parametrize("option", OPTIONS)
def test_without_its_package_the_extra_is_named(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = instantiate(OmegaConf.load(conf_dir() / "optim" / f"{option}.yaml"), _convert_="all")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    precision = "bf16-true" if option == "adamw_stochastic" else "bf16-mixed"
    if option not in PACKAGES:
        spec.check(precision)
        return
    extra = {"bitsandbytes": "bnb", "torchao": "ao"}[PACKAGES[option]]
    with refused(key="optim", value=option, remedy=f"pip install 'caldpo[{extra}]'"):
        spec.check(precision)


def test_adafactor_refuses_sharded_weights() -> None:
    Adafactor(CONSTANT).check("bf16-mixed")
    with refused("devices", key="optim", value="adafactor", remedy=("optim=adamw", "trainer.strategy=ddp")):
        Adafactor(CONSTANT).check("bf16-mixed", sharded=True)


def test_what_bitsandbytes_does_not_go_with() -> None:
    needs("lion")
    for spec, option in ((LowMemoryAdamW(CONSTANT), "adamw_8bit"), (Lion(CONSTANT), "lion")):
        spec.check("bf16-mixed")
        with refused("devices", key="optim", value=option, remedy=("optim=adamw", "trainer.strategy=ddp")):
            spec.check("bf16-mixed", sharded=True)


def test_what_stochastic_rounding_goes_with() -> None:
    needs("adamw_stochastic")
    StochasticAdamW(CONSTANT).check("bf16-true", sharded=True)
    with refused("device", key="optim", value="adamw_stochastic", remedy="trainer.strategy=fsdp"):
        StochasticAdamW(CONSTANT).check("bf16-true", replicas=True)
    remedy = ("trainer.precision=bf16-true", "optim=adamw")
    with refused("trainer.precision=bf16-mixed", key="optim", value="adamw_stochastic", remedy=remedy):
        StochasticAdamW(CONSTANT).check("bf16-mixed")


@pytest.mark.slow
@pytest.mark.parametrize("option", [option for option in OPTIONS if option not in ("adamw", "rmsprop")])
def test_a_killed_run_goes_on_as_if_it_had_not_been(option: str, tmp_path: Path) -> None:
    """With states in whatever form the library keeps them, and drawn roundings."""
    needs(option)
    write_data(tmp_path)
    precision = ("trainer.precision=bf16-true",) if option == "adamw_stochastic" else ()
    # matrices of 4,096 elements and more have states in 8 bits
    given = (*BASE, *precision, f"optim={option}", "optim.lr=0.01", "model.hidden_size=64", "trainer.max_steps=6")
    ended = train(tmp_path, *given, "hydra.run.dir=whole")
    assert ended.codes == (0,), ended.said
    killed = train(tmp_path, *given, "hydra.run.dir=killed", kill=Kill("step", 9, signal.SIGKILL))
    assert killed.codes == (-9,), killed.said
    resumed = train(tmp_path, "resume=killed")
    assert resumed.codes == (0,), resumed.said
    whole, actual = outcome(tmp_path / "whole"), outcome(tmp_path / "killed")
    assert [name for name in whole if actual[name] != whole[name]] == []
