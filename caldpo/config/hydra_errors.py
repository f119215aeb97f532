"""Explain Hydra's composition errors: which key, which choices, did you mean."""

from __future__ import annotations

import re
from collections.abc import Sequence

import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override
from hydra.errors import (
    CompactHydraException,
    ConfigCompositionException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig

from caldpo.config.config_groups import groups_of, has_group, options_of
from caldpo.config.did_you_mean import suggest, suggest_known
from caldpo.config.extras import EXTRAS, install
from caldpo.config.hydra_extensions import PER_LOSS
from caldpo.config.overrides import parse_overrides
from caldpo.config.unknown_keys import FAULTS, Compose, unknown_key
from caldpo.config.validation import NEEDED, Problem, missing_group_problem
from caldpo.security.secrets import redact_text
from caldpo.utils.file_names import is_there

_DATA_FILE = re.compile(r"\.(jsonl?|csv|parquet)(\.gz)?$")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def compose_or_explain(
    compose: Compose, loader: ConfigLoader, overrides: Sequence[str]
) -> tuple[DictConfig | None, list[Problem]]:
    """Compose; explain each faulty override, leave it out and try again, so that all are reported at once.

    An option that is not there leaves open which keys there are: of dotted ones nothing is said then, nor of values.

    Returns:
        The configuration without the faulty overrides (None when it cannot be composed) and their problems.
    """
    compose = _remembering(compose)
    texts = [override for override in overrides if _is_text(override)]
    problems, foreign = _of_other_commands(compose, loader, texts)
    without = {**_deleted_groups(compose, loader, texts), **_unknown_optional(loader, texts)}
    problems += without.values()
    problems += [_no_text(override) for override in overrides if override not in texts]
    remaining = [override for override in texts if override not in foreign and override not in without]
    no_option = False
    while True:
        try:
            cfg = compose(remaining)
            return None if no_option else cfg, problems
        except FAULTS as error:
            problem, culprit = _explain(error, compose, loader, remaining)
            problems.append(problem)
            if culprit not in remaining:
                return None, problems
            remaining = [override for override in remaining if override != culprit]
            if isinstance(error, MissingConfigException):
                no_option = True
                remaining = [override for override in remaining if "." not in override.partition("=")[0]]


def _remembering(compose: Compose) -> Compose:
    """Cache compositions, and their faults, by their overrides; none of them is changed in this module."""
    composed: dict[tuple[str, ...], DictConfig | Exception] = {}

    def remembered(overrides: list[str]) -> DictConfig:
        key = tuple(overrides)
        if key not in composed:
            try:
                composed[key] = compose(overrides)
            except FAULTS as error:
                composed[key] = error
        outcome = composed[key]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return remembered


def _is_text(override: str) -> bool:
    """Tell whether an override can be written into a file: bytes that are not UTF-8 cannot."""
    try:
        override.encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_text(override: str) -> Problem:
    key, _, value = override.encode("ascii", "backslashreplace").decode().partition("=")
    return Problem(key, redact_text(value) or None, "is not text in UTF-8", "rename what it names")


def _of_other_commands(
    compose: Compose, loader: ConfigLoader, overrides: Sequence[str]
) -> tuple[list[Problem], list[str]]:
    """Refuse added groups that no configuration of this command names, and that nothing would read."""
    added = [o for o in parse_overrides(loader, overrides) if o.is_add() and options_of(loader, o.key_or_group)]
    if not added:
        return [], []
    try:
        cfg = compose([])
    except FAULTS:
        return [], []
    foreign = [o for o in added if not has_group(cfg, loader, o.key_or_group)]
    remedy = f"the groups of this command are {', '.join(groups_of(cfg, loader))}"
    problems = [Problem(o.key_or_group, None, "a group of another command", remedy) for o in foreign]
    return problems, [o.input_line or "" for o in foreign]


def _deleted_groups(compose: Compose, loader: ConfigLoader, overrides: Sequence[str]) -> dict[str, Problem]:
    """Refuse deletions of a group of which a run needs an option; a model may have set keys of it all the same."""
    deleted = [o for o in parse_overrides(loader, overrides) if o.is_delete() and o.key_or_group in NEEDED]
    if not deleted:
        return {}
    try:
        choices = compose([]).hydra.runtime.choices
    except FAULTS:
        return {}
    # a command that can do without has no option of it to begin with
    return {
        o.input_line or "": missing_group_problem(o.key_or_group)
        for o in deleted
        if choices.get(o.key_or_group) is not None
    }


def _unknown_optional(loader: ConfigLoader, overrides: Sequence[str]) -> dict[str, Problem]:
    """Refuse options of the one optional group that do not exist, which Hydra leaves out in silence."""
    options = options_of(loader, PER_LOSS)
    remedy = f"choose one of {', '.join(options)}"
    problems = {}
    for override in parse_overrides(loader, overrides):
        option = override.value()
        if override.key_or_group != PER_LOSS or not isinstance(option, str) or option in options or "${" in option:
            continue
        wrong = f"no such option{suggest(option, options)}"
        problems[override.input_line or ""] = Problem(PER_LOSS, option, wrong, remedy)
    return problems


def _explain(
    error: Exception, compose: Compose, loader: ConfigLoader, overrides: list[str]
) -> tuple[Problem, str | None]:
    """Explain an error of composing; return the override to leave out (None: nothing else can be checked)."""
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override), error.override
    if isinstance(error, yaml.YAMLError):
        return Problem("configuration", None, f"cannot be read: {' '.join(str(error).split())}"), None
    if isinstance(error, MissingConfigException):
        return _missing_option(error, loader, overrides)
    for text in overrides:
        if not parse_overrides(loader, [text]):  # a number of thousands of digits, which Python refuses, not Hydra
            return _unreadable(text), text
    for override in parse_overrides(loader, overrides):
        line = override.input_line or ""
        if problem := _of_override(override, str(error), compose, loader, [o for o in overrides if o != line]):
            return problem, line
    return Problem("configuration", None, without_search_paths(error)), None


