"""Define every logged metric once: name, title, unit, meaning, and which direction is better. No heavy imports.

A name is the logged one (a column of ``metrics.csv``). Metrics of pairs and of the loss are logged at each optimiser
step under the name itself, and for held-out pairs under ``val/`` + name. ``terms/*`` and ``diagnostics/*`` stand for
whatever a loss adds. Suites of evaluation take what they share with these from here, by
:attr:`MetricDefinition.measure_fields`; a suite's own measures are defined in its own file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

HELD_OUT = "val/"  # prefix of metrics of held-out pairs
Direction = Literal["higher", "lower"]


@dataclass(frozen=True)
class MetricDefinition:
    """A logged metric, or the difference of two.

    Where no direction is plainly better a search may still have one: a larger margin is no success by itself, but a
    search for the smallest is a mistake.
    """

    name: str  # as it is logged; terms/* for every name that begins with terms/
    title: str  # as tables and axes show it
    unit: str
    meaning: str  # one sentence for a reader who has not seen it before
    better: Direction | None = None
    optimize: Direction | None = None  # of a search
    minus: str | None = None  # a second metric to subtract

    @property
    def direction(self) -> Direction | None:
        """The only direction in which a search may optimise it; None allows both."""
        return self.better or self.optimize

    @property
    def mode(self) -> Literal["min", "max"] | None:
        """The direction as Lightning's callbacks name it."""
        return None if self.direction is None else "min" if self.direction == "lower" else "max"

    @property
    def held_out(self) -> MetricDefinition:
        """The same metric of held-out pairs, under ``val/``."""
        return replace(self, name=f"{HELD_OUT}{self.name}", minus=self.minus and f"{HELD_OUT}{self.minus}")

    @property
    def measure_fields(self) -> dict[str, Any]:
        """Title, unit, meaning and better: what a measure of an evaluation suite shares with it."""
        return {"title": self.title, "unit": self.unit, "meaning": self.meaning, "better": self.better}

    def final(self, metrics: Mapping[str, float]) -> float | None:
        """Return the value among final metrics, None where it was not logged."""
        if self.name not in metrics or (self.minus is not None and self.minus not in metrics):
            return None
        return metrics[self.name] - (metrics[self.minus] if self.minus else 0.0)

    def curve(self, curves: Mapping[str, Mapping[int, float]]) -> dict[int, float]:
        """Return the values over optimiser steps, empty where it was not logged."""
        main = curves.get(self.name, {})
        if self.minus is None:
            return dict(sorted(main.items()))
        other = dict(curves.get(self.minus, {}).items())  # a look-up in a logged curve is a search
        return {step: value - other[step] for step, value in sorted(main.items()) if step in other}


Metric = MetricDefinition
REWARD_UNIT = "reward_beta x nats"

# ---- of every pair, in training and held out

CHOSEN_LOGP = Metric(
    "logps/chosen",
    "chosen log-prob",
    "nats",
    "log pi(chosen), summed over the response's tokens, mean over pairs",
    optimize="higher",
)
REJECTED_LOGP = Metric("logps/rejected", "rejected log-prob", "nats", "the same of the rejected response")
WITHOUT_REFERENCE = (CHOSEN_LOGP, REJECTED_LOGP)

# ---- of pairs with reference log-probs: held out always, in training where the loss reads the reference

