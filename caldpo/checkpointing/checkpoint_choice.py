"""What ``checkpoint=`` asks for, the same for every command that takes it. No heavy imports here."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from caldpo.config.bounds import NonNegativeInt
from caldpo.errors import CaldpoError

_STEP = r"(?:step-)?([0-9]{1,18})"
StepName = Annotated[str, Field(pattern=r"\A(?:step-)?[0-9]{1,18}\Z", description="a step as step-40")]
CheckpointName = Literal["final", "last"] | NonNegativeInt | StepName


def wanted_checkpoint(said: int | str) -> Literal["final", "last"] | int:
    """``final``, ``last``, or the optimiser step that a number or ``step-40`` names.

    Raises:
        CaldpoError: it is none of them.
    """
    if said == "final" or said == "last":
        return "final" if said == "final" else "last"
    found = re.fullmatch(_STEP, str(said))
    if found is None:
        raise CaldpoError("must be final, last or an optimiser step (40 or step-40)", key="checkpoint", value=said)
    return int(found[1])
