"""``python -m caldpo.evaluate run=outputs/RUN suite=[preference,oracle]``: measure a policy, or those of a sweep."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from caldpo.api.callable_module import make_callable
from caldpo.config.main import hydra_entry
from caldpo.evaluation.default_suites import with_default_suites
from caldpo.evaluation.evaluation_settings import check_evaluation
from caldpo.utils.collector import exempt_from_collection

if TYPE_CHECKING:
    import pandas as pd


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


def function() -> Callable[..., pd.DataFrame]:
    """What a call of this module calls: see :mod:`caldpo.api.callable_module`."""
    from caldpo.api.evaluate_call import evaluate

    return evaluate


make_callable(__name__)
if __name__ == "__main__":
    main()
