"""Find LM Eval in this environment, or in another one by its interpreter."""

from __future__ import annotations

import functools
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caldpo.config.extras import install
from caldpo.errors import CaldpoError
from caldpo.evaluation.lm_eval import environment_probe
from caldpo.evaluation.lm_eval.leaderboards import NEEDS, Package, needs
from caldpo.security.redacted_streams import environment_without_secrets

_PACKAGES = [package for packages in NEEDS.values() for package in packages]
_MODULES = ["lm_eval", "vllm", *(package.module for package in _PACKAGES)]
_DISTRIBUTIONS = ["lm_eval", *(p.distribution for p in _PACKAGES if p.distribution)]
OTHER_ENVIRONMENT = (
    "create an environment with pip install 'lm_eval[hf,math,ifeval]' 'setuptools<81', and name its interpreter:"
    " leaderboard.python=PATH/bin/python"
)


@dataclass(frozen=True)
class Installation:
    """LM Eval in one environment.

    Args:
        python: interpreter of the environment; None: this process.
        tasks: folder of LM Eval's tasks.
        version: of LM Eval.
        modules: location of each module that matters; None where it is not installed.
        versions: of the distributions whose version matters.
    """

    python: str | None
    tasks: Path
    version: str
    modules: dict[str, str | None]
    versions: dict[str, str | None]

    @property
    def has_vllm(self) -> bool:
        """Whether vLLM is installed."""
        return self.modules["vllm"] is not None

    @property
    def name(self) -> str:
        """The environment in words."""
        return "this environment" if self.python is None else f"the environment of {self.python}"

    def missing_for(self, task: str) -> str | None:
        """Describe the packages that a task needs and the environment lacks; None if none is known to be missing."""
        missing = [package.pip for package in needs(task) if not self._has(package)]
        return f"needs {', '.join(missing)}, which {self.name} lacks" if missing else None

    def _has(self, package: Package) -> bool:
        if self.modules[package.module] is None:
            return False
        if package.distribution is None:
            return True
        return str(self.versions[package.distribution]).startswith(package.version)


def find_installation(python: str | None) -> Installation:
    """Find LM Eval in this environment, or in that of the interpreter ``python``.

    Raises:
        CaldpoError: it is not installed there, or there is no such interpreter.
    """
    return _in_this_environment() if python is None else _in_environment_of(python)


def _in_this_environment() -> Installation:
    probed = environment_probe.probe(_MODULES, _DISTRIBUTIONS)
    if probed["modules"]["lm_eval"] is None:
        raise CaldpoError("not installed", key="suite", value="leaderboard", remedy=install("suite", "leaderboard"))
    return _installation(None, probed)


@functools.cache
def _in_environment_of(python: str) -> Installation:
    # a virtual environment is known by the path of its interpreter, so links stay as they are
    path = str(Path(python).expanduser().absolute())
    script = str(Path(environment_probe.__file__).absolute())
    command = [path, script, " ".join(_MODULES), " ".join(_DISTRIBUTIONS)]
    environment = environment_without_secrets()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=environment)
        probed = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise CaldpoError(
            f"is no Python interpreter: {error}", key="leaderboard.python", value=python, remedy="name PATH/bin/python"
        ) from error
    if probed["modules"]["lm_eval"] is None:
        raise CaldpoError(
            "its environment has no lm_eval",
            key="leaderboard.python",
            value=python,
            remedy=f"{path} -m pip install 'lm_eval[hf]'",
        )
    return _installation(path, probed)


def _installation(python: str | None, probed: dict[str, Any]) -> Installation:
    modules, versions = probed["modules"], probed["versions"]
    return Installation(python, Path(modules["lm_eval"]) / "tasks", str(versions["lm_eval"]), modules, versions)
