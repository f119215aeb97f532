"""The plain top-level keys of a training run; this signature is their schema. No heavy imports here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from caldpo.config.bounds import FolderName, NonNegativeInt, Positive
from caldpo.config.signatures import validated

SuiteName = Annotated[
    str, Field(pattern=r"\A[A-Za-z0-9_]+\Z", description="the name of a suite, of letters, digits and _")
]


@validated
@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What a run is called and how it is seeded and scaled.

    Args:
        name: first part of the output folder's name.
        seed: of the order of the data, and of dropout where there is any.
        reward_beta: unit of the logged implicit rewards: reward per nat of log-ratio, one for all losses.
        console: ``full`` prints tables and a preview of the data; ``line`` keeps those in ``output.txt`` of the run's
            folder and prints one line at the start and one at the end, for many runs side by side.
        export: write the trained policy as a Hugging Face folder, ``policy/`` in the run's folder.
        optimized_metric: the final metric that a searching sweeper gets (its ``direction`` says which way is better).
        suites: what ``caldpo.evaluate`` measures of the run where its own command line names nothing.
        dry_run: print what the run would need instead of training, as ``caldpo.estimate`` does.
        resume: folder of a run to go on with; ``auto`` goes on where the folder of this very command holds a run that
            did not finish, and leaves alone one that did.
        replay: a batch that went bad in a run (``nonfinite_batches/``), to be computed again instead of training.
        allow_untrusted_code: let a resumed run build what the project's own configurations do not name.
        layout: of the batches; ``packed`` has each prompt once and no padding, ``auto`` takes it where the model can.
        logits_cache_mib: softmax kept between the two passes over the output head; what is beyond is computed again.
    """

    name: FolderName
    seed: NonNegativeInt
    reward_beta: Positive
    console: Literal["full", "compact"]
    export: bool
    optimized_metric: str
    suites: list[SuiteName]
    dry_run: bool
    resume: str | None
    replay: str | None
    allow_untrusted_code: bool
    layout: Literal["auto", "packed", "padded"]
    logits_cache_mib: NonNegativeInt