def _of_override(
    override: Override, text: str, compose: Compose, loader: ConfigLoader, others: list[str]
) -> Problem | None:
    """Explain ``override`` if Hydra's ``text`` is about it."""
    key, line = override.key_or_group, override.input_line or ""
    no_option = "Config group override must be" in text or "is not iterable" in text  # the second for a list of numbers
    if no_option and not _are_names(override.value()):
        options = options_of(loader, key) if key else []
        wrong = Problem(key, _value(line), "must be the name of an option", f"choose one of {', '.join(options)}")
        return wrong if options else _unreadable(line) if not key else None
    if f"Multiple values for {key}." in text or ("Could not append" in text and f"'{key}'" in text):
        return Problem(
            key, None, "is in the configuration already", f"leave out the +: {redact_text(line.lstrip('+'))}"
        )
    if not any(f"'{named}'" in text for named in (key, line, f"{key}@{override.package}")) and line not in text:
        return None
    if "Sweeping over Hydra" in text:
        return Problem(key, _value(line), "a key of Hydra itself has one value for the whole sweep")
    if override.is_sweep_override():
        remedy = f"add -m to run once per value, or write a list as '{key}=[...]'"
        return Problem(key, _value(line), "several values for one run", remedy)
    if "Did you mean to override" in text or "looks like a config group" in text:
        return Problem(f"{key}@{override.package}", None, "unknown package", f"leave it out: {key}={_value(line)}")
    if "Could not override" in text or "Could not delete" in text:
        return unknown_key(override, compose, loader, others)
    return Problem(key, _value(line), text.splitlines()[0].rstrip("."))


def _are_names(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(name, str) for name in value))


def _unreadable(text: str) -> Problem:
    if "=" not in text.lstrip("="):
        return Problem(redact_text(text), None, "an override is written key=value", "see --help for examples")
    key, value = text.split("=", 1)
    quoted = value if len(value) <= 100 and not set(value) & set("\"'$\\") else "..."
    remedy = f"""quote a value that has special characters: '{key}="{redact_text(quoted)}"'"""
    return Problem(key or text, redact_text(value) if key else None, "cannot be read", remedy)


def _missing_option(
    error: MissingConfigException, loader: ConfigLoader, overrides: list[str]
) -> tuple[Problem, str | None]:
    """Explain an unknown option; return the override that names it."""
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    for text in overrides:
        if text.replace("=", "/", 1) == error.missing_cfg_file and (problem := _named_in_place_of_option(text)):
            return problem, text
    options = list(error.options or (options_of(loader, group) if group else ()))  # of a list, Hydra names none
    if not group:
        return Problem("configuration", None, f"there is no {error.missing_cfg_file}"), None
    written = next((o for o in reversed(overrides) if o.split("=")[0].strip("+").split("@")[0] == group), None)
    if not options:
        return Problem(group, option, f"no such option, and no options in {group}"), written
    if (group, option) in EXTRAS:
        return Problem(group, option, "not installed", install(group, option)), written
    wrong = f"no such option{suggest_known(option, options)}"
    choice = _value(written) if written and "=[" not in written else option  # of a list, the one that is wrong
    remedy = f"choose one of {', '.join(options)}"
    if group == "model":
        remedy += f", or any of the hub, or a folder: model=hf model.path={redact_text(option)}"
    return Problem(group, choice, wrong, remedy), written


def _named_in_place_of_option(text: str) -> Problem | None:
    """Explain a model or data of a person's own that is named where an option belongs."""
    group, _, name = text.partition("=")
    if group == "model" and ("/" in name or is_there(name)):
        remedy = f"write model=hf model.path={redact_text(name)}"
        return Problem(group, redact_text(name), "is not an option, but a model of the hub or a folder", remedy)
    is_local = _DATA_FILE.search(name) or is_there(name)
    if group == "data" and ("/" in name or is_local):
        on_hub = _HUB_ID.fullmatch(name) and not is_local
        what, key = ("a data set of the hub", "data=hub data.path") if on_hub else ("a path", "data=local data.train")
        return Problem(group, redact_text(name), f"is not an option, but {what}", f"write {key}={redact_text(name)}")
    return None


def _value(line: str) -> str:
    return redact_text(line).split("=", 1)[-1]


def without_search_paths(error: Exception) -> str:
    """Shorten Hydra's message to one line, without its search paths and links."""
    text = str(error) or type(error).__name__
    if isinstance(error, ConfigCompositionException | CompactHydraException) and error.__cause__ is not None:
        text = f"{text}: {error.__cause__}"
    lines = [line.strip() for line in text.split("Config search path")[0].splitlines()]
    return redact_text("; ".join(line for line in lines if line and not line.startswith("See https")))
