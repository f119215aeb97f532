"""Pairs that the policy samples itself while it is trained, scored by a reward: what ``rollouts=`` chooses.

Two samples ``y1, y2`` of the current policy for each prompt of an optimiser step, with rewards ``r1, r2``, are a pair
like any other, and any loss trains on it: ``loss=dpo`` is then online DPO, ``loss=rebel`` is RLOO. At samples of the
policy itself REBEL's loss ``(beta d - dr)^2``, ``d`` the difference of their log-ratios and ``dr = r1 - r2``, has the
gradient ``2 beta (beta d - dr) grad d = -2 beta (R1 - R2) (grad log pi(y1) - grad log pi(y2))`` with the rewards
``R = r - beta log(pi / pi_ref)``. RLOO with two samples (Ahmadian et al. 2024, "Back to Basics", arXiv 2402.14740)
descends ``-1/2 sum_i (R_i - R_other) log pi(y_i)``, whose gradient is ``-1/2 (R1 - R2) (grad log pi(y1) - grad log
pi(y2))``: the same up to the factor ``4 beta``. Each batch is sampled anew and used for one update.
"""
