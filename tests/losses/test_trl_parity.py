"""Losses against TRL's own code, run on the same log-probs: equal, or differing as is said here.

TRL's formulas stand inside its trainers. They run here on a stand-in for the trainer, whose model gives the log-probs
of ``PAIRS``, spread evenly over the tokens of each response.
"""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from caldpo.config.conf_dir import conf_dir
from caldpo.types import PairLogps
from tests.losses.test_golden import build_loss
from tests.losses.test_losses import PAIRS, Pair, gradients, load, to_logps

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs TRL, of the [bench] extra"),
    pytest.mark.filterwarnings("ignore"),
]

PROMPT = 1  # tokens before each response


@dataclass(frozen=True)
class InTRL:
    """Where TRL has a loss: ``loss_type`` of a trainer, and the trainer's settings."""

    loss_type: str | list[str]
    settings: dict[str, Any] = field(default_factory=dict)
    trainer: str = "DPO"
    digits: float = 1e-12  # relative; TRL computes some terms in float32


# our setting: the same in TRL 1.16, equal in loss and gradients
EQUAL: dict[str, InTRL] = {
    "dpo beta=0.1": InTRL("sigmoid", {"beta": 0.1}),
    "ipo beta=0.2": InTRL("ipo", {"beta": 0.2}),
    "rso beta=0.05": InTRL("hinge", {"beta": 0.05}),
    "f_dpo beta=0.1 divergence=forward_kl": InTRL("sigmoid", {"beta": 0.1, "f_divergence_type": "forward_kl"}),
    "f_dpo beta=0.1 divergence=js": InTRL("sigmoid", {"beta": 0.1, "f_divergence_type": "js_divergence"}),
    "sppo beta=0.01": InTRL("sppo_hard", {"beta": 0.01}),
    "nca beta=0.01": InTRL("nca_pair", {"beta": 0.01}),
    "exo beta=0.1 label_noise=0.001": InTRL("exo_pair", {"beta": 0.1, "label_smoothing": 1e-3}, digits=1e-6),
    "apo_zero beta=0.1": InTRL("apo_zero", {"beta": 0.1}),
    "apo_down beta=0.1": InTRL("apo_down", {"beta": 0.1}),
    "robust beta=0.1 label_noise=0.1": InTRL("robust", {"beta": 0.1, "label_smoothing": 0.1}),
    "dpo_norm beta=5.0": InTRL("sigmoid_norm", {"beta": 5.0}),
    "discopop beta=0.05 tau=0.05": InTRL("discopop", {"beta": 0.05, "discopop_tau": 0.05}),
    "sft": InTRL("sft"),
    "rpo beta=0.1 nll_weight=0.5": InTRL(["sigmoid", "sft"], {"beta": 0.1, "loss_weights": [1.0, 0.5]}),
    "cpo beta=0.1 nll_weight=0.0": InTRL("sigmoid", {"beta": 0.1}, "CPO"),
    "simpo beta=2.0 gamma=1.0": InTRL("simpo", {"beta": 2.0, "simpo_gamma": 1.0}, "CPO"),
}


