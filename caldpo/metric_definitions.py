"""The figures that are compared: logged name, title, unit, meaning, and whether more of it is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from caldpo.report.run_files import Curve


@dataclass(frozen=True)
class Quantity:
    """A logged metric, or the difference of two.

    Attributes:
        key: its logged name.
        title: as tables and axes show it.
        unit: of its values.
        meaning: one sentence for a reader who has not seen it before.
        better: the direction that is plainly better; None where there is none.
        minus: a second metric to subtract.
    """

    key: str
    title: str
    unit: str
    meaning: str
    better: Literal["higher", "lower"] | None = None
    minus: str | None = None

    def final(self, metrics: Mapping[str, float]) -> float | None:
        """Its value among final metrics, None where it was not logged."""
        if self.key not in metrics or (self.minus is not None and self.minus not in metrics):
            return None
        return metrics[self.key] - (metrics[self.minus] if self.minus else 0.0)

    def curve(self, curves: Mapping[str, Curve]) -> dict[int, float]:
        """Its values over optimiser steps, empty where it was not logged."""
        main = curves.get(self.key, {})
        if self.minus is None:
            return dict(sorted(main.items()))
        other = curves.get(self.minus, {})
        return {step: main[step] - other[step] for step in sorted(main) if step in other}


REWARD_UNIT = "reward_beta x nats"

CHOSEN = Quantity(
    "val/log_ratios/chosen",
    "chosen log-ratio",
    "nats",
    "log pi(chosen) - log pi_ref(chosen), summed over the response's tokens, mean over held-out pairs;"
    " below 0 the trained policy finds the preferred response less likely than the reference does",
)
REJECTED = Quantity("val/log_ratios/rejected", "rejected log-ratio", "nats", "the same of the rejected response")
MARGIN = Quantity(
    CHOSEN.key,
    "log-ratio margin",
    "nats",
    "chosen minus rejected log-ratio, in nats whatever the loss's beta",
    minus=REJECTED.key,
)
REWARD_CHOSEN = Quantity(
    "val/rewards/chosen",
    "chosen reward",
    REWARD_UNIT,
    "the implicit reward: reward_beta times the log-ratio, one reward_beta for all losses, whatever their own beta",
)
REWARD_REJECTED = Quantity(
    "val/rewards/rejected", "rejected reward", REWARD_UNIT, "the implicit reward of the rejected response"
)
REWARD_MARGIN = Quantity(
    "val/rewards/margins",
    "reward margin",
    REWARD_UNIT,
    "reward_beta times the log-ratio margin; the same unit for all losses, not that of each loss's own beta",
)
ACCURACY = Quantity(
    "val/rewards/accuracies",
    "accuracy",
    "share of pairs",
    "share of held-out pairs whose chosen response has the higher implicit reward, ties counted half",
    better="higher",
)
DISPLACEMENT = Quantity(
    "val/displacement",
    "displacement",
    "share of pairs",
    "share of held-out pairs whose chosen response became less likely than under the reference",
)
HELD_OUT = (CHOSEN, REJECTED, MARGIN, REWARD_MARGIN, ACCURACY, DISPLACEMENT)

TRUE_REWARD = Quantity(
    "oracle/reward",
    "true reward",
    "data's units",
    "mean true reward of one sample of the policy per held-out prompt",
    better="higher",
)
REFERENCE_REWARD = Quantity(
    "oracle/reference_reward",
    "reference's reward",
    "data's units",
    "the same of the reference, where training started",
)
WIN_RATE = Quantity(
    "oracle/win_rate",
    "win rate",
    "share of prompts",
    "share of held-out prompts on which the policy's sample has a higher true reward than the reference's,"
    " ties counted half",
    better="higher",
)
KL = Quantity(
    "oracle/kl",
    "KL to reference",
    "nats",
    "how far the policy moved: mean log-ratio of the policy's own samples, per sequence",
)
SLOPE = Quantity(
    "oracle/slope",
    "slope",
    "implicit per true reward",
    "slope of implicit (reward_beta x log-ratio) on true rewards of held-out responses, both centred within each"
    " prompt; 1 is the true scale, less is compressed",
)
PEARSON = Quantity(
    "oracle/pearson",
    "Pearson r",
    "-1 to 1",
    "correlation of implicit with true rewards of held-out responses, centred likewise",
    better="higher",
)
REWARD_ERROR = Quantity(
    "oracle/error",
    "reward error",
    "data's units",
    "mean absolute difference of implicit and true rewards of held-out responses, centred likewise",
    better="lower",
)
ORACLE = (TRUE_REWARD, REFERENCE_REWARD, WIN_RATE, KL, SLOPE, PEARSON, REWARD_ERROR)
