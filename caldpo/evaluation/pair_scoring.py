"""Log-probs of responses by a model, for any number of them, with a progress bar."""

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
    """Summed log-probs of both responses of each pair, nats, shape ``(2, pairs)``: chosen, then rejected.

    Pairs of like length go through the model together; the order of the answer is that of ``pairs``.

    Args:
        model: on its device; it is in evaluation mode meanwhile.
        pairs: of any kind: ``chosen`` and ``rejected`` are two responses to a prompt.
        pad_id: what fills the padding.
        batch: responses of a forward pass.
        label: of the progress bar.
        context: of the forward passes, which settles their precision.
        whose: log-probs they are, for an error.

    Raises:
        CaldpoError: log-probs are not finite, naming the pairs.
    """
    found = np.zeros((2, len(pairs)))
    size = max(1, batch // 2)
    lengths = [len(p.prompt_ids) + max(len(p.chosen_ids), len(p.rejected_ids)) for p in pairs]
    order = np.argsort(lengths, kind="stable")[::-1]  # the longest first: memory runs out at once or not at all
    engine = LogprobEngine(model)
    with evaluating(model), DelayedProgress(label, len(pairs)) as bar:
        for start in range(0, len(pairs), size):
            places = order[start : start + size]
            rows = collate([pairs[int(i)] for i in places], pad_id).to(model.device)
            try:
                with context():
                    chosen, rejected = engine(rows)
            except NonFiniteLogitsError as error:  # the output head is looked at with the first batch
                raise CaldpoError(f"{whose}: {error.message}", remedy=error.remedy) from error
            found[:, places] = torch.stack([chosen, rejected]).double().cpu().numpy()
            bar.advance(len(places))
    bad = np.flatnonzero(~np.isfinite(found).all(axis=0))
    if len(bad):
        named = [pairs[int(i)] for i in bad]
        origins = [pair.origin or f"{label} {pair.index + 1}" for pair in named]
        raise not_finite_error(f"{whose} log-probs", origins, len(pairs), "pairs")
    return found
