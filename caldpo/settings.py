"""The plain top-level keys of a training run; this signature is their schema. No heavy imports here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from caldpo.config.bounds import FolderName, NonNegativeInt, Positive
from caldpo.config.signature import validated


@validated
@dataclass(frozen=True)
class RunSettings:
    """What a run is called and how it is seeded and scaled.

    Args:
        name: first part of the output folder's name.
        seed: of the order of the data, and of dropout where there is any.
        reward_beta: factor from log-ratio (nats) to the logged implicit reward.
        console: ``full`` prints tables and a preview of the data; ``line`` keeps those in ``output.txt`` of the run's
            folder and prints one line at the end, for many runs side by side.
        export: write the trained policy as a Hugging Face folder, ``policy/`` in the run's folder.
    """

    name: FolderName
    seed: NonNegativeInt
    reward_beta: Positive
    console: Literal["full", "line"]
    export: bool
