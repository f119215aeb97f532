"""Make a command of a function of a configuration: check the command line, then run."""

from __future__ import annotations

import functools
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.errors import HydraException
from hydra.types import RunMode

from caldpo import __version__
from caldpo.config.did_you_mean import has_key, meant_keys, suggest
from caldpo.config.help_text import help_text
from caldpo.config.hydra_errors import without_search_paths
from caldpo.config.hydra_session import HydraSession, hydra_session, options_parser
from caldpo.config.overrides import require_unspaced, with_positional, with_quoted_paths
from caldpo.config.preflight import Agree, check_composes, preflight
from caldpo.config.run_dir import NOT_BY_HYDRA
from caldpo.config.run_lifecycle import IsDone, Task, early_ends, exit_on_signals, print_error, run_job
from caldpo.errors import CaldpoError
from caldpo.security.secrets import redact_error, redact_text

Main = Callable[..., None]
BAD_COMMAND_LINE = 2  # the exit code of argparse


def hydra_entry(
    command: str,
    *,
    positional: str | None = None,
    several: bool = False,
    absent: Callable[[], CaldpoError] | None = None,
    settings: str | None = None,
    records: bool = True,
    done: IsDone | None = None,
    agree: Agree | None = None,
    expand: Callable[[Sequence[str], bool, str | None], list[str]] | None = None,
) -> Callable[[Task], Main]:
    """Make a command of a function that takes the composed configuration.

    The command answers a bad command line with exit code 2 before anything heavy is imported.

    Args:
        command: name of the command and of its primary configuration in ``conf``.
        positional: key that the first bare argument is the value of.
        several: whether each bare argument is an item of that value.
        absent: the answer where that argument alone is missing; None takes that of any missing key.
        settings: dotted target in caldpo whose signature describes the plain top-level keys.
        agree: as for :func:`caldpo.config.preflight.preflight`; imports nothing heavy.
        expand: replaces the overrides of a run, or (True) of a sweep, under a ``--config-dir``.
        records: keep status and error in ``summary.json`` and ``error.txt`` of the run's folder.
        done: asked before each run is started, with its configuration and folder; an answer takes the run's place.

    Returns:
        A decorator; the function that it makes is called as ``main(argv=None)``, and raises SystemExit on a failure.
    """

    def decorator(task: Task) -> Main:
        @functools.wraps(task)
        def main(argv: Sequence[str] | None = None) -> None:
            try:
                arguments = sys.argv[1:] if argv is None else argv
                if any(len(text) > 2 and "--version".startswith(text) for text in arguments):  # not Hydra's
                    print(f"caldpo {__version__}")
                    return
                with exit_on_signals():
                    args = _parse(command, arguments, positional, several)
                    if expand:
                        args.overrides = expand(args.overrides, args.multirun, args.config_dir)
                    if args.help:
                        print(help_text(args.config_name, args.config_path, args.config_dir))
                        raise SystemExit(0)
                    own = [args.config_dir] if args.config_dir else []
                    with hydra_session(args.config_name, job_name=command, conf=args.config_path, extra=own) as session:
                        if args.cfg or args.hydra_help or args.info or args.shell_completion:
                            if args.cfg:
                                check_composes(session, args.overrides)
                            session.show(args, args.parser)
                            return
                        try:
                            mode, folders = preflight(
                                session, args.overrides, multirun=args.multirun, settings=settings, agree=agree
                            )
                        except CaldpoError as error:
                            # Without a value it is the missing one; several problems have no key in common.
                            if absent and error.key == positional and error.value_or_none is None:
                                raise absent() from None
                            raise
                        # The job's name first: Lightning gives its child processes another one.
                        overrides = [f"hydra.job.name={command}", NOT_BY_HYDRA, *args.overrides, *folders]
                        _launch(session, overrides, mode, functools.partial(run_job, task, records, done=done))
            except CaldpoError as error:
                print(f"error: {redact_error(error)}", file=sys.stderr)
                raise SystemExit(BAD_COMMAND_LINE) from None
            except KeyboardInterrupt:
                _close_sweep()
                raise SystemExit(130) from None
            except SystemExit as stop:
                _close_sweep(stop.code)
                raise

        return main

    return decorator


def _parse(command: str, argv: Sequence[str], positional: str | None, several: bool) -> Namespace:
    parser = options_parser(f"python -m caldpo.{command}")
    args, unknown = parser.parse_known_intermixed_args(list(argv))  # options may stand between overrides
    if unknown:
        raise _unknown_option(command, unknown[0], argv, re.findall(r"--[a-z-]+", parser.format_usage()))
    modes = {"-m": args.multirun, "--run": args.run, "--cfg": args.cfg, "--info": args.info}
    chosen = [name for name, is_set in modes.items() if is_set]
    if len(chosen) > 1:
        raise CaldpoError("these options exclude each other", key=" ".join(chosen))
    if args.experimental_rerun:
        raise CaldpoError("is not supported", key="--experimental-rerun")
    require_unspaced(args.overrides)
    args.overrides = with_quoted_paths(args.overrides)
    if positional:
        args.overrides = with_positional(args.overrides, positional, several=several)
    # Relative to where the person is; Hydra would start from this package.
    args.config_path = Path(args.config_path).absolute() if args.config_path else None
    args.config_dir = Path(args.config_dir) if args.config_dir else None
    if args.config_dir and not args.config_dir.is_dir():
        raise CaldpoError("there is no such folder", key="--config-dir", value=args.config_dir)
    args.config_name = args.config_name or command
    args.parser = parser
    return args


def _unknown_option(command: str, option: str, argv: Sequence[str], options: Sequence[str]) -> CaldpoError:
    """Make the error of an option that is none; ``--loss dpo`` is an override written as one."""
    near = suggest(option.partition("=")[0], options)
    remedy, (key, sign, value) = "see --help for examples", option.lstrip("-").partition("=")
    key = key.replace("-", "_")
    known = _known_key(command, key) if option.startswith("--") and key else None
    if known or (option.startswith("--") and key and not near):
        after = list(argv)[list(argv).index(option) + 1 :] if option in argv else []
        if not sign:
            value = next((text for text in after[:1] if "=" not in text and not text.startswith("-")), "VALUE")
        near, remedy = "", f"write {known or key}={redact_text(value)}"
    return CaldpoError(f"unknown option{near}", key=redact_text(option), remedy=remedy)


def _known_key(command: str, key: str) -> str | None:
    """Return the key of the command's default configuration that is called or meant by ``key``."""
    with hydra_session(command) as session:
        cfg = session.compose([], RunMode.RUN)
    return key if has_key(cfg, key) else next(iter(meant_keys(key, cfg, [])), None)


def _launch(session: HydraSession, overrides: list[str], mode: RunMode, job: Task) -> None:
    # Not by hydra.main, which reads sys.argv: Lightning starts child processes by sys.argv, which therefore has to
    # stay as it was typed, with the subcommand of the console script.
    try:
        session.run(job, overrides, mode)
    except Exception as error:  # of a launcher or a sweeper: errors of a run are dealt with in its job
        if isinstance(error, HydraException):
            print(f"error: {without_search_paths(error)}", file=sys.stderr)
        else:
            print_error(error)
        raise SystemExit(1) from None


def _close_sweep(code: object = None) -> None:
    while early_ends:
        early_ends.pop()(code)
