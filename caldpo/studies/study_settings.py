"""Settings of a study; ``conf/study.yaml`` explains each key. No heavy imports here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from caldpo.config.bounds import NonNegativeInt, Positive, PositiveInt
from caldpo.config.conf_dir import known_losses
from caldpo.config.did_you_mean import suggest
from caldpo.config.signatures import validated
from caldpo.config.validation import Problem
from caldpo.studies.measure_definitions import MEASURES
from caldpo.studies.run_store import RunStore

SETTINGS = "caldpo.studies.study_settings.StudySettings"
BASELINE = "dpo"  # what every other row is compared with
FRESH = 1001  # the first fresh seed; no trial has one of them
# what may differ between commands that share an output folder: which runs are asked for, and what is made of them
ASKED = {"losses", "conditions", "beside"}
FREE = ASKED | {"matched_kl", "resamples", "output", "report", "workers", "keep_runs", "dry_run", "run_seconds"}
NAMED = ("condition_overrides", "loss_overrides", "beside_overrides")  # of which only those that are used have to agree


@validated
@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """What is compared, with which budget, and where the records and the report go."""

    losses: list[str] | Literal["all"]
    conditions: list[str]
    beside: list[str]
    trials: PositiveInt
    seeds: PositiveInt
    sampler: Literal["quasi_random", "tpe"]
    seed: NonNegativeInt
    lr_factors: list[Positive]
    practitioner: list[str]
    matched_kl: Positive
    resamples: PositiveInt
    output: str
    report: str | None
    workers: int
    keep_runs: bool
    dry_run: bool
    run_overrides: list[str]
    trial_overrides: list[str]
    final_overrides: list[str]
    seed_keys: list[str]
    run_seconds: dict[str, float]
    condition_overrides: dict[str, list[str]]
    loss_overrides: dict[str, list[str]]
    beside_overrides: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, cfg: DictConfig) -> StudySettings:
        """Read the settings of a composed configuration."""
        content: Any = OmegaConf.to_container(cfg, resolve=True)
        return cls(**{key: content[key] for key in cls.__dataclass_fields__})

    @property
    def fixed(self) -> dict[str, Any]:
        """The settings that all commands of an output folder share; of named overrides only those that are used."""
        fixed = {key: value for key, value in vars(self).items() if key not in FREE and key not in NAMED}
        used = self.conditions, known_losses() if self.losses == "all" else self.losses, self.beside
        for key, names in zip(NAMED, used, strict=True):
            values = getattr(self, key)
            fixed |= {f"{key}.{name}": values.get(name, []) for name in names}  # a loss may have none
        return fixed


def find_study_problems(cfg: DictConfig) -> Iterator[Problem]:
    """Refuse settings that name what does not exist, and those that the study in the output folder does not have."""
    problems = list(_of_values(cfg))
    yield from problems
    if not problems:
        RunStore(Path(cfg.output)).require_same(StudySettings.of(cfg).fixed)


def _of_values(cfg: DictConfig) -> Iterator[Problem]:
    for key, known in (
        ("losses", known_losses()),
        ("conditions", cfg.condition_overrides),
        ("beside", cfg.beside_overrides),
        ("practitioner", [name for name, measure in MEASURES.items() if measure.is_share and measure.is_seen]),
    ):
        names = cfg[key]
        if key == "losses" and names == "all":
            continue
        for name in names:
            if name not in known:
                yield Problem(key, name, f"no such name{suggest(name, known)}", f"known: {', '.join(known)}")
        if not names and key != "beside":
            yield Problem(key, "[]", "names nothing", f"known: {', '.join(known)}")
        if len(set(names)) < len(names):
            yield Problem(key, str(list(names)), "names something twice")
    if len(cfg.lr_factors) != 2 or not cfg.lr_factors[0] < cfg.lr_factors[1]:
        yield Problem("lr_factors", str(list(cfg.lr_factors)), "is no range: a lower and an upper factor")
    for key, chosen in (("condition_overrides", cfg.conditions), ("beside_overrides", cfg.beside)):
        for name in chosen:
            row = cfg[key].get(name, [])
            overrides = row.get("overrides", []) if isinstance(row, Mapping | DictConfig) else row
            for text in overrides:
                if text.lstrip("+").partition("=")[0] in cfg.seed_keys:
                    yield Problem(f"{key}.{name}", text, "is the same for all seeds", "leave it out, or of seed_keys")
    if FRESH <= cfg.seed < FRESH + cfg.seeds:
        yield Problem("seed", str(cfg.seed), "is a fresh seed, on which nothing may be tuned", f"set one below {FRESH}")
    if cfg.seeds < 2:
        yield Problem("seeds", str(cfg.seeds), "a single seed has no spread", "set at least 2, better 5")
    for name, row in cfg.beside_overrides.items():
        if not isinstance(row, Mapping | DictConfig) or set(row) != {"overrides", "tuned"}:
            yield Problem(f"beside_overrides.{name}", None, "needs the keys overrides and tuned, and no others")
