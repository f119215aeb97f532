"""The ``caldpo`` console script: ``caldpo train ...`` is ``python -m caldpo.train ...``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from caldpo import __version__
from caldpo.config.completion import completion_script
from caldpo.config.did_you_mean import suggest
from caldpo.errors import CaldpoError

COMPLETION = "completion"
_COMMANDS = {
    "train": ("caldpo.train", "train a policy with one loss, or a sweep of them"),
    "estimate": ("caldpo.estimate", "what such a run would need: steps, tokens, memory"),
    "benchmark": ("caldpo.benchmark", "speed and memory of this project beside TRL's, on this machine"),
    "evaluate": ("caldpo.evaluate", "measure what training changed: a run, a sweep or any Hugging Face model"),
    "generate": ("caldpo.generate", "read what a policy writes, beside its reference, or talk to it"),
    "export": ("caldpo.export", "a trained policy as a Hugging Face folder with its model card"),
    "study": ("caldpo.study", "compare losses with an equal tuning budget, on seeds and a split nobody tuned on"),
    "compare": ("caldpo.compare", "report, table and picture of a sweep's runs"),
    "list": ("caldpo.list", "the runs in a folder: loss, model, data, step, state, main metric, age"),
    "properties": ("caldpo.properties", "what each loss does where the optimum is known exactly"),
}
_USAGE = """usage: caldpo COMMAND [arguments]

Commands (each has its own --help)
{commands}

  caldpo --version shows the version
  caldpo completion bash, zsh or fish shows the script that completes commands, groups, options and keys by Tab:
    source <(caldpo completion bash)     in ~/.bashrc; zsh likewise; for fish: caldpo completion fish | source
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names, with the others.

    Raises:
        SystemExit: with 2 on an unknown command, else as the command does.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help", "help"):
        print(_usage())
        return
    if command == "--version":
        print(f"caldpo {__version__}")
        return
    if command == COMPLETION:
        try:
            print(completion_script(arguments[1] if len(arguments) > 1 else "", [*_COMMANDS, COMPLETION]), end="")
        except CaldpoError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        return
    if command not in _COMMANDS:
        known = (*_COMMANDS, COMPLETION)
        print(f"error: {command}: no such command{suggest(command, known)} (of {', '.join(known)})", file=sys.stderr)
        raise SystemExit(2)
    importlib.import_module(_COMMANDS[command][0]).main(arguments[1:])


def _usage() -> str:
    return _USAGE.format(commands="\n".join(f"  {name:<11}{text}" for name, (_, text) in _COMMANDS.items()))
