"""Every run of a command line composed and checked before the first one starts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict, read_write

from caldpo.config.hydra_errors import compose_or_explain
from caldpo.config.hydra_session import HydraSession, hydra_session
from caldpo.config.launcher_checks import find_processes
from caldpo.config.overrides import parse_overrides
from caldpo.config.path_checks import find_escapes
from caldpo.config.run_dir import claimed_folder, naming_overrides
from caldpo.config.run_lifecycle import as_caldpo_error
from caldpo.config.search_checks import find_search_problems
from caldpo.config.validation import Problem, find_problems, raise_problems
from caldpo.security.secrets import redact_text
from caldpo.utils.process_rank import own_ranks

Agree = Callable[[DictConfig], Iterable[Problem] | None]


def preflight(
    session: HydraSession,
    overrides: Sequence[str],
    *,
    multirun: bool,
    schemas: Mapping[str, str],
    agree: Agree | None = None,
) -> tuple[RunMode, list[str]]:
    """Compose and check every run, and make the folder that this command line is going to fill.

    Args:
        session: of the command.
        overrides: as given on the command line.
        multirun: whether ``-m`` was given; a configuration may ask for a sweep too (``hydra.mode``).
        schemas: as for :func:`caldpo.config.validation.check_config`.
        agree: returns problems, or raises CaldpoError, where keys that are good by themselves contradict each other
            or what lies on this machine.

    Returns:
        Whether it is a run or a sweep, and overrides to add, which name the folders.

    Raises:
        CaldpoError: all problems of all runs at once.
    """
    try:
        # As a sweep: only the composed configuration knows whether it is one.
        cfg, problems = _compose(session, overrides, RunMode.MULTIRUN, refuse_sweeps=multirun)
        if multirun or (cfg is not None and cfg.hydra.mode == RunMode.MULTIRUN):
            return RunMode.MULTIRUN, _of_sweep(session.loader, cfg, problems, schemas, agree)
        several = any(override.is_sweep_override() for override in parse_overrides(session.loader, overrides))
        if not problems and (cfg is None or several or MISSING in cfg.hydra.runtime.choices.values()):
            cfg, problems = _compose(session, overrides, RunMode.RUN)  # which says what is wrong with them
        _raise_all(cfg, problems, schemas, agree)
        assert cfg is not None
        with own_ranks(cfg):
            return RunMode.RUN, claimed_folder(cfg, "run")
    finally:
        HydraConfig.instance().cfg = None


def composed(
    config_name: str, overrides: Sequence[str], *, schemas: Mapping[str, str], agree: Agree | None = None
) -> DictConfig:
    """The checked configuration of a single run, with Hydra's own section; nothing is made.

    Args:
        config_name: the primary configuration.
        overrides, schemas, agree: as for :func:`preflight`.

    Raises:
        CaldpoError: all problems at once.
    """
    with hydra_session(config_name) as session:
        try:
            cfg, problems = _compose(session, overrides, RunMode.RUN)
            _raise_all(cfg, problems, schemas, agree)
        finally:
            HydraConfig.instance().cfg = None
    assert cfg is not None
    return cfg


def _raise_all(
    cfg: DictConfig | None, problems: list[Problem], schemas: Mapping[str, str], agree: Agree | None
) -> None:
    """Raise the problems of composing, and those of what was composed without the faulty overrides."""
    unread = {problem.key for problem in problems}  # left out to read the others: of these keys nothing is known
    of_run = [] if cfg is None else _of_run(cfg, schemas, agree)
    raise_problems([*problems, *(problem for problem in of_run if problem.key not in unread)])


def check_run(cfg: DictConfig, schemas: Mapping[str, str], agree: Agree | None = None) -> None:
    """Check the configuration of a single run, with Hydra's own section.

    Raises:
        CaldpoError: all problems at once.
    """
    raise_problems(_of_run(cfg, schemas, agree))


def check_composes(session: HydraSession, overrides: Sequence[str]) -> None:
    """Check the keys alone: a configuration can be shown while values are still missing.

    Raises:
        CaldpoError: all faulty overrides at once.
    """
    raise_problems(_compose(session, overrides, RunMode.RUN)[1])


def _compose(
    session: HydraSession, overrides: Sequence[str], mode: RunMode, *, refuse_sweeps: bool = True
) -> tuple[DictConfig | None, list[Problem]]:
    return compose_or_explain(
        lambda some: session.compose(some, mode, refuse_sweeps=refuse_sweeps), session.loader, overrides
    )


def _of_sweep(
    loader: ConfigLoader,
    master: DictConfig | None,
    problems: list[Problem],
    schemas: Mapping[str, str],
    agree: Agree | None,
) -> list[str]:
    """Check the sweep that ``master`` describes; the overrides that name its folders."""
    if master is None:
        raise_problems(problems)
    assert master is not None
    jobs, all_known, found = _jobs(loader, master)
    searched = {text.split("=")[0] for job in jobs for text in job} - _fixed(loader, master)
    problems += [*found, *find_search_problems(master, searched)]
    for batch in _telling(loader, jobs):
        for number, job in _with_progress(batch):
            cfg, found = compose_or_explain(lambda given: loader.load_sweep_config(master, given), loader, job)
            problems += found
            if cfg is not None:
                problems += [*_of_run(cfg, schemas, agree, number), *find_processes(cfg)]
        raise_problems(list(dict.fromkeys(problems)))
    HydraConfig.instance().set_config(master)
    with own_ranks(master):
        return [*naming_overrides(jobs, master, all_known=all_known), *claimed_folder(master, "sweep")]


def _of_run(cfg: DictConfig, schemas: Mapping[str, str], agree: Agree | None, number: int = 0) -> list[Problem]:
    """The problems of one run's configuration, with the values that Hydra sets at its start in place."""
    with read_write(cfg.hydra), open_dict(cfg.hydra):
        cfg.hydra.runtime.output_dir = str(Path.cwd())
        cfg.hydra.job.id, cfg.hydra.job.num = str(number), number
    HydraConfig.instance().set_config(cfg)
    problems = [*find_problems(cfg, schemas), *find_escapes(cfg)]
    return problems if agree is None else [*problems, *_of_agreement(cfg, agree, doubtful=bool(problems))]


