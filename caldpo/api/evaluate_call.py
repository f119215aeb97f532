"""Evaluate a run, the runs of a sweep, or any model, and return the measures as a data frame."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caldpo.api.given_model import Model, Tokenizer, is_run_folder, model_folder, reference_name, tokenizer_name
from caldpo.api.given_pairs import Pairs, as_files, pair_settings
from caldpo.api.train_call import config_dirs
from caldpo.api.trained_run import Run
from caldpo.config.cache_dirs import CACHE
from caldpo.config.find_runs import find_runs
from caldpo.config.hydra_session import outer_config_kept
from caldpo.config.overrides import override, plain_settings
from caldpo.config.preflight import composed
from caldpo.errors import CaldpoError
from caldpo.evaluation.default_suites import with_default_suites
from caldpo.evaluation.evaluation_settings import check_evaluation
from caldpo.utils.yaml_io import read_json, read_yaml

if TYPE_CHECKING:
    import pandas as pd

_SETTINGS = "caldpo.evaluation.evaluation_settings.EvaluateSettings"


def evaluate(
    policy: Model | Run,
    pairs: Pairs | None = None,
    suites: str | Sequence[str] | None = None,
    *,
    reference: Model | Run | None = None,
    tokenizer: Tokenizer | None = None,
    settings: Mapping[str, Any] | None = None,
    config_dir: str | Path | None = None,
) -> pd.DataFrame:
    """Measure policies by suites, as ``python -m caldpo.evaluate`` does; results are kept beside the runs.

    Args:
        policy: a run, the folder of a run or of a sweep, a folder in the hub's format, the id of a model of the hub, or
            a model in memory.
        pairs: held-out pairs; None takes those of the run.
        suites: names of ``conf/suite``; None takes those that the run's configuration names, else ``preference`` and
            ``displacement``.
        reference: of the log-ratios, one model for all, or the policy of a run; None takes the run's own. Its own
            tokenizer, if it has one, has to give the same ids.
        tokenizer: needed with a model in memory.
        settings: any other keys of the command: ``{"max_pairs": 100, "preference.bins": 5}``.
        config_dir: a folder of yamls of your own, as ``--config-dir``.

    Returns:
        A row per policy and measure: ``policy``, ``suite``, ``measure``, ``value``, the ends of its interval ``low``
        and ``high``, ``n`` examples, ``unit``, ``title`` and ``meaning``.

    Raises:
        CaldpoError: something that can be mended; of several runs, that some could not be evaluated.
    """
    cache, own = Path(CACHE), config_dirs(config_dir)
    chosen = _policy_settings(policy, tokenizer, cache)
    if pairs is not None:
        chosen |= _held_out_settings(pairs, chosen.get("run"), cache, own)
    if reference is not None:
        chosen["reference.path"] = reference_name(reference, tokenizer, cache)
    if suites is not None:
        several = isinstance(suites, Iterable) and not isinstance(suites, str)
        chosen["suite"] = list(suites) if several else [suites]
    texts = [override(key, value) for key, value in {**chosen, **plain_settings(settings)}.items()]
    texts = with_default_suites(texts, False, None if config_dir is None else str(config_dir))
    cfg = composed("evaluate", texts, _SETTINGS, check_evaluation, extra=own)

    from caldpo.evaluation.evaluation_run import evaluate as evaluate_policies
    from caldpo.report.comparison import compare_runs

    with outer_config_kept():
        try:
            results = evaluate_policies(cfg, write_report=compare_runs)
        except SystemExit:
            raise CaldpoError(
                "some of its runs could not be evaluated, and say above why",
                key="policy",
                value=cfg.run,
                remedy="mend the cause, or name the runs one by one",
            ) from None
    return _frame(results)


def _policy_settings(policy: Model | Run, tokenizer: Tokenizer | None, cache: Path) -> dict[str, Any]:
    if isinstance(policy, Run):
        return {"run": str(policy.folder), "allow_untrusted_code": policy.allow_untrusted_code}
    if not isinstance(policy, str | Path):
        return {"model.path": model_folder(policy, tokenizer, cache, "policy")}
    if is_run_folder(policy):
        return {"run": str(Path(policy).expanduser())}
    settings = {"model.path": str(policy)}
    if tokenizer is not None:
        settings["model.tokenizer"] = tokenizer_name(tokenizer, cache)
    return settings


def _held_out_settings(pairs: Pairs, run: str | None, cache: Path, own: Sequence[Path]) -> dict[str, Any]:
    """Read pairs of one's own as the held-out ones, cut as the run cut its own."""
    settings = pair_settings(pairs, None, cache, own)
    if settings["data"] == "local":  # the training split is read as well, and what is measured is the other
        file = settings.get("data.train") or as_files(pairs, cache, "pairs")
        settings |= {"data.train": file, "data.test": file, "data.on_shared_prompts": "keep"}
    if run is not None:
        of_run = read_yaml(find_runs(Path(run), key="run")[0] / "config.yaml").get("data", {})
        settings |= {f"data.{key}": of_run[key] for key in ("max_length", "max_prompt_length") if key in of_run}
    return settings


def _frame(results: Sequence[tuple[str, Path]]) -> pd.DataFrame:
    import pandas as pd

    columns = ("value", "low", "high", "n", "unit", "title", "meaning")
    rows = [
        {"policy": policy, "suite": file.stem, "measure": name, **{key: measure.get(key) for key in columns}}
        for policy, file in results
        for name, measure in read_json(file)["measures"].items()
    ]
    frame = pd.DataFrame(rows, columns=["policy", "suite", "measure", *columns])
    return frame.astype(dict.fromkeys(("value", "low", "high"), "float64"))
