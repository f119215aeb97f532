"""``python -m caldpo.generate outputs/RUN``: samples of a policy to read, beside those of its reference."""

from __future__ import annotations

from omegaconf import DictConfig

from caldpo.config.main import hydra_entry
from caldpo.generation.generation_checks import check_generation
from caldpo.utils.collector import exempt_from_collection


@hydra_entry(
    "generate",
    positional="run",
    settings="caldpo.evaluation.evaluation_settings.GenerateSettings",
    records=False,
    agree=check_generation,
)
def main(cfg: DictConfig) -> None:
    """Sample as ``cfg`` says."""
    with exempt_from_collection():
        from caldpo.generation.generation_run import generate  # torch and transformers only for a good configuration

    generate(cfg)


if __name__ == "__main__":
    main()