CHOSEN_LOG_RATIO = Metric(
    "log_ratios/chosen",
    "chosen log-ratio",
    "nats",
    "log pi(chosen) - log pi_ref(chosen), summed over the response's tokens, mean over pairs; below 0 the trained"
    " policy finds the preferred response less likely than the reference does",
    optimize="higher",
)
REJECTED_LOG_RATIO = Metric("log_ratios/rejected", "rejected log-ratio", "nats", "the same of the rejected response")
CHOSEN_REWARD = Metric(
    "rewards/chosen",
    "chosen reward",
    REWARD_UNIT,
    "implicit reward: reward_beta times the log-ratio, one reward_beta for all losses, whatever their own beta",
    optimize="higher",
)
REJECTED_REWARD = Metric(
    "rewards/rejected", "rejected reward", REWARD_UNIT, "the implicit reward of the rejected response"
)
REWARD_MARGIN = Metric(
    "rewards/margins",
    "reward margin",
    REWARD_UNIT,
    "reward_beta times the log-ratio margin; the same unit for all losses, not that of each loss's own beta",
    optimize="higher",
)
ACCURACY = Metric(
    "rewards/accuracies",
    "accuracy",
    "share of pairs",
    "share of pairs whose chosen response has the higher implicit reward, ties counted half",
    better="higher",
)
DISPLACEMENT = Metric(
    "displacement",
    "displacement",
    "share of pairs",
    "share of pairs whose chosen response became less likely than under the reference",
    optimize="lower",
)
WITH_REFERENCE = (
    *(CHOSEN_LOG_RATIO, REJECTED_LOG_RATIO),
    *(CHOSEN_REWARD, REJECTED_REWARD, REWARD_MARGIN),
    *(ACCURACY, DISPLACEMENT),
)

# ---- of the loss, in training and held out

LOSS = Metric(
    "loss",
    "loss",
    "the loss's own",
    "mean over pairs of the loss that is trained; comparable only among runs of one loss with equal settings",
    optimize="lower",
)
TERM = Metric(
    "terms/*",
    "loss term",
    "the loss's own",
    "one of the terms that add up to the loss, mean over pairs",
    optimize="lower",
)
DIAGNOSTIC = Metric(
    "diagnostics/*",
    "diagnostic",
    "the loss's own",
    "an intermediate value of the loss, mean over pairs (f_dpo's clamped: share of pairs whose log-ratio was clamped)",
)
OF_LOSS = (TERM, DIAGNOSTIC)

# ---- of an optimiser step

STEP_METRICS = (
    Metric("grad_norm", "gradient norm", "L2 norm", "norm of the gradient of all trained weights, before clipping"),
    Metric(
        "clip_fraction",
        "clipped steps",
        "share of steps",
        "share of the optimiser steps so far whose gradient was clipped to trainer.gradient_clip_val",
    ),
    Metric("lr", "learning rate", "1", "learning rate of the update"),
    Metric(
        "tokens_per_second",
        "throughput",
        "response tokens per second",
        "response tokens of real pairs, over all ranks, by wall-clock time since the metrics were last fetched",
        better="higher",
    ),
)
SKIPPED_STEPS = Metric(
    "skipped_steps",
    "skipped steps",
    "steps",
    "optimiser steps so far that were skipped because loss or gradient was not finite; logged where steps may be"
    " skipped (trainer.on_nonfinite=skip, float16)",
)

# ---- of samples of the trained policy, where the true reward is known

TRUE_REWARD = Metric(
    "oracle/reward",
    "true reward",
    "data's units",
    "mean true reward of one sample of the policy per held-out prompt",
    better="higher",
)
REFERENCE_REWARD = Metric(
    "oracle/reference_reward",
    "reference's reward",
    "data's units",
    "the same of the reference, where training started",
)
WIN_RATE = Metric(
    "oracle/win_rate",
    "win rate",
    "share of prompts",
    "share of held-out prompts on which the policy's sample has a higher true reward than the reference's,"
    " ties counted half",
    better="higher",
)
KL = Metric(
    "oracle/kl",
    "KL to reference",
    "nats",
    "how far the policy moved: mean log-ratio of the policy's own samples, per sequence",
    optimize="lower",
)
SAMPLED = (TRUE_REWARD, REFERENCE_REWARD, WIN_RATE, KL)

# ---- of held-out responses whose true rewards are known: caldpo.environments.reward_agreement

SLOPE = Metric(
    "oracle/slope",
    "slope",
    "implicit per true reward",
    "slope of implicit (reward_beta x log-ratio) on true rewards of held-out responses, both centred within each"
    " prompt; 1 is the true scale, less is compressed",
)
PEARSON = Metric(
    "oracle/pearson",
    "Pearson r",
    "-1 to 1",
    "correlation of implicit with true rewards of held-out responses, centred likewise",
    better="higher",
)
SPEARMAN = Metric("oracle/spearman", "Spearman rho", "-1 to 1", "rank correlation of the same", better="higher")
REWARD_ERROR = Metric(
    "oracle/error",
    "reward error",
    "data's units",
    "mean absolute difference of implicit and true rewards of held-out responses, centred likewise",
    better="lower",
)
AGREEMENT = (SLOPE, PEARSON, SPEARMAN, REWARD_ERROR)

