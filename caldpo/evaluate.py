"""``python -m caldpo.evaluate run=outputs/RUN suite=[preference,oracle]``: measure a policy, or those of a sweep."""

from __future__ import annotations

from omegaconf import DictConfig

from caldpo.config.main import hydra_entry
from caldpo.evaluation.default_suites import with_default_suites
from caldpo.evaluation.evaluation_settings import check_evaluation
from caldpo.utils.collector import exempt_from_collection


@hydra_entry(
    "evaluate",
    positional="run",
    settings="caldpo.evaluation.evaluation_settings.EvaluateSettings",
    records=False,
    agree=check_evaluation,
    expand=with_default_suites,
)
def main(cfg: DictConfig) -> None:
    """Evaluate the run, the sweep or the model of ``cfg``, then write a sweep's report."""
    with exempt_from_collection():
        from caldpo.evaluation.evaluation_run import evaluate  # torch and transformers only for a good configuration
        from caldpo.report.comparison import compare_runs

    evaluate(cfg, write_report=compare_runs)


if __name__ == "__main__":
    main()
