"""Train a model on pairs, in one call with plain values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caldpo.api.given_model import Model, Tokenizer, model_settings
from caldpo.api.given_pairs import Pairs, pair_settings
from caldpo.api.loss_by_name import loss_option
from caldpo.api.train_call import config_dirs, run_folder, train
from caldpo.api.trained_run import Run
from caldpo.config.cache_dirs import CACHE
from caldpo.config.overrides import override, plain_settings
from caldpo.config.preflight import composed
from caldpo.resume.resume_command import with_run_overrides
from caldpo.run_settings import SETTINGS, find_config_problems

if TYPE_CHECKING:
    from caldpo.losses.base import PreferenceLoss

# of a call from a notebook: a line at start and end, the rest into output.txt of the run's folder; no account is needed
_QUIET = {"console": "compact", "trainer.progress_bar": False, "logger": "csv"}


def fit(
    model: Model,
    pairs: Pairs | None = None,
    loss: str | type[PreferenceLoss] = "cal_dpo",
    *,
    test_pairs: Pairs | None = None,
    tokenizer: Tokenizer | None = None,
    lr: float | None = None,
    max_steps: int | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    config_dir: str | Path | None = None,
) -> Run:
    """Train a copy of a model on preference pairs with a loss.

    It is the run of ``python -m caldpo.train model=hf model.path=MODEL data.train=PAIRS loss=LOSS``, with its checks,
    and can be resumed, evaluated and compared as such. A model or pairs in memory are first written below
    ``outputs/cache``, once for each content.

    Args:
        model: a folder, the id of a model of the hub, a model in memory, or an option of ``conf/model`` such as
            ``"tiny"``, which brings data and settings of its own.
        pairs: files, rows in memory, an option of ``conf/data`` such as ``"ultrafeedback"``, or the id of a data set of
            the hub; None takes the data of the model's option.
        loss: an option of ``conf/loss``, or a class of your own (:class:`~caldpo.losses.base.PreferenceLoss`).
        test_pairs: held-out pairs; None cuts them from ``pairs``, by prompt, unless a test split lies beside them.
        tokenizer: needed with a model in memory; None takes the one in the model's folder.
        lr: peak learning rate; None takes the model's option's, 5e-7 for a model of your own.
        max_steps: optimiser steps; None takes the model's option's, one pass over the pairs for a model of your own.
        seed: of the order of the pairs.
        folder: of the run; None makes a new one below ``outputs``.
        settings: any other keys of docs/configuration.md with their values: ``{"loss.beta": 0.05, "adapter": "lora"}``.
        config_dir: a folder of yamls of your own, as ``--config-dir``.

    Returns:
        The finished run: its policy, metrics, summary and folder.

    Raises:
        CaldpoError: something that can be mended, with all that is wrong with the settings at once.
    """
    cache = Path(CACHE)
    given = plain_settings(settings)
    own = config_dirs(config_dir)
    chosen = {**model_settings(model, tokenizer, cache, own), **pair_settings(pairs, test_pairs, cache, own)}
    with loss_option(loss) as (name, folders):
        chosen |= {"loss": name, "seed": seed, **_QUIET}
        chosen |= {} if lr is None else {"optim.lr": lr}
        chosen |= {} if max_steps is None else {"trainer.max_steps": max_steps}
        chosen |= {} if folder is None else {"hydra.run.dir": str(run_folder(folder))}
        overrides = [override(key, value) for key, value in {**chosen, **given}.items()]
        expanded = with_run_overrides(overrides)
        cfg = composed("train", expanded, SETTINGS, find_config_problems, extra=[*own, *folders])
    return train(cfg)
