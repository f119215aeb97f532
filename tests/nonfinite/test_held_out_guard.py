"""Non-finite values in evaluations and samples are located as those of training are."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch

from caldpo.callbacks.callback_base import RunCallback
from caldpo.callbacks.sample_table import SampleTable
from caldpo.callbacks.true_reward import OracleEvaluation
from caldpo.data.pair import TokenizedPair
from caldpo.errors import CaldpoError
from caldpo.evaluation.pair_scoring import score_pairs
from caldpo.losses.cal_dpo import CalDPO
from caldpo.nonfinite.guard import NonFiniteGuard
from caldpo.types import LossOutput, PairLogps
from tests.callbacks.oracle_data import OracleData, fit, make_module, reward
from tests.helpers.messages import holds, names, refused
from tests.helpers.tiny import tiny_model, tiny_pairs
from tests.nonfinite.spoiled_runs import PairsWithOrigins

SAMPLES: dict[str, Any] = {"max_new_tokens": 4, "temperature": 1.0, "seed": 0}


class Data(PairsWithOrigins, OracleData):
    """Held-out prompts, and pairs that know where they come from."""


class Spoil(pl.Callback):
    """Right after the update of a step, before what is evaluated there, makes a weight this value."""

    def __init__(self, step: int, value: float = float("nan")) -> None:
        self.step, self.value = step, value

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            with torch.no_grad():
                module.policy.model.norm.weight[0] = self.value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_weights_that_diverged_right_before_an_evaluation_with_samples(tmp_path: Path, value: float) -> None:
    module = make_module()
    with pytest.raises(CaldpoError) as stopped:
        fit(
            module,
            Data(reward),
            tmp_path,
            SampleTable(3, **SAMPLES),
            Spoil(2, value),
            max_steps=4,
            val_check_interval=2,
        )
    message = str(stopped.value)
    names(stopped, "held-out", 2, "of 48 pairs", "policy's log-prob", "chosen", "test.jsonl:1", remedy="optim.lr")
    assert holds(message, "model.norm.weight") == (value != 3e38)  # whose weights are not finite
    with pytest.raises(CaldpoError):
        module.require_good_weights()  # such weights are not saved
    steps = pd.read_csv(tmp_path / "metrics.csv")
    assert steps["step"].max() <= 2
    assert steps.loc[steps["step"] == 2, "val/loss"].isna().all()


def test_a_learning_rate_that_overflows_the_weights(tmp_path: Path) -> None:
    """Loss and gradients of the first step are fine, and the weights after it are beyond float32's products."""
    module = make_module()
    module.optim.lr = 1e30
    with refused("held-out", 1, "of 48 pairs", remedy="optim.lr"):
        fit(module, Data(reward), tmp_path, SampleTable(3, **SAMPLES), max_steps=4, val_check_interval=1)


class Bad(CalDPO):
    """A calibration term that is infinite where the chosen response has this many tokens, in evaluation alone."""

    def forward(self, logps: PairLogps) -> LossOutput:
        output = super().forward(logps)
        if torch.is_grad_enabled():
            return output
        bad = torch.where(logps.chosen_tokens == 3, torch.inf, 0.0)
        return LossOutput(output.loss + bad, {**output.terms, "calibration": output.terms["calibration"] + bad})


@pytest.mark.parametrize("skips", [False, True])
def test_a_single_row_stops_a_run_unless_it_skips(
    tmp_path: Path, skips: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Data(None)
    bad = [f"test.jsonl:{p.index + 1}" for p in data.test_pairs[:] if len(p.chosen_ids) == 3]
    module = make_module()
    module.loss = Bad(beta=0.5)
    module.nonfinite = NonFiniteGuard("skip" if skips else "stop")
    with nullcontext() if skips else pytest.raises(CaldpoError) as stopped:
        fit(module, data, tmp_path, max_steps=1, val_check_interval=1)
    message = capsys.readouterr().out if skips else str(stopped.value)
    names(message, "held-out", 0, f"{len(bad)} of 48 pairs", "terms/calibration", bad[0])


def test_final_samples_are_checked(tmp_path: Path) -> None:
    """The held-out pairs do not hold the token whose embedding is bad, and one of the prompts would be sampled on."""

    class SpoilEnd(RunCallback):
        def on_trained(self, trainer: pl.Trainer, module: Any) -> None:
            with torch.no_grad():
                module.policy.lm_head.weight[9] = float("nan")

    module = make_module()
    facts = ("policy's logits", "sampling", 1, "4 of 4 prompts", "prompt 1", "prompt 2")
    with refused(*facts, remedy="optim.lr"):
        fit(module, Data(reward), tmp_path, SpoilEnd(), OracleEvaluation(4, 4), max_steps=1)


def test_nonfinite_log_probs_of_an_evaluation_name_run_and_rows() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = float("nan")
    pairs = [p for p in tiny_pairs(30) if 7 not in p.prompt_ids + p.chosen_ids + p.rejected_ids][:5]
    named = [
        TokenizedPair(p.prompt_ids, p.chosen_ids, p.rejected_ids, None, None, i, f"t:{i}") for i, p in enumerate(pairs)
    ]
    keys: dict[str, Any] = {"pad_id": 0, "batch": 4, "label": "policy", "context": nullcontext}
    assert score_pairs(model, named, **keys).shape == (2, 5)
    named[3] = TokenizedPair([7], named[3].chosen_ids, named[3].rejected_ids, None, None, 3, "t:3")
    with refused("run at step 4: the policy's log-probs", "1 of 5 pairs", "t:3", remedy="optim.lr"):
        score_pairs(model, named, **keys, whose="run at step 4: the policy's")
