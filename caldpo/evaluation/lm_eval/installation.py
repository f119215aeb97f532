"""The environment that the harness runs in: this one, or another one by its interpreter."""

from __future__ import annotations

import functools
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caldpo.config.hydra_errors import install
from caldpo.errors import CaldpoError
from caldpo.evaluation.lm_eval import environment_probe as probe
from caldpo.evaluation.lm_eval.leaderboards import NEEDS, needs
from caldpo.security.redacted_streams import environment_without_secrets

_PACKAGES = [package for packages in NEEDS.values() for package in packages]
_MODULES = ["lm_eval", "vllm", *(package.module for package in _PACKAGES)]
_DISTRIBUTIONS = ["lm_eval", *(p.distribution for p in _PACKAGES if p.distribution)]
OTHER = "make an environment with pip install 'lm_eval[hf,math,ifeval]' 'setuptools<81', and name its interpreter:"
OTHER += " leaderboard.python=PATH/bin/python"


@dataclass(frozen=True)
class Installation:
    """A harness.

    Args:
        python: interpreter of its environment; None: this process.
        tasks: folder of the tasks that come with it.
        version: of the harness.
        found: what :func:`caldpo.evaluation.lm_eval.environment_probe.look` says of the environment.
    """

    python: str | None
    tasks: Path
    version: str
    found: dict[str, Any]

    @property
    def has_vllm(self) -> bool:
        """Whether vLLM is there."""
        return self.found["modules"]["vllm"] is not None

    def lacks(self, task: str) -> str | None:
        """What a task imports and the environment has not, in words; None if nothing is known to be missing."""
        missing = [package.pip for package in needs(task) if not self._has(package)]
        return f"needs {', '.join(missing)}, which {self.where} lacks" if missing else None

    @property
    def where(self) -> str:
        """The environment in words."""
        return "this environment" if self.python is None else f"the environment of {self.python}"

    def _has(self, package: Any) -> bool:
        if self.found["modules"][package.module] is None:
            return False
        if package.distribution is None:
            return True
        return str(self.found["versions"][package.distribution]).startswith(package.version)


def find_installation(python: str | None) -> Installation:
    """The harness of this environment, or of the one that ``python`` belongs to.

    Raises:
        CaldpoError: it is not installed there, or there is no such interpreter.
    """
    return _of_this() if python is None else _of_other(python)


def _of_this() -> Installation:
    found = probe.look(_MODULES, _DISTRIBUTIONS)
    if found["modules"]["lm_eval"] is None:
        raise CaldpoError("not installed", key="suite", value="leaderboard", remedy=install("suite", "leaderboard"))
    return _installation(None, found)


@functools.cache
def _of_other(python: str) -> Installation:
    # A virtual environment is told from the path of its interpreter, so links stay as they are.
    path = str(Path(python).expanduser().absolute())
    command = [path, str(Path(probe.__file__).absolute()), " ".join(_MODULES), " ".join(_DISTRIBUTIONS)]
    environment = environment_without_secrets()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=environment)
        found = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise CaldpoError(
            f"no Python interpreter: {error}", key="leaderboard.python", value=python, remedy="name PATH/bin/python"
        ) from error
    if found["modules"]["lm_eval"] is None:
        raise CaldpoError(
            "its environment has no lm_eval",
            key="leaderboard.python",
            value=python,
            remedy=f"{path} -m pip install 'lm_eval[hf]'",
        )
    return _installation(path, found)


def _installation(python: str | None, found: dict[str, Any]) -> Installation:
    tasks = Path(found["modules"]["lm_eval"]) / "tasks"
    return Installation(python, tasks, str(found["versions"]["lm_eval"]), found)
