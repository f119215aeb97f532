"""``python -m caldpo.export outputs/RUN``: a trained policy as a Hugging Face folder with its model card."""

from __future__ import annotations

from omegaconf import DictConfig

from caldpo.config.main import hydra_entry
from caldpo.exporting.export_settings import check_export
from caldpo.utils.collector import exempt_from_collection


@hydra_entry(
    "export",
    positional="run",
    settings="caldpo.exporting.export_settings.ExportSettings",
    records=False,
    agree=check_export,
)
def main(cfg: DictConfig) -> None:
    """Export as ``cfg`` says."""
    with exempt_from_collection():
        from caldpo.exporting.export_run import export_run  # torch and transformers only for a good configuration

    export_run(cfg)


if __name__ == "__main__":
    main()
