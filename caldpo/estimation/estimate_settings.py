"""The plain top-level keys of an estimate: those of the run, and its own two. No heavy imports here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from caldpo.config.bounds import Positive, PositiveInt, Share
from caldpo.config.signatures import validated
from caldpo.run_settings import RunSettings

SAMPLE_PAIRS = 1000
UTILISATION = 0.4  # an assumption: what well-tuned training of such models reports, between 0.3 and 0.5


@validated
@dataclass(frozen=True, kw_only=True)
class EstimateSettings(RunSettings):
    """What a run would need, from its own settings and some of its data; ``conf/estimate.yaml`` explains the keys."""

    dry_run: Literal[True] = True
    sample_pairs: PositiveInt = SAMPLE_PAIRS
    memory_gib: Positive | None = None
    device_tflops: Positive | None = None
    utilisation: Share = UTILISATION
