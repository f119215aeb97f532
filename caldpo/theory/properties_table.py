"""The table of measured properties as a page."""

from __future__ import annotations

import pandas as pd

from caldpo.report.escaping import code
from caldpo.report.table_cells import NONE, markdown_table
from caldpo.theory.measured_properties import DIRECTIONS, ENVIRONMENT, LONGER, SHIFT

GROWS = 1.5  # times: above it a fit to labels without noise is still going on
EXACT = 1e-3  # nats: a KL below it is none

HEADERS = (
    "loss",
    "rejected gradient (share)",
    "log-ratios without label noise: chosen, rejected",
    "bounded (gap x)",
    "slope of implicit on true reward",
    "KL to optimum",
    "KL to nearest tilt (tau)",
    "restricted: excess KL to, from optimum",
    "shifted scores: KL",
    "shifted single labels: KL more",
)


def cells(row: pd.Series) -> list[str]:
    """Format the row of a loss, in the order of ``HEADERS``."""
    growth = row.gap_growth
    return [
        code(row["loss"]),
        f"{row.rejected_gradient:+.2g} ({row.rejected_share:.0%})",
        f"{row.chosen_log_ratio:+.2f}, {row.rejected_log_ratio:+.2f}",
        f"{'no' if growth > GROWS else 'yes'} ({growth:.2f})",
        _optional(row.slope, ".2f"),
        _kl(row.kl_to_optimum),
        f"{_kl(row.kl_to_tilt)} ({row.tau:.2g})",
        f"{row.seeking:.3f}, {row.covering:.3f}: {'seeking' if row.seeking < row.covering else 'covering'}",
        _kl(row.shift_pairs),
        _optional(row.shift_single, "+.3f"),
    ]


def page(table: pd.DataFrame, beta: float, steps: int, seconds: float) -> str:
    """Write the table with what its columns mean."""
    rows = markdown_table(HEADERS, [cells(row) for _, row in table.iterrows()])
    e = ENVIRONMENT
    return f"""# Properties of the losses, measured

```sh
python -m caldpo.properties{"" if beta == 1 else f" beta={beta:g}"}
```

{e.prompts} prompts x {e.responses} responses of one token, rewards of unit variance, every ordered pair in its exact
proportion; beta {beta:g} for every loss that has one, other keys as in its yaml; {steps} full-batch steps of Adam in
float64, {seconds:.0f} s in all. Nats and units of reward.

{rows}

- **rejected gradient**: derivative of the loss by the log-prob of a rejected response at policy = reference; positive
  pushes it down. In brackets its share of both sides.
- **log-ratios without label noise**: means over the pairs, where the better response is always the chosen one.
- **bounded**: whether their gap stops; in brackets the gap after {LONGER} times as many steps over that after {steps}.
- **slope**: of the loss's own implicit reward on the true reward, Bradley-Terry labels; 1 is calibrated. Empty: its
  derivation has no implicit reward.
- **KL to optimum**: KL(policy || pi*), pi* = pi_ref exp(r), from Bradley-Terry labels without sampling noise.
- **KL to nearest tilt**: the same to the nearest pi_ref exp(r / tau), for losses whose scale is another.
- **restricted**: policies with {DIRECTIONS} directions. KL(policy || pi*) and KL(pi* || policy), each less the least
  that such a policy can have.
- **shifted scores**: a normal shift of standard deviation {SHIFT:g} of all scores of a prompt, same labels: KL from the
  policy without it.
- **shifted single labels**: single responses labelled good with probability sigmoid(r + shift): by how much KL to the
  optimum grows. Empty: the loss needs pairs.
"""


def _kl(value: float) -> str:
    return f"{value:.3f}" if value >= EXACT else "0"


def _optional(value: float | None, form: str) -> str:
    return NONE if value is None or pd.isna(value) else format(value, form)
