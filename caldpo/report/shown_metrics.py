"""Choose the metrics that tables and figures of a comparison show."""

from __future__ import annotations

from caldpo import metric_definitions as m

CHOSEN = m.CHOSEN_LOG_RATIO.held_out
REJECTED = m.REJECTED_LOG_RATIO.held_out
MARGIN = m.LOG_RATIO_MARGIN.held_out
CHOSEN_REWARD = m.CHOSEN_REWARD.held_out
REJECTED_REWARD = m.REJECTED_REWARD.held_out
REWARD_MARGIN = m.REWARD_MARGIN.held_out
ACCURACY = m.ACCURACY.held_out
DISPLACEMENT = m.DISPLACEMENT.held_out

HELD_OUT = (CHOSEN, REJECTED, MARGIN, REWARD_MARGIN, ACCURACY, DISPLACEMENT)
ORACLE = (m.TRUE_REWARD, m.REFERENCE_REWARD, m.WIN_RATE, m.KL, m.SLOPE, m.PEARSON, m.REWARD_ERROR)
CONSOLE = (CHOSEN, REJECTED, ACCURACY, m.TRUE_REWARD, m.WIN_RATE, m.KL)


def is_drawn(name: str) -> bool:
    """Tell whether figures draw a logged metric over steps, and not its final value alone."""
    return name.startswith(m.HELD_OUT)