def in_trl(case: InTRL, pairs: list[Pair], dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """TRL's loss of the pairs as one batch, and its derivatives by the policy's log-probs."""
    logps = to_logps(pairs, dtype)
    inputs = (logps.policy_chosen, logps.policy_rejected)
    if case.trainer == "DPO":
        loss = dpo_trainer(case, logps)
    else:
        per_token = case.loss_type in ("simpo", "ipo")
        lengths = (logps.chosen_tokens, logps.rejected_tokens) if per_token else (1, 1)
        loss = cpo_trainer(case, *(p / n for p, n in zip(inputs, lengths, strict=True)))
    slopes = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
    return loss.detach(), *slopes


def dpo_trainer(case: InTRL, logps: PairLogps) -> torch.Tensor:
    """The loss of ``DPOTrainer``, of a batch."""
    from trl import DPOTrainer

    kinds = case.loss_type if isinstance(case.loss_type, list) else [case.loss_type]
    lengths = torch.cat([logps.chosen_tokens, logps.rejected_tokens]).long()
    responses = torch.arange(int(lengths.max())) < lengths[:, None]
    per_token = torch.cat([logps.policy_chosen, logps.policy_rejected]) / lengths
    zeros = torch.zeros_like(responses, dtype=per_token.dtype)
    outputs = SimpleNamespace(
        log_probs=torch.where(responses, per_token[:, None], zeros),
        **dict.fromkeys(("entropy", "mean_logits"), zeros),
        is_top1=responses,
    )
    masks = torch.cat([torch.zeros(len(lengths), PROMPT, dtype=torch.bool), responses], dim=1)
    inputs = {
        **{name: torch.ones_like(masks, dtype=torch.long) for name in ("input_ids", "attention_mask")},
        "completion_mask": masks.long(),
        "ref_chosen_logps": logps.reference_chosen,
        "ref_rejected_logps": logps.reference_rejected,
    }
    settings: dict[str, Any] = {
        "beta": 0.1,
        "label_smoothing": 0.0,
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
        "loss_weights": [1.0] * len(kinds),
        **case.settings,
    }
    stand_in = SimpleNamespace(
        **settings,
        loss_types=kinds,
        args=SimpleNamespace(discopop_tau=settings.get("discopop_tau")),
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x),
        precompute_ref_logps=True,
        **dict.fromkeys(("aux_loss_enabled", "use_weighting"), False),
        ld_alpha=None,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    return DPOTrainer._compute_loss(stand_in, lambda **_: outputs, inputs, False)


def cpo_trainer(case: InTRL, chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """The preference term of ``CPOTrainer``, of a batch."""
    from trl.experimental.cpo import CPOTrainer

    settings = {"alpha": 0.0, "label_smoothing": 0.0, **case.settings}
    stand_in = SimpleNamespace(**settings, loss_type=case.loss_type, accelerator=SimpleNamespace(device="cpu"))
    return CPOTrainer.cpo_loss(stand_in, chosen, rejected)[0].mean()


def here(setting: str) -> bool:
    return (conf_dir() / "loss" / f"{setting.split()[0]}.yaml").exists()


@pytest.mark.parametrize("setting", [setting for setting in EQUAL if here(setting)])
def test_equal(setting: str) -> None:
    """Pair by pair."""
    loss, case = build_loss(setting), EQUAL[setting]
    for pair in PAIRS:
        ours = (loss(to_logps([pair])).loss.mean().detach(), *gradients(loss, to_logps([pair])))
        for got, wanted in zip(ours, in_trl(case, [pair]), strict=True):
            torch.testing.assert_close(got, wanted, rtol=case.digits, atol=1e-15)


def test_dpo_with_label_smoothing() -> None:
    """TRL's ``sigmoid`` had it, as conservative DPO; since 0.29 it reads label_smoothing for robust and EXO alone."""
    plain = in_trl(InTRL("sigmoid", {"beta": 0.1}), PAIRS)
    smoothed = in_trl(InTRL("sigmoid", {"beta": 0.1, "label_smoothing": 0.1}), PAIRS)
    assert smoothed[0] == plain[0]
    assert load("dpo", label_smoothing=0.1)(to_logps(PAIRS)).loss.mean() != plain[0]


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.9])
def test_f_dpo_with_an_alpha_divergence(alpha: float) -> None:
    """TRL's coefficient is 1 - alpha since 0.29; before, it was the paper's alpha, as here. It computes in float32."""
    case = InTRL("sigmoid", {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1 - alpha})
    loss = load("f_dpo", divergence="alpha", alpha=alpha)
    for pair in PAIRS:
        got = loss(to_logps([pair])).loss[0]
        torch.testing.assert_close(got, in_trl(case, [pair], torch.float32)[0].double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "case"), [("sft", InTRL("sft")), ("rpo", EQUAL["rpo beta=0.1 nll_weight=0.5"])])
def test_the_likelihood_of_a_batch(name: str, case: InTRL) -> None:
    """TRL's is the mean over all tokens of the batch, so that a long response counts more; here each counts once."""
    weight = 1.0 if name == "sft" else 0.5
    loss = load(name, **({} if name == "sft" else {"nll_weight": 0.5}))
    ours = loss(to_logps(PAIRS)).loss.mean()
    of_responses = sum(-p.pw / p.nw for p in PAIRS) / len(PAIRS)
    of_tokens = sum(-p.pw for p in PAIRS) / sum(p.nw for p in PAIRS)
    theirs = in_trl(case, PAIRS)[0]
    assert (theirs - ours).item() == pytest.approx(weight * (of_tokens - of_responses))
    assert abs(of_tokens - of_responses) > 0.1


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_slic(beta: float) -> None:
    """TRL's CPO trainer scales the hinge: ``relu(1 - beta gap)`` is beta times that of ``delta = 1 / beta``, no NLL."""
    ours = load("slic", delta=1 / beta, nll_weight=0.0)(to_logps(PAIRS)).loss.mean()
    torch.testing.assert_close(beta * ours.detach(), in_trl(InTRL("hinge", {"beta": beta}, "CPO"), PAIRS)[0])


def test_discopop_at_a_very_negative_margin() -> None:
    """TRL's exponential overflows where its weight is 0, and gives NaN: in float32 from a margin of -89 down."""
    far = [Pair(-3000.0, -20.0, -20.0, -20.0, 200, 5, 0, 0)]
    case = EQUAL["discopop beta=0.05 tau=0.05"]
    assert in_trl(case, far, torch.float32)[0].isnan()
    loss = load("discopop")
    assert loss(to_logps(far, torch.float32)).loss.item() == pytest.approx(149.0)
    assert gradients(loss, to_logps(far, torch.float32))[0].item() == pytest.approx(-0.05)


@pytest.mark.skipif(not here("orpo"), reason="there is no loss=orpo")
def test_orpo() -> None:
    """The odds' term is equal up to TRL's float32; TRL's likelihood is of prompt and response, ours of the response."""
    from trl.experimental.orpo import ORPOTrainer

    stand_in = SimpleNamespace(beta=0.1, accelerator=SimpleNamespace(device="cpu"))
    logps = to_logps(PAIRS)
    means = logps.policy_chosen / logps.chosen_tokens, logps.policy_rejected / logps.rejected_tokens
    odds = -ORPOTrainer.odds_ratio_loss(stand_in, *means)[0].double()
    ours = load("orpo", odds_weight=0.1)(logps).loss - means[0].neg()
    torch.testing.assert_close(ours, odds, rtol=1e-5, atol=1e-6)
