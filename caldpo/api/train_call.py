"""Training from Python: ``train(compose([...]))`` does what ``python -m caldpo.train`` does, and returns the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from caldpo.api.trained_run import Run
from caldpo.config.overrides import with_quoted_paths
from caldpo.config.preflight import composed
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError
from caldpo.in_process_run import run_in_process
from caldpo.resume.resume_command import with_run_overrides
from caldpo.run_settings import SETTINGS, find_config_problems


def compose(overrides: Sequence[str] = (), *, config_dir: str | Path | None = None) -> DictConfig:
    """Compose the configuration of a training run from overrides as on the command line, checked as there.

    Values may still be changed; :func:`train` checks them again.

    Args:
        overrides: each a text, ``"loss=dpo"``.
        config_dir: a folder of yamls of your own, as ``--config-dir``.

    Raises:
        CaldpoError: all that is wrong with the overrides.
    """
    listed = isinstance(overrides, Sequence) and not isinstance(overrides, str)
    if not listed or not all(isinstance(override, str) for override in overrides):
        raise CaldpoError(
            f"{overrides!r} is no list of overrides, each a text as on the command line",
            key="overrides",
            remedy='write compose(["loss=dpo", "seed=1"])',
        )
    expanded = with_run_overrides(with_quoted_paths(list(overrides)))
    return composed("train", expanded, SETTINGS, find_config_problems, extra=config_dirs(config_dir))


def train(cfg: DictConfig, folder: str | Path | None = None) -> Run:
    """Train one policy in this process, as a configuration says.

    Args:
        cfg: by :func:`compose`, or by ``compose`` of Hydra over the project's configurations (:func:`caldpo.conf_dir`).
        folder: of the run; None takes ``hydra.run.dir``, a new folder below ``outputs``.

    Raises:
        CaldpoError: something that can be mended, as by the command.
    """
    place, _ = run_in_process(_run, cfg, run_folder(folder))
    return Run(place, allow_untrusted_code=True)  # whatever it names was built in this process


@validated
def run_folder(folder: str | Path | None) -> Path | None:
    """Return the whole path of the folder that a call names for its run."""
    return None if folder is None else Path(folder).expanduser().absolute()


@validated
def config_dirs(config_dir: str | Path | None) -> tuple[Path, ...]:
    """Look for a folder of own yamls."""
    if config_dir is None:
        return ()
    folder = Path(config_dir).expanduser()
    if not folder.is_dir():
        raise CaldpoError("there is no such folder", key="config_dir", value=config_dir)
    return (folder,)


def _run(cfg: DictConfig) -> float | None:
    from caldpo.training_command import run  # torch and transformers load only for a configuration known to be good

    return run(cfg)
