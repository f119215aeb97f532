"""Whether a checkpoint belongs to the run that is about to go on from it."""

from __future__ import annotations

from collections.abc import Mapping

from caldpo.errors import CaldpoError
from caldpo.utils.collectives import all_gather


def require_same(then: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuse to go on where the run would be another one.

    Args:
        then: digests by what they are of, when the checkpoint was written.
        now: the same today.

    Raises:
        CaldpoError: the configuration, the reference's weights or the tokens are others.
    """
    changed = [name for name in then if now.get(name) != then[name]]
    if changed:
        # where tokens are others, so are the texts that they were made of
        named = [n for n in changed if n == (tokens := n.replace("the texts", "the tokens")) or tokens not in changed]
        raise CaldpoError(
            f"{' and '.join(named)} changed since the checkpoint was written",
            key="resume",
            remedy="bring back the model, the data and the settings that the run began with (config.yaml names them),"
            " or start a new run",
        )


def require_agreement(step: int) -> None:
    """Refuse to go on where ranks have found different checkpoints; every rank has to ask.

    Raises:
        CaldpoError: they have, with the steps.
    """
    found = sorted({int(other) for other in all_gather(step)})
    if len(found) > 1:
        raise CaldpoError(
            f"the processes of the run found checkpoints of different steps ({', '.join(map(str, found))})",
            key="resume",
            remedy="put the run's folder where all nodes see the same files, or look why some cannot read them",
        )


def other_versions(then: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """What to say where a run goes on with other versions than it began with; None where they are the same."""
    changed = [f"{name} was {was}, is {now.get(name)}" for name, was in then.items() if now.get(name) != was]
    if not changed:
        return None
    return f"note: {'; '.join(changed)}: the run goes on, but not bit for bit as it would have"
