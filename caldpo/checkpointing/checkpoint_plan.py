"""Compare a checkpoint with the run that is about to resume from it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caldpo.errors import CaldpoError
from caldpo.utils.collectives import all_gather


@dataclass(frozen=True)
class CheckpointPlan:
    """Record in each checkpoint what the run's numbers depend on, and compare it at resume."""

    inputs: Callable[[], dict[str, str]] = dict  # computes digests, by name, of all that must not change
    environment: dict[str, str] = field(default_factory=dict)  # may change the last bits: a difference is noted
    cut: Callable[[], object] = lambda: None  # truncates the run's files to the loaded checkpoint, on the first rank

    @functools.cached_property
    def identity(self) -> dict[str, str]:
        """The digests; all ranks have to ask for them together."""
        return self.inputs()

    def accept(self, manifest: Mapping[str, Any], *, first_rank: bool) -> str | None:
        """Cut the run's files to a checkpoint, unless it must not be resumed from; all ranks have to call.

        Returns:
            A note where the run's last bits may change; None where they do not.

        Raises:
            CaldpoError: its inputs differ, or ranks loaded different checkpoints.
        """
        require_same(manifest["identity"], self.identity)
        steps = sorted({int(step) for step in all_gather(manifest["step"])})
        if len(steps) > 1:
            raise CaldpoError(
                f"the run's ranks loaded checkpoints of different steps ({', '.join(map(str, steps))})",
                key="resume",
                remedy="put the run's folder where all nodes see the same files, or look why some cannot read them",
            )
        if first_rank:
            self.cut()
        return environment_note(manifest["versions"], self.environment)


def require_same(saved: Mapping[str, str], current: Mapping[str, str], run_dir: Path | None = None) -> None:
    """Refuse to resume where digests, by name, differ from those of when the checkpoint was written.

    Args:
        saved, current: the digests.
        run_dir: the run's folder, for the message.

    Raises:
        CaldpoError: configuration, reference weights or tokens changed.
    """
    changed = [name for name in saved if current.get(name) != saved[name]]
    if changed:
        # where tokens changed, so did the texts they were made from
        causes = [n for n in changed if n == (tokens := n.replace("the texts", "the tokens")) or tokens not in changed]
        place: dict[str, Any] = {} if run_dir is None else {"value": run_dir}
        raise CaldpoError(
            f"{' and '.join(causes)} changed since the checkpoint was written",
            key="resume",
            **place,
            remedy="bring back the model, the data and the settings that the run began with (config.yaml names them),"
            " or start a new run",
        )


def environment_note(saved: Mapping[str, str], current: Mapping[str, str]) -> str | None:
    """Describe versions and devices that changed since the run began; None where none did."""
    changed = [f"{name} was {was}, is {current.get(name)}" for name, was in saved.items() if current.get(name) != was]
    if not changed:
        return None
    return f"note: {'; '.join(changed)}: the run goes on, but not bit for bit as it would have"
