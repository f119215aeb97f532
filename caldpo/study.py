"""``python -m caldpo.study``: compare losses with an equal tuning budget, on fresh seeds and an untouched split."""

from __future__ import annotations

from omegaconf import DictConfig

from caldpo.config.main import hydra_entry
from caldpo.studies.study_settings import SETTINGS, find_study_problems
from caldpo.utils.collector import exempt_from_collection


@hydra_entry("study", settings=SETTINGS, records=False, agree=find_study_problems)
def main(cfg: DictConfig) -> None:
    """Run what of the study has not run yet, then write its report."""
    with exempt_from_collection():
        from caldpo.studies.study_run import run_study  # torch and transformers only for a good configuration

    run_study(cfg)


if __name__ == "__main__":
    main()
