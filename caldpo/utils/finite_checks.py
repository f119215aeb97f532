"""Find tensors that are not finite, and report rows whose values are not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from caldpo.errors import CaldpoError

MAX_NAMED = 5  # rows, or parameters, that a message names
REMEDY = "take an earlier checkpoint; to train again, lower optim.lr, raise loss.beta, or use trainer.precision=32-true"


class NonFiniteError(CaldpoError):
    """A run met values that are not finite: what its settings did, not a mistake in them."""


def nonfinite_names(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Name the tensors with a non-finite entry, as far as this rank has them; one transfer from the device."""
    named = [(name, tensor.to_local() if isinstance(tensor, DTensor) else tensor) for name, tensor in tensors]
    if not named:
        return []
    finite = torch.stack([tensor.isfinite().all() for _, tensor in named]).tolist()
    return [name for (name, _), is_finite in zip(named, finite, strict=True) if not is_finite]


def first_names(names: Sequence[str], count: int) -> str:
    """List the first names, and how many more there are of ``count``."""
    more = count - len(names[:MAX_NAMED])
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def not_finite_error(what: str, bad: Sequence[str], count: int, kind: str) -> CaldpoError:
    """Make the error of rows whose values are not finite: ``bad`` ones, by where they come from, among ``count``.

    ``what`` names the values (``run at step 4: the policy's log-probs``), ``kind`` the rows, in the plural.
    """
    return NonFiniteError(
        f"{what} are not finite: {len(bad)} of {count} {kind}, {first_names(bad, len(bad))}", remedy=REMEDY
    )
