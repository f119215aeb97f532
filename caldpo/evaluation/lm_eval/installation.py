"""Find LM Eval in this environment, or in another one by its interpreter."""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from caldpo.config.extras import install
from caldpo.errors import CaldpoError
from caldpo.evaluation.lm_eval import environment_probe
from caldpo.evaluation.lm_eval.leaderboards import NEEDS
from caldpo.security.redacted_streams import environment_without_secrets

_REQUIREMENTS = {start: [Requirement(text) for text in texts] for start, texts in NEEDS.items()}
_PACKAGES = ["lm_eval", "vllm", *(needed.name for several in _REQUIREMENTS.values() for needed in several)]
OTHER_ENVIRONMENT = (
    "create an environment with pip install 'lm_eval[hf,math,ifeval]' 'setuptools<81', and name its interpreter:"
    " leaderboard.python=PATH/bin/python"
)


@dataclass(frozen=True)
class Installation:
    """LM Eval in one environment."""

    python: str | None  # interpreter of the environment; None: this process
    tasks: Path  # folder of LM Eval's tasks
    versions: Mapping[str, str | None]  # of the packages that matter; None where one is not installed

    @property
    def name(self) -> str:
        """The environment in words."""
        return "this environment" if self.python is None else f"the environment of {self.python}"

    def missing_for(self, task: str) -> str | None:
        """Describe the packages that a task needs and the environment lacks; None if none is known to be missing."""
        needs = [needed for start, several in _REQUIREMENTS.items() if task.startswith(start) for needed in several]
        missing = [str(needed) for needed in needs if not self._has(needed)]
        return f"needs {', '.join(missing)}, which {self.name} lacks" if missing else None

    def _has(self, needed: Requirement) -> bool:
        version = self.versions[needed.name]
        return version is not None and needed.specifier.contains(version, prereleases=True)


def find_installation(python: str | None) -> Installation:
    """Find LM Eval in this environment, or in that of the interpreter ``python``.

    Raises:
        CaldpoError: it is not installed there, or there is no such interpreter.
    """
    if python is None:
        found = environment_probe.probe("lm_eval", _PACKAGES)
    else:
        # a virtual environment is known by the path of its interpreter, so links stay as they are
        python = str(Path(python).expanduser().absolute())
        found = _probe(python)
    if found["folder"] is not None:
        return Installation(python, Path(found["folder"]) / "tasks", found["versions"])
    if python is None:
        raise CaldpoError("not installed", key="suite", value="leaderboard", remedy=install("suite", "leaderboard"))
    raise CaldpoError(
        "its environment has no lm_eval",
        key="leaderboard.python",
        value=python,
        remedy=f"{python} -m pip install 'lm_eval[hf]'",
    )


@functools.cache
def _probe(python: str) -> dict[str, Any]:
    command = [python, str(Path(environment_probe.__file__).absolute()), "lm_eval", *_PACKAGES]
    environment = environment_without_secrets()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=environment)
        result: dict[str, Any] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise CaldpoError(
            f"is no Python interpreter: {error}", key="leaderboard.python", value=python, remedy="name PATH/bin/python"
        ) from error
    return result
