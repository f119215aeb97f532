"""Settle whether the rows of each split are pairs or unpaired, and whether the loss takes them."""

from __future__ import annotations

import numpy as np

from caldpo.data.stored_pairs import StoredPairs
from caldpo.errors import CaldpoError
from caldpo.losses.declared import losses_taking_unpaired
from caldpo.utils.text_format import counted


def is_unpaired(pairs: StoredPairs, key: str) -> bool:
    """Whether the rows of a split have one response and a label; all have, or none.

    Args:
        pairs: of the split.
        key: that names its data.

    Raises:
        CaldpoError: both kinds occur. In a mean over rows, a pair would count like one response.
    """
    labelled = pairs.labels() >= 0
    if labelled.all() or not labelled.any():
        return bool(len(pairs)) and bool(labelled.all())
    pair, single = int(np.flatnonzero(~labelled)[0]), int(np.flatnonzero(labelled)[0])
    raise CaldpoError(
        f"has both pairs ({pairs.origin(pair)}) and rows with one response and a label ({pairs.origin(single)}):"
        f" {labelled.sum():,} of {counted(len(pairs), 'row')} are of the second kind",
        key=key,
        remedy="name data of one kind; data.unpair=true takes the pairs of data.train apart into such rows",
    )


def refuse_unpaired(pairs: StoredPairs, key: str, loss_name: str) -> None:
    """Refuse unpaired rows for a loss that compares the two responses of a pair.

    Raises:
        CaldpoError: naming the loss, the first row, and the losses that take such rows.
    """
    raise CaldpoError(
        f"needs pairs, and {counted(len(pairs), 'row')} of {key} have one response and a label, first"
        f" {pairs.origin(0)}",
        key="loss",
        value=loss_name,
        remedy=f"{_usable(loss_name)}name data with chosen and rejected",
    )


def refuse_unpair(loss_name: str) -> None:
    """Refuse to take pairs apart for a loss that compares the two responses of a pair.

    Raises:
        CaldpoError: naming the loss, and those that take unpaired rows.
    """
    raise CaldpoError(
        f"takes pairs apart, which loss={loss_name} needs",
        key="data.unpair",
        value=True,
        remedy=f"{_usable(loss_name)}set data.unpair=false",
    )


def _usable(loss_name: str) -> str:
    names = losses_taking_unpaired()
    if loss_name in names:  # by itself it takes them: what is around it compares the two responses of a pair
        return "leave out rollouts, and modifiers that compare the two responses of a pair (modifier=[]), or "
    return f"use loss={', '.join(names[:-1]) + ' or ' if names[1:] else ''}{names[-1]}, or " if names else ""
