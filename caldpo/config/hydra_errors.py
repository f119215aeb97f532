"""Explain Hydra's composition errors: which key, which choices, did you mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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

from caldpo.config.composer import FAULTS, Composer
from caldpo.config.did_you_mean import suggest, suggest_known
from caldpo.config.extras import EXTRAS, install
from caldpo.config.hydra_session import PER_LOSS
from caldpo.config.unknown_keys import explain_unknown_key, named_in_place_of_option, unheard_of
from caldpo.config.validation import NEEDED, Problem, find_problems, missing_group_problem
from caldpo.security.secrets import redact_text


def compose_or_explain(
    compose: Callable[[list[str]], DictConfig],
    loader: ConfigLoader,
    overrides: Sequence[str],
    settings: str | None = None,
) -> tuple[DictConfig | None, list[Problem]]:
    """Compose; explain each faulty override, leave it out and try again, so that all are reported at once.

    An option that is not there leaves open which keys it would bring: nothing is said of those, and the other ones that
    were typed are checked without it, as by :func:`caldpo.config.validation.find_problems` with these ``settings``.
    The configuration that is returned is without the faulty overrides; None when it cannot be composed.
    """
    composer = Composer(compose, loader)
    refused = _refused(composer, overrides)
    remaining = [text for text in overrides if text not in refused]
    unknown = unheard_of(composer, remaining)  # before the others, to spare the attempts that would fail
    problems = [*refused.values(), *unknown.values()]
    remaining = [text for text in remaining if text not in unknown]
    no_option = False
    while True:
        try:
            cfg = composer.compose(remaining)
            if no_option:
                typed = {override.key_or_group for override in composer.parse(remaining)}
                return None, [*problems, *(p for p in find_problems(cfg, settings) if p.key in typed)]
            return cfg, problems
        except FAULTS as error:
            problem, culprit = _explain(error, composer, remaining)
            problems.append(problem)
            if culprit not in remaining:
                return None, problems
            remaining = [override for override in remaining if override != culprit]
            if isinstance(error, MissingConfigException):
                no_option = True
                remaining = [override for override in remaining if not composer.may_depend(override, culprit)]


def _refused(composer: Composer, overrides: Sequence[str]) -> dict[str, Problem]:
    """Refuse, by their text, overrides that Hydra would take, or fail at in a way of its own."""
    problems = {}
    for text in overrides:
        if text != text.encode(errors="replace").decode():
            key, _, value = text.encode("ascii", "backslashreplace").decode().partition("=")
            problems[text] = Problem(key, redact_text(value) or None, "is not text in UTF-8", "rename what it names")
    for override in composer.parse([text for text in overrides if text not in problems]):
        if problem := _unwanted(override, composer):
            problems[override.input_line or ""] = problem
    return problems


def _unwanted(override: Override, composer: Composer) -> Problem | None:
    """Refuse what Hydra would take: a group that nothing reads, a group deleted that a run needs, no such option."""
    key, option = override.key_or_group, override.value()
    if override.is_add() and composer.options(key):
        cfg = composer.compose_or_none([])
        if cfg is not None and not composer.has_group(cfg, key):
            remedy = f"the groups of this command are {', '.join(composer.groups(cfg))}"
            return Problem(key, None, "a group of another command", remedy)
    if override.is_delete() and key in NEEDED:
        cfg = composer.compose_or_none([])
        # a command that can do without has no option of it to begin with; a model may set keys of it all the same
        if cfg is not None and cfg.hydra.runtime.choices.get(key) is not None:
            return missing_group_problem(key)
    if key == PER_LOSS and isinstance(option, str) and "${" not in option:  # the one optional group
        options = composer.options(PER_LOSS)
        if option not in options:
            remedy = f"choose one of {', '.join(options)}"
            return Problem(PER_LOSS, option, f"no such option{suggest(option, options)}", remedy)
    return None


def _explain(error: Exception, composer: Composer, overrides: list[str]) -> tuple[Problem, str | None]:
    """Explain an error of composing; return the override to leave out (None: nothing else can be checked)."""
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override), error.override
    if isinstance(error, yaml.YAMLError):
        return Problem("configuration", None, f"cannot be read: {' '.join(str(error).split())}"), None
    if isinstance(error, MissingConfigException):
        return _missing_option(error, composer, overrides)
    for text in overrides:
        if not composer.parse([text]):  # a number of thousands of digits, which Python refuses, not Hydra
            return _unreadable(text), text
    for override in composer.parse(overrides):
        line = override.input_line or ""
        if problem := _of_override(override, str(error), composer, [o for o in overrides if o != line]):
            return problem, line
    return Problem("configuration", None, without_search_paths(error)), None


def _of_override(override: Override, text: str, composer: Composer, others: list[str]) -> Problem | None:
    """Explain ``override`` if Hydra's ``text`` is about it."""
    key, line = override.key_or_group, override.input_line or ""
    no_option = "Config group override must be" in text or "is not iterable" in text  # the second for a list of numbers
    if no_option and not _are_names(override.value()):
        options = composer.options(key) if key else []
        wrong = Problem(key, _value(line), "must be the name of an option", f"choose one of {', '.join(options)}")
        return wrong if options else _unreadable(line) if not key else None
    if f"Multiple values for {key}." in text or ("Could not append" in text and f"'{key}'" in text):
        return Problem(
            key, None, "is in the configuration already", f"leave out the +: {redact_text(line.lstrip('+'))}"
        )
    if not any(f"'{named}'" in text for named in (key, line, f"{key}@{override.package}")) and line not in text:
        return None
    if override.is_sweep_override() and "Sweeping over Hydra" not in text:
        remedy = f"add -m to run once per value, or write a list as '{key}=[...]'"
        return Problem(key, _value(line), "several values for one run", remedy)
    if "Did you mean to override" in text or "looks like a config group" in text:
        return Problem(f"{key}@{override.package}", None, "unknown package", f"leave it out: {key}={_value(line)}")
    if "Could not override" in text or "Could not delete" in text:
        return explain_unknown_key(override, composer, others)
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
    error: MissingConfigException, composer: Composer, overrides: list[str]
) -> tuple[Problem, str | None]:
    """Explain an unknown option; return the override that names it."""
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    for text in overrides:
        if text.replace("=", "/", 1) == error.missing_cfg_file and (problem := named_in_place_of_option(text)):
            return problem, text
    options = list(error.options or (composer.options(group) if group else ()))  # of a list, Hydra names none
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


def _value(line: str) -> str:
    return redact_text(line).split("=", 1)[-1]


def without_search_paths(error: Exception) -> str:
    """Shorten Hydra's message to one line, without its search paths and links."""
    text = str(error) or type(error).__name__
    if isinstance(error, ConfigCompositionException | CompactHydraException) and error.__cause__ is not None:
        text = f"{text}: {error.__cause__}"
    lines = [line.strip() for line in text.split("Config search path")[0].splitlines()]
    return redact_text("; ".join(line for line in lines if line and not line.startswith("See https")))
