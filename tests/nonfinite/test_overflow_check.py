"""What is refused does overflow when trained; what is just within the limit does not."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from caldpo.errors import CaldpoError
from caldpo.lightning_trainer import TrainerSettings
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.cal_dpo import CalDPO
from caldpo.losses.cal_slic import CalSLiC
from caldpo.losses.cpo import CPO
from caldpo.losses.dpo import DPO
from caldpo.losses.f_dpo import FDPO
from caldpo.losses.ipo import IPO
from caldpo.losses.sft import SFT
from caldpo.losses.slic import SLiC
from caldpo.models.adapters import Lora, NoAdapter
from caldpo.nonfinite.overflow_check import SCALE, check_overflow, initial_loss, steps_to_scale
from caldpo.optim import AdamW, RMSprop, Schedule
from caldpo.reference.frozen_model import FrozenReference
from tests.helpers.messages import names, refused
from tests.helpers.tiny import tiny_model, tiny_pairs
from tests.helpers.tiny_trainer import Pairs, fit, make_module

PAIRS = 4


def parts(loss: PreferenceLoss, dtype: str = "float32", **keys: Any) -> dict[str, Any]:
    optim, adapter = keys.pop("optim", AdamW(Schedule())), keys.pop("adapter", NoAdapter())
    return {
        "loss": loss,
        "model": SimpleNamespace(dtype=dtype),
        "optim": optim,
        "adapter": adapter,
        "max_length": 16,
        "micro_batch_size": PAIRS,
        "trainer": TrainerSettings(**keys),
    }


def refusal(*args: Any, **keys: Any) -> CaldpoError:
    with pytest.raises(CaldpoError) as error:
        check_overflow(**parts(*args, **keys))
    return error.value


def trained(loss: PreferenceLoss, folder: Path, dtype: torch.dtype = torch.float32, optim: Any = None) -> Any:
    """The module after two steps that nothing was refused for."""
    module = make_module(loss)
    module.policy.to(dtype)
    module.reference = FrozenReference(tiny_model(dtype=dtype))
    module.optim, module.same_start = optim or AdamW(Schedule("constant", warmup_steps=0), lr=1e-6), False
    fit(module, Pairs(tiny_pairs(8), tiny_pairs(2), PAIRS), folder, max_steps=2, gradient_clip_val=1.0)
    return module


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (CalDPO(beta=2e-20), "1.25e+39"),  # 2 (1 / (2 beta))^2
        (CalDPO(beta=1e-10, calibration_weight=1e20), "5e+39"),
        (IPO(beta=2e-20), "6.25e+38"),  # (1 / (2 beta))^2
        (SLiC(delta=1e39), "1e+39"),
    ],
    ids=lambda x: getattr(x, "formula", ""),
)
def test_a_loss_that_overflows_float32_is_refused(loss: PreferenceLoss, value: str, tmp_path: Path) -> None:
    names(refusal(loss), "loss", value, "float32", "3.4e+38", remedy="raise loss.beta")
    with refused("loss", "step 0"):
        trained(loss, tmp_path)


@pytest.mark.parametrize("loss", [CalDPO(beta=1e-16), IPO(beta=1e-16), SLiC(delta=1e30), DPO(beta=1e15)])
def test_a_loss_within_float32_is_trained(loss: PreferenceLoss, tmp_path: Path) -> None:
    check_overflow(**parts(loss))
    module = trained(loss, tmp_path)
    assert all(p.isfinite().all() for p in module.policy.parameters())


@pytest.mark.parametrize(
    ("loss", "named"),
    [
        (DPO(beta=1e-320), "loss.beta=9.99989e-321"),
        (DPO(beta=1e308), "loss.beta=1e+308"),
        (IPO(beta=1e-320), "loss.beta=9.99989e-321"),
        (CalDPO(beta=1e-46), "loss.beta=1e-46"),
        (CPO(nll_weight=1e300), "loss.nll_weight=1e+300"),
        (CalDPO(calibration_weight=1e300), "loss.calibration_weight=1e+300"),
        (CalSLiC(calibration_weight=1e300, nll_weight=2.0), "loss.calibration_weight=1e+300"),
        (CalDPO(targets="scores", score_center=0.0, score_scale=1e300), "loss.score_scale=1e+300"),
    ],
    ids=lambda x: getattr(x, "formula", ""),
)
def test_a_setting_that_float32_cannot_hold_is_named(loss: PreferenceLoss, named: str) -> None:
    key, _, value = named.partition("=")
    names(refusal(loss), key=key, value=value)


@pytest.mark.parametrize(("beta", "remedy"), [(1e308, "lower loss.beta"), (1e-46, "raise loss.beta")])
def test_the_remedy_moves_beta_in_the_right_direction(beta: float, remedy: str) -> None:
    names(refusal(DPO(beta=beta) if beta > 1 else IPO(beta=beta)), remedy=remedy)


def test_float64_has_a_wider_range() -> None:
    check_overflow(**parts(CalDPO(beta=1e-100), precision="64-true"))
    names(refusal(CalDPO(beta=1e-200), precision="64-true"), "float64")


def test_a_gradient_whose_square_overflows_float32_is_refused(tmp_path: Path) -> None:
    arithmetic = "slope 5e+24 / 4 pairs x 0.001 = 1.25e+21"
    names(refusal(DPO(beta=1e25)), arithmetic, "square", "float32", "3.4e+38", key="loss.beta", value="1e+25")
    with refused("gradient", "step 0"):
        trained(DPO(beta=1e25), tmp_path)


def test_float16_weights_have_no_gradient_scale(tmp_path: Path) -> None:
    loss = CalDPO(beta=1e-10)
    names(refusal(loss, "float16"), "slope 1e+10 / 4 pairs x 0.001 = 2.5e+06", "float16", 65504, key="loss.beta")
    check_overflow(**parts(loss, "float32"))  # float32 has room for it
    check_overflow(**parts(loss, "float16", precision="bf16-true"))  # as has what Lightning makes of the weights
    with refused("step 0"):
        trained(loss, tmp_path / "refused", torch.float16)
    check_overflow(**parts(CalDPO(beta=0.5), "float16"))
    module = trained(CalDPO(beta=0.5), tmp_path / "inside", torch.float16)
    assert all(p.isfinite().all() for p in module.policy.parameters())


def test_an_epsilon_that_float16_rounds_to_zero(tmp_path: Path) -> None:
    """Tokens that are in no pair have a gradient of 0: 0 / (0 + eps)."""
    rounded, inside = (RMSprop(Schedule("constant", warmup_steps=0), lr=1e-6, eps=eps) for eps in (1e-8, 1e-6))
    error = refusal(CalDPO(beta=0.5), "float16", optim=rounded)
    names(error, "float16", key="optim.eps", value="1e-08", remedy="optim.eps=1e-6")
    module = make_module(CalDPO(beta=0.5))
    module.optim = rounded
    with pytest.raises(CaldpoError):
        trained(CalDPO(beta=0.5), tmp_path / "refused", torch.float16, rounded)
    check_overflow(**parts(CalDPO(beta=0.5), "float16", optim=inside))
    module = trained(CalDPO(beta=0.5), tmp_path / "inside", torch.float16, inside)
    assert all(p.isfinite().all() for p in module.policy.parameters())
    check_overflow(**parts(CalDPO(), "float16", optim=rounded, adapter=Lora()))  # PEFT keeps adapters in float32
    check_overflow(**parts(CalDPO(), "float16", optim=AdamW(Schedule())))  # the fused kernel computes in float32
    names(refusal(CalDPO(), "float16", optim=AdamW(Schedule(), fused=False)), key="optim.eps")


def test_scaled_gradients_cannot_be_float16() -> None:
    error = refusal(CalDPO(), "float16", precision="16-mixed", accelerator="gpu")
    remedies = ("model.dtype=float32", "trainer.precision=bf16-mixed")
    names(error, "model.dtype=float16", key="trainer.precision", value="16-mixed", remedy=remedies)
    check_overflow(**parts(CalDPO(), "float16", precision="16-mixed"))  # a CPU computes in bfloat16 instead
    weight = torch.nn.Parameter(torch.ones(2, dtype=torch.float16))
    scaler, optimizer = torch.amp.GradScaler("cpu"), torch.optim.SGD([weight])
    scaler.scale(weight.float().sum()).backward()
    with pytest.raises(ValueError, match="unscale FP16 gradients"):  # it is so
        scaler.unscale_(optimizer)


@pytest.mark.parametrize("smallest", [1e-9, 0.9, 1.0, 3.0, 250.0, 1e12])
def test_steps_until_the_gradient_scale_fits(smallest: float) -> None:
    scale, skipped = SCALE, 0
    while float(torch.tensor(smallest * scale, dtype=torch.float32).half()) == math.inf:
        scale, skipped = scale / 2, skipped + 1
    assert abs(steps_to_scale(smallest) - skipped) <= (0 if smallest != 1.0 else 1)  # 65,519 still rounds to 65,504


def test_more_skipped_steps_than_allowed_are_refused() -> None:
    on_gpu: dict[str, Any] = {"precision": "16-mixed", "accelerator": "gpu"}
    check_overflow(**parts(CalDPO(beta=1e-12), **on_gpu))
    names(refusal(CalDPO(beta=1e-12), max_skipped_steps=27, **on_gpu), 28, "trainer.max_skipped_steps=27")
    check_overflow(**parts(CalDPO(beta=1e-12), max_skipped_steps=28, **on_gpu))


@pytest.mark.parametrize(
    ("loss", "value", "slope"),
    [
        (CalDPO(beta=0.1), math.log(2) + 50, 10.5),
        (IPO(beta=0.1), 25.0, 10 / 16),
        (DPO(beta=0.1), math.log(2), 0.05),
        (FDPO(beta=0.1, divergence="js"), math.log(2), 0.025),
        (SFT(), 0.1 / 16, 1 / 16),
        (SLiC(), 10 + 0.1 / 16, 1 + 1 / 16),
        (CPO(beta=0.1), math.log(2) + 0.1 / 16, 0.05 + 1 / 16),
        (CalDPO(beta=0.1, targets="scores"), math.log(2) + 2 * 0.005**2, 0.5 + 0.01),
    ],
    ids=lambda x: getattr(x, "formula", ""),
)
def test_initial_loss_and_slope(loss: PreferenceLoss, value: float, slope: float) -> None:
    found = initial_loss(loss, 16, torch.float64)
    assert (found.loss, found.slope) == (pytest.approx(value), pytest.approx(slope))
