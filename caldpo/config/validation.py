"""Check a composed configuration against the signatures of its targets, before anything heavy is imported."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from omegaconf import Container, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, InterpolationToMissingValueError, OmegaConfBaseException

from caldpo.config import value_checks
from caldpo.config.did_you_mean import as_hint, as_yaml, known_or_near, meant_keys
from caldpo.config.lightning_keys import PLACES, REFUSED
from caldpo.config.signatures import Signature, read_signature
from caldpo.config.value_checks import describe, is_quantity
from caldpo.config.yaml_comments import meaning
from caldpo.errors import CaldpoError
from caldpo.security.secrets import MASK, is_secret_name, redact_text

NEEDED = ("loss", "reference", "adapter", "optim", "trainer", "logger", "callbacks", "data", "model")  # by a training
_INSTEAD = {
    "logger": "choose logger=none: only metrics.csv is written then",
    "adapter": "choose adapter=none: all weights are trained then",
    "callbacks": "take out single ones, such as ~callbacks.samples",
}
_HYDRA_KEYS = {"_target_", "_partial_", "_args_", "_recursive_", "_convert_"}


@dataclass(frozen=True)
class Problem:
    """One mistake, as a :class:`CaldpoError` tells it; one of several in a configuration."""

    key: str  # dotted
    value: str | None  # as it may be shown; None shows none
    message: str
    remedy: str | None = field(default=None, compare=False)  # it may repeat the value of one run of a sweep
    reference: str | None = None  # interpolation that the value came from

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.value is None else f"{self.key}={self.value}: {self.message}"


def check_config(cfg: DictConfig, settings: str | None = None) -> None:
    """Check keys and values of every section against the signature of its ``_target_``.

    Interpolations are resolved only for the check. The signature of the target ``settings`` describes the plain keys
    of the top level.

    Raises:
        CaldpoError: with all problems at once.
    """
    raise_problems(list(find_problems(cfg, settings)))


def raise_problems(problems: list[Problem]) -> None:
    """Raise one CaldpoError for all ``problems``, each on a line of its own; none for an empty list."""
    if len(problems) == 1:
        (only,) = problems
        value = {} if only.value is None else {"value": only.value}
        raise CaldpoError(only.message, key=only.key, remedy=only.remedy, **value)
    if problems:
        lines = [f"{p}; {p.remedy}" if p.remedy else str(p) for p in problems]
        raise CaldpoError("\n  ".join([f"{len(problems)} problems in the configuration", *lines]))


def find_problems(cfg: DictConfig, settings: str | None = None) -> Iterator[Problem]:
    """Yield the problems that :func:`check_config` raises, section by section."""
    problems = list(_of_section("", cfg, settings))
    wrong = {p.key for p in problems}
    for problem in problems:
        # A bad value is reported where it was given, not again wherever it is referred to.
        referred = set(re.findall(r"[\w.]+", problem.reference or ""))
        if not (wrong - {problem.key}) & referred:
            yield problem


def find_missing_groups(cfg: DictConfig) -> Iterator[Problem]:
    """Yield a problem for each group that a training needs and the configuration does not have."""
    for group in NEEDED:
        try:
            section = OmegaConf.select(cfg, group)
        except OmegaConfBaseException:
            continue  # reported where it stands
        if section is None:
            yield missing_group_problem(group)


def missing_group_problem(group: str) -> Problem:
    """Make the problem of a required group that was deleted."""
    remedy = _INSTEAD.get(group, f"leave ~{group} out, and choose an option by {group}=NAME")
    return Problem(group, None, "is deleted, and a run needs an option of this group", remedy)


def _of_section(path: str, section: DictConfig, target: str | None = None) -> Iterator[Problem]:
    target = target or _plain(section, "_target_")
    keys = [key for key in map(str, section) if key not in _HYDRA_KEYS and (path or key != "hydra")]
    signature = None
    if isinstance(target, str):
        try:
            signature = read_signature(target)
        except CaldpoError as error:
            yield Problem(_join(path, "_target_"), target, error.message)
    if signature:
        yield from _unknown_keys(path, section, keys, signature)
        if _plain(section, "_partial_") is not True:
            yield from _absent_keys(path, keys, signature)
    for key in keys:
        yield from _of_key(path, section, key, signature)


def _of_key(path: str, section: DictConfig, key: str, signature: Signature | None) -> Iterator[Problem]:
    name = _join(path, key)
    parameter = signature.parameters.get(key) if signature else None
    if OmegaConf.is_missing(section, key):
        kind = f" ({describe(parameter.annotation)})" if parameter and parameter.checked else ""
        yield Problem(name, None, f"is required{kind}", f"add {name}=... to the command line")
        return
    try:
        value = section[key]
    except InterpolationToMissingValueError:
        return  # reported once, at the key that is missing
    except InterpolationResolutionError as error:
        reason = redact_text(str(error).splitlines()[0])
        yield Problem(name, _reference(section, key), f"cannot be resolved: {reason}")
        return
    if isinstance(value, Container):
        yield from _of_container(name, value)
    if parameter and parameter.checked and not _holds_sections(value):
        yield from _of_value(name, section, key, parameter.annotation)


def _of_value(name: str, section: DictConfig, key: str, annotation: Any) -> Iterator[Problem]:
    value = section[key]
    if isinstance(value, Container):
        if OmegaConf.missing_keys(value):
            return  # reported item by item
        try:
            value = OmegaConf.to_container(value, resolve=True)
        except InterpolationResolutionError:
            return  # reported item by item
    if wrong := value_checks.problem(annotation, value):
        unit = meaning(name, _plain(section, "_target_")) if is_quantity(annotation) else None
        wrong += f" ({unit})" if unit else ""
        shown, reference = _shown(section, key), _reference(section, key)
        listed = isinstance(value, str) and not reference and not value_checks.problem(annotation, [value])
        yield Problem(name, shown, wrong, f"write '{name}=[{shown}]'" if listed else None, reference)


def _of_container(name: str, value: Container) -> Iterator[Problem]:
    if value._is_none() or value._is_missing():
        return
    if isinstance(value, DictConfig):
        yield from _of_section(name, value)
    if isinstance(value, ListConfig):
        for place in range(len(value)):
            if not OmegaConf.is_missing(value, place) and isinstance(value[place], DictConfig):
                yield from _of_section(f"{name}[{place}]", value[place])


def _unknown_keys(path: str, section: DictConfig, keys: list[str], signature: Signature) -> Iterator[Problem]:
    known, where = sorted(signature.parameters), path or "the top level"
    remedy = f"the keys of {where} are {', '.join(known)}" if known else f"{where} has no keys"
    for key in () if signature.open else keys:
        if key in known or (not path and _is_group(section, key)):
            continue
        if path in PLACES and key in REFUSED:
            reason, instead = REFUSED[key]
            yield Problem(_join(path, key), None, f"Lightning's argument {reason}", instead)
            continue
        meant = [] if path else meant_keys(key, section, [])
        near = as_hint(key, *meant) or as_hint(key, known_or_near(key, signature.parameters))
        yield Problem(_join(path, key), None, f"unknown key{near}", remedy)


def _absent_keys(path: str, keys: list[str], signature: Signature) -> Iterator[Problem]:
    for name, parameter in signature.parameters.items():
        if parameter.required and name not in keys:
            key = _join(path, name)
            wrong = f"is required ({describe(parameter.annotation)})"
            yield Problem(key, None, wrong, f"add +{key}=... to the command line")


def _is_group(section: DictConfig, key: str) -> bool:
    """Tell whether a top-level key holds sections (loss, trainer, ...) or an emptied one (logger: null)."""
    value = _plain(section, key)
    return value is None or (isinstance(value, Container) and (not value or _holds_sections(value)))


def _holds_sections(value: Any) -> bool:
    if isinstance(value, DictConfig) and not (value._is_none() or value._is_missing()):
        return "_target_" in value or any(_holds_sections(_plain(value, key)) for key in value)
    if isinstance(value, ListConfig) and not (value._is_none() or value._is_missing()):
        return any(isinstance(item, DictConfig) and "_target_" in item for item in value._iter_ex(resolve=False))
    return False


def _plain(section: DictConfig, key: Any) -> Any:
    """Select the value of ``key`` where there is one that resolves, else None."""
    if key not in section or OmegaConf.is_missing(section, key):
        return None
    try:
        return section[key]
    except InterpolationResolutionError:
        return None


def _shown(section: DictConfig, key: str) -> str:
    """Write a value for a message: without secrets, and with the interpolation that it came from."""
    reference = _reference(section, key)
    if reference and "oc.env" in reference:
        return reference
    value = section[key]
    text = MASK if is_secret_name(key) and isinstance(value, str) else redact_text(as_yaml(value))
    return f"{text} (from {reference})" if reference else text


def _reference(section: DictConfig, key: str) -> str | None:
    """Select the interpolation written at ``key``, if there is one."""
    node = section._get_node(key)
    return redact_text(str(node._value())) if OmegaConf.is_interpolation(section, key) else None  # type: ignore[union-attr]


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
