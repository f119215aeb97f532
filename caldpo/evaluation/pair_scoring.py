"""Compute log-probs of any number of responses by a model, with a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from caldpo.data.collate import collate
from caldpo.data.pair import TokenizedPair
from caldpo.errors import CaldpoError
from caldpo.logprobs import LogprobEngine
from caldpo.models.model_forward import NonFiniteLogitsError, evaluating
from caldpo.utils.delayed_progress import DelayedProgress
from caldpo.utils.finite_checks import not_finite_error


def score_pairs(
    model: PreTrainedModel,
    pairs: Sequence[TokenizedPair],
    *,
    pad_id: int,
    batch: int,
    label: str,
    context: Callable[[], AbstractContextManager[object]],
    whose: str = "the model's",
) -> NDArray[np.float64]:
    """Sum the log-probs of both responses of each pair, nats, shape ``(2, pairs)``: chosen, then rejected.

    Args:
        model: on its device; put into evaluation mode meanwhile.
        pairs: ``chosen`` and ``rejected`` may be any two responses to a prompt.
        pad_id: token of the padding.
        batch: largest number of responses in a forward pass; those of similar length go together.
        label: of the progress bar.
        context: opened around each forward pass; sets its precision.
        whose: owner of the log-probs, for an error.

    Raises:
        CaldpoError: log-probs are not finite, naming the pairs.
    """
    scores = np.zeros((2, len(pairs)))
    size = max(1, batch // 2)
    lengths = [len(p.prompt_ids) + max(len(p.chosen_ids), len(p.rejected_ids)) for p in pairs]
    order = np.argsort(lengths, kind="stable")[::-1]  # the longest first: memory runs out at once or not at all
    engine = LogprobEngine(model)
    with evaluating(model), DelayedProgress(label, len(pairs)) as bar:
        for start in range(0, len(pairs), size):
            indices = order[start : start + size]
            rows = collate([pairs[int(i)] for i in indices], pad_id).to(model.device)
            try:
                with context():
                    chosen, rejected = engine(rows)
            except NonFiniteLogitsError as error:  # raised by the first batch, which tests the output head
                raise CaldpoError(f"{whose}: {error.message}", remedy=error.remedy) from error
            scores[:, indices] = torch.stack([chosen, rejected]).double().cpu().numpy()
            bar.advance(len(indices))
    bad = [pairs[int(i)] for i in np.flatnonzero(~np.isfinite(scores).all(axis=0))]
    if bad:
        origins = [pair.origin or f"{label} {pair.index + 1}" for pair in bad]
        raise not_finite_error(f"{whose} log-probs", origins, len(pairs), "pairs")
    return scores
