"""The one error type meant for a person: what is wrong, with which value, and what to do about it."""

from __future__ import annotations

from typing import Any

_UNSET: Any = object()


class CaldpoError(Exception):
    """A mistake in configuration, data or environment that the user can mend.

    Args:
        message: what is wrong, one sentence without a final full stop.
        key: the configuration key (``loss.beta``) or place (``train.jsonl:12``) it is about.
        value: the offending value, shown as given.
        remedy: what to do; shown on a line of its own.
    """

    def __init__(self, message: str, *, key: str | None = None, value: Any = _UNSET, remedy: str | None = None) -> None:
        self.message, self.key, self.value, self.remedy = message, key, value, remedy
        subject = "" if key is None else f"{key}: " if value is _UNSET else f"{key}={value}: "
        text = _with_full_stop(f"{subject}{message}")
        super().__init__(f"{text}\n  What to do: {_with_full_stop(remedy)}" if remedy else text)

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions pickle by positional arguments; parallel launchers send them between processes.
        return _rebuild, (self.message, self.key, self.value is _UNSET, self.value_or_none, self.remedy)

    @property
    def value_or_none(self) -> Any:
        """The offending value, or None when there is none to show."""
        return None if self.value is _UNSET else self.value


def _with_full_stop(sentence: str) -> str:
    """End a sentence with a full stop; ``optim.lr=...`` has dots enough."""
    return sentence if sentence.endswith("...") else f"{sentence}."


def one_line(error: BaseException) -> str:
    """Return the type of any error with the first line of its message; two lines where the first ends in a colon."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    first = " ".join(lines[:2]) if lines and lines[0].endswith(":") else lines[0] if lines else ""
    return f"{type(error).__name__}: {first.rstrip('.')}" if first else type(error).__name__


def _rebuild(message: str, key: str | None, unset: bool, value: Any, remedy: str | None) -> CaldpoError:
    return CaldpoError(message, key=key, value=_UNSET if unset else value, remedy=remedy)
