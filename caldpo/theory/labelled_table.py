"""Labels of a tabular environment in their exact proportions: as many as any loss could ask for.

Every ordered pair of different responses of a prompt is drawn as often as its probability says, so that there is no
sampling noise, and a loss that reads the whole step sees plain rows. All responses have one token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from caldpo.environments.tabular_environment import Table, apportion, pair_probabilities
from caldpo.types import PairLogps

ROWS_PER_PROMPT = 2048


@dataclass(frozen=True)
class LabelledRows:
    """Rows of labelled responses, each as likely; a row of one response repeats it as the absent one."""

    prompt: Int[Tensor, " rows"]
    chosen: Int[Tensor, " rows"]
    rejected: Int[Tensor, " rows"]
    chosen_present: Float[Tensor, " rows"] | None = None
    rejected_present: Float[Tensor, " rows"] | None = None

    def mismatched(self) -> LabelledRows:
        """The same prompts, each with the responses of a row of the next prompt."""
        chosen, rejected = self.chosen.roll(ROWS_PER_PROMPT), self.rejected.roll(ROWS_PER_PROMPT)
        return replace(self, chosen=chosen, rejected=rejected)

    def logps(self, policy: Table, reference: Table, scores: Table) -> PairLogps:
        """The rows' log-probs under tables of log-probs, nats, with their scores."""

        def of(table: Table, response: Tensor) -> Tensor:
            return table[self.prompt, response]

        one = torch.ones(len(self.prompt), dtype=policy.dtype)
        return PairLogps(
            of(policy, self.chosen),
            of(policy, self.rejected),
            of(reference, self.chosen),
            of(reference, self.rejected),
            one,
            one,
            of(scores, self.chosen),
            of(scores, self.rejected),
            chosen_present=self.chosen_present,
            rejected_present=self.rejected_present,
        )


def paired_rows(rewards: Table, sharpness: float | None) -> LabelledRows:
    """All ordered pairs of different responses, uniformly proposed, labelled by Bradley-Terry.

    Args:
        rewards: true rewards.
        sharpness: P(first is chosen) = sigmoid(sharpness x reward gap); None always prefers the better one.
    """
    uniform = torch.ones(rewards.shape[1])
    prompt, chosen, rejected = _in_proportion([pair_probabilities(uniform, row, sharpness) for row in rewards])
    return LabelledRows(prompt, chosen, rejected)


def single_rows(rewards: Table, sharpness: float) -> LabelledRows:
    """All responses, uniformly proposed, labelled good with probability ``sigmoid(sharpness r)``, else bad."""
    good = torch.sigmoid(sharpness * rewards)
    prompt, response, bad = _in_proportion(list(torch.stack([good, 1 - good], dim=2) / rewards.shape[1]))
    return LabelledRows(prompt, response, response, 1.0 - bad, bad.double())


def _in_proportion(probabilities: Sequence[Float[Tensor, "one other"]]) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts and the two indices of cells, each cell as often as its share of :data:`ROWS_PER_PROMPT`."""
    rows = []
    for x, table in enumerate(probabilities):
        counts = apportion(table, ROWS_PER_PROMPT)
        cells = counts.nonzero().repeat_interleave(counts[counts > 0], dim=0)
        rows.append(torch.cat([torch.full((len(cells), 1), x), cells], dim=1))
    prompt, one, other = torch.cat(rows).T
    return prompt, one, other