# ---- where the optimum is known, too: sums over the whole distribution, without sampling (tabular environment)

EXACT = (
    Metric("oracle/exact_reward", "exact true reward", "data's units", "expected true reward of the policy", "higher"),
    Metric(
        "oracle/exact_kl", "exact KL to reference", "nats", "KL(policy || reference), mean over prompts", None, "lower"
    ),
    Metric(
        "oracle/objective",
        "objective",
        "data's units",
        "expected true reward less beta times KL(policy || reference), beta being data.source.objective_beta or else"
        " the loss's own",
    ),
    Metric(
        "oracle/objective_optimum",
        "objective of the optimum",
        "data's units",
        "the largest value that the objective can have, which the optimal policy pi* reaches",
    ),
    Metric("oracle/kl_to_optimum", "KL to the optimum", "nats", "KL(policy || pi*)", None, "lower"),
    Metric("oracle/kl_from_optimum", "KL from the optimum", "nats", "KL(pi* || policy)", None, "lower"),
    Metric(
        "oracle/regret",
        "regret",
        "data's units",
        "by how much the objective falls short of that of the optimum: beta times KL(policy || pi*)",
        None,
        "lower",
    ),
)

# ---- of samples of the reference, the best of n per prompt: caldpo.callbacks.best_of_n

BEST_OF_N = (
    Metric(
        "best_of_n/reward",
        "best-of-n reward",
        "data's units",
        "mean true reward of the best of n samples of the reference per held-out prompt, picked by the true reward",
        better="higher",
    ),
    Metric(
        "best_of_n/implicit_pick_reward",
        "reward of the policy's pick",
        "data's units",
        "mean true reward of the sample, of the same n, to which the trained policy gives the highest log-ratio",
        better="higher",
    ),
    Metric(
        "best_of_n/kl_bound",
        "KL bound of best-of-n",
        "nats",
        "log n - (n - 1) / n: best-of-n is at most so far from the reference",
    ),
)

# ---- of the policy's own samples that a step trains on (rollouts=)

ROLLOUT_REWARD = Metric(
    "rollouts/reward",
    "reward of rollouts",
    "reward's units",
    "mean reward of the samples that the step trains on: the true one, or that of the fitted reward model",
    optimize="higher",
)
ROLLOUT_EQUAL = Metric(
    "rollouts/equal",
    "equal rollouts",
    "share of prompts",
    "share of the step's prompts whose two samples are the same response, which teaches nothing",
)
ROLLOUT_UNFINISHED = Metric(
    "rollouts/unfinished",
    "unfinished rollouts",
    "share of samples",
    "share of the step's samples that were cut at rollouts.max_new_tokens",
)
ROLLOUTS = (ROLLOUT_REWARD, ROLLOUT_EQUAL, ROLLOUT_UNFINISHED)

DEFINITIONS = (
    *(LOSS, *OF_LOSS, *WITHOUT_REFERENCE, *WITH_REFERENCE),
    *(*STEP_METRICS, SKIPPED_STEPS, *ROLLOUTS),
    *(*SAMPLED, *BEST_OF_N, *AGREEMENT, *EXACT),
)
_BY_NAME = {metric.name: metric for metric in DEFINITIONS}

# ---- differences of logged metrics, which tables and figures show beside them

LOG_RATIO_MARGIN = Metric(
    CHOSEN_LOG_RATIO.name,
    "log-ratio margin",
    "nats",
    "chosen minus rejected log-ratio, in nats whatever the loss's beta",
    minus=REJECTED_LOG_RATIO.name,
)


def definition_of(name: str) -> MetricDefinition | None:
    """Find the definition of a logged name, ``val/`` or not; None where no metric of that name is defined.

    Every term and every diagnostic of a loss has the definition of ``terms/*`` or ``diagnostics/*``.
    """
    name = name.removeprefix(HELD_OUT)
    group, slash, _ = name.partition("/")
    return _BY_NAME.get(name) or _BY_NAME.get(f"{group}{slash}*")