def _of_agreement(cfg: DictConfig, agree: Agree, *, doubtful: bool) -> list[Problem]:
    """What ``agree`` says; of a configuration that is ``doubtful`` already, no more than the problems it returns."""
    found: list[Problem] = []
    try:
        found.extend(agree(cfg) or [])  # keeps what comes before an error
    except Exception as error:
        if doubtful:
            return found  # the error is most likely due to a value that is reported already
        known = as_caldpo_error(error)
        if known is None:
            raise
        value = None if known.value_or_none is None else redact_text(str(known.value))
        found.append(Problem(known.key or "configuration", value, known.message, known.remedy))
    return found


def _jobs(loader: ConfigLoader, master: DictConfig) -> tuple[list[list[str]], bool, list[Problem]]:
    """The overrides of each run, whether these are all runs, and the problems of expanding them."""
    params = OmegaConf.select(master, "hydra.sweeper.params") or {}
    given = [*(f"{key}={value}" for key, value in params.items()), *master.hydra.overrides.task]
    parsed = parse_overrides(loader, given)
    if not str(master.hydra.sweeper.get("_target_")).endswith(".BasicSweeper"):
        return list(_one_at_a_time(parsed)), False, []
    problems = [
        Problem(
            override.key_or_group,
            None,
            "an interval has no single values to run",
            "list values, or choose a sweeper that draws them (hydra/sweeper=...)",
        )
        for override in parsed
        if override.is_sweep_override() and not override.is_discrete_sweep()
    ]
    if problems:
        return [], True, problems
    values = {o.get_key_element(): [f"{o.get_key_element()}={value}" for value in _values(o)] for o in parsed}
    return [list(job) for job in itertools.product(*values.values())], True, []


def _fixed(loader: ConfigLoader, master: DictConfig) -> set[str]:
    """Keys that the command line gives a single value, the same in every run of a sweep."""
    parsed = parse_overrides(loader, list(master.hydra.overrides.task))
    return {override.get_key_element() for override in parsed if not override.is_sweep_override()}


def _telling(loader: ConfigLoader, jobs: list[list[str]]) -> list[list[tuple[int, list[str]]]]:
    """The jobs that can show a problem which no earlier one shows, with their numbers, in two batches.

    What keys there are, and what their values may be, follows from the choice of groups: each other override
    is composed once per choice, instead of once per combination with all others. The first batch shows each
    override at least once, so that most mistakes are answered soon; the second the rest.
    """
    groups = {text for text in {t for job in jobs for t in job} if _chooses_group(loader, text)}
    shown: set[str] = set()
    seen: set[tuple[frozenset[str], str]] = set()
    first, second = [], []
    for number, job in enumerate(jobs):
        if not set(job) <= shown or not job:
            first.append((number, job))
            shown |= set(job)
            seen |= {(frozenset(job) & groups, text) for text in [*job, ""]}
    for number, job in enumerate(jobs):
        news = {(frozenset(job) & groups, text) for text in [*job, ""]} - seen
        if news:
            second.append((number, job))
            seen |= news
    return [first, second]


def _with_progress(batch: list[tuple[int, list[str]]]) -> Iterable[tuple[int, list[str]]]:
    if len(batch) <= 20:  # about two seconds
        return batch
    from rich.progress import track

    return track(batch, description="Checking the sweep", transient=True)


def _chooses_group(loader: ConfigLoader, text: str) -> bool:
    key = text.split("=")[0].lstrip("+~").split("@")[0]
    return "." not in key and bool(loader.get_group_options(key))


def _one_at_a_time(overrides: Sequence[Override]) -> Iterator[list[str]]:
    """Runs that show every value of every override once, for sweepers that choose combinations themselves."""
    values = {o.get_key_element(): _values(o) for o in overrides}
    first = {key: shown[0] for key, shown in values.items() if shown}
    yield [f"{key}={value}" for key, value in first.items()]
    for key, shown in values.items():
        for value in shown[1:]:
            yield [f"{k}={v}" for k, v in {**first, key: value}.items()]


def _values(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if override.is_discrete_sweep():
        return list(override.sweep_string_iterator())
    interval: Any = override.value()
    return [str(interval.start), str(interval.end)] if isinstance(interval, IntervalSweep) else []
