"""Explain Hydra's composition errors: which key, which choices, did you mean."""

from __future__ import annotations

import itertools
import re
import shlex
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
from omegaconf import DictConfig, ListConfig, OmegaConf

from caldpo.config.composer import FAULTS, Composer
from caldpo.config.did_you_mean import (
    KEYS,
    as_hint,
    known_or_near,
    meant_keys,
    meant_value,
    nearest,
    section_at,
    suggest,
    suggest_known,
)
from caldpo.config.extras import EXTRAS, install
from caldpo.config.hydra_session import PER_LOSS
from caldpo.config.validation import NEEDED, Problem, missing_group_problem
from caldpo.security.secrets import redact_text
from caldpo.utils.file_names import is_there

_DATA_FILE = re.compile(r"\.(jsonl?|csv|parquet)(\.gz)?$")
# Options that bring the keys which are most often set without them.
_BRINGING_KEYS = ("adapter=lora", "model=hf", "loss=dpo")
_MAX_VALUE = 100  # characters of a value that a remedy repeats
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def compose_or_explain(
    compose: Callable[[list[str]], DictConfig], loader: ConfigLoader, overrides: Sequence[str]
) -> tuple[DictConfig | None, list[Problem]]:
    """Compose; explain each faulty override, leave it out and try again, so that all are reported at once.

    An option that is not there leaves open which keys there are: of dotted ones nothing is said then, nor of values.
    The configuration that is returned is without the faulty overrides; None when it cannot be composed.
    """
    composer = Composer(compose, loader)
    refused = _refused(composer, overrides)
    problems = list(refused.values())
    remaining = [text for text in overrides if text not in refused]
    no_option = False
    while True:
        try:
            cfg = composer.compose(remaining)
            return None if no_option else cfg, problems
        except FAULTS as error:
            problem, culprit = _explain(error, composer, remaining)
            problems.append(problem)
            if culprit not in remaining:
                return None, problems
            remaining = [override for override in remaining if override != culprit]
            if isinstance(error, MissingConfigException):
                no_option = True
                remaining = [override for override in remaining if "." not in override.partition("=")[0]]


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
        return _unknown_key(override, composer, others)
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
        if text.replace("=", "/", 1) == error.missing_cfg_file and (problem := _named_in_place_of_option(text)):
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


def _unknown_key(override: Override, composer: Composer, others: list[str]) -> Problem:
    """Explain an unknown key by the keys beside which it would stand; ``others``: the overrides beside it."""
    key, value = override.key_or_group, override.value()
    cfg = composer.compose_or_none(others)
    if cfg is None:
        return Problem(key, None, "unknown key")
    options = composer.options(key)
    if options and key not in cfg and composer.has_group(cfg, key):
        return Problem(key, None, "not chosen by the defaults list", f"add it as +{key}={'|'.join(options)}")
    section = section_at(cfg, key)
    if isinstance(value, dict) and section is not None:
        key = next((f"{key}.{name}" for name in value if name not in section), key)
    names = key.split(".")
    above = itertools.accumulate(names[:-1], "{}.{}".format)  # of a.b.c: a, a.b
    sections = list(itertools.takewhile(lambda place: section_at(cfg, place) is not None, above))
    parent, name = sections[-1] if sections else "", names[len(sections)]
    known = [str(k) for k in section_at(cfg, parent) or () if k != "hydra" and not str(k).startswith("_")]
    choices = known if parent else [*known, *composer.groups(cfg)]
    meant = meant_keys(key, cfg, composer.groups(cfg))
    near = None if meant else nearest(name, choices)
    # in a sweep over a group, say which of its options lacks the key
    option = next((text for text in reversed(others) if parent and text.split("=")[0] == parent), None)
    wrong = f"unknown key{f' with {option}' if option else ''}"
    if not meant and (not near or parent or key in KEYS):
        bringing = _bringing_option(key, cfg, composer, others)
        if bringing is not None:
            return _key_of_option(override, key, wrong, *bringing, others)
    if meant:
        return Problem(key, None, f"{wrong}{as_hint(key, *meant)}", _assignment(override, meant[0], cfg, composer))
    where = option or parent or "the top level"
    listed = f"the keys of {where} are {', '.join(sorted(set(choices)))}" if choices else f"{where} has no keys"
    if near:
        listed = f"{_assignment(override, f'{parent}.{near}' if parent else near, cfg, composer)}; {listed}"
    return Problem(key, None, f"{wrong}{as_hint(key, near)}", listed)


def _bringing_option(key: str, cfg: DictConfig, composer: Composer, others: list[str]) -> tuple[str, str] | None:
    """Find an option that brings a key, or one that is meant by it; return option and key."""
    groups, section = composer.groups(cfg), key.partition(".")[0]
    for option in _BRINGING_KEYS:
        group = option.partition("=")[0]
        if group not in groups or (section in groups and section != group):
            continue
        if group == "loss" and any(text.split("=")[0] == group for text in others):
            continue  # another loss is another experiment
        with_option = composer.compose_or_none([*others, option])
        meant = [] if with_option is None else meant_keys(key, with_option, [])
        if brought := next((name for name in meant if name.startswith(f"{group}.")), None):
            return option, brought
    return None


def _key_of_option(override: Override, key: str, wrong: str, option: str, brought: str, others: list[str]) -> Problem:
    """Explain a key that ``option`` would bring under the name ``brought``."""
    chosen = next((text for text in others if text.split("=")[0] == option.split("=")[0]), None)
    remedy = f"write {option} {_written(brought, _value_for(override, brought))}"
    remedy += f", in place of {redact_text(chosen)}" if chosen else ""
    return Problem(key, None, wrong if brought == key else f"{wrong}{as_hint(key, brought)}", remedy)


def _assignment(override: Override, key: str, cfg: DictConfig, composer: Composer) -> str:
    """Tell to write ``key`` with the value of an override of another name."""
    value = _value_for(override, key)
    if options := composer.options(key):
        if problem := _named_in_place_of_option(f"{key}={value}"):
            return problem.remedy or ""
        value = known if (known := known_or_near(value, options)) else "..."
    elif isinstance(OmegaConf.select(cfg, key, throw_on_missing=False), ListConfig) and not value.startswith("["):
        value = f"[{value}]"
    return f"write {_written(key, value)}"


def _value_for(override: Override, key: str) -> str:
    """Return the text of the value of an override, for the ``key`` that is meant by its own; ``...`` for none."""
    _, sign, value = redact_text(override.input_line or "").partition("=")
    plain = sign and isinstance(override.value(), str | int | float | list | None)
    return meant_value(override.key_or_group, value) if plain and value and len(value) <= _MAX_VALUE else "..."


def _written(key: str, value: str) -> str:
    return shlex.quote(f"{key}={value}")


def _value(line: str) -> str:
    return redact_text(line).split("=", 1)[-1]


def without_search_paths(error: Exception) -> str:
    """Shorten Hydra's message to one line, without its search paths and links."""
    text = str(error) or type(error).__name__
    if isinstance(error, ConfigCompositionException | CompactHydraException) and error.__cause__ is not None:
        text = f"{text}: {error.__cause__}"
    lines = [line.strip() for line in text.split("Config search path")[0].splitlines()]
    return redact_text("; ".join(line for line in lines if line and not line.startswith("See https")))
