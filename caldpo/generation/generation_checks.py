"""Read the prompts of ``prompts=``, and check the keys of ``caldpo.generate`` before torch is imported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig

from caldpo.config.find_runs import find_one_run
from caldpo.data.formats._fields import messages, text
from caldpo.data.pair import Message
from caldpo.data.raw_row import RowError
from caldpo.data.sources.json_rows import read_jsonl
from caldpo.errors import CaldpoError
from caldpo.evaluation.evaluation_settings import check_target

PromptContent = str | tuple[Message, ...]  # text, or a conversation that ends where the policy is to answer

_FORMATS = '\'["first text", "second text"]\', or a file: .txt with one a line, .jsonl with a prompt a row'


def check_generation(cfg: DictConfig) -> None:
    """Require one run or model, and prompts or a conversation.

    Raises:
        CaldpoError: no run or model, a folder of several runs, unreadable prompts, keys that exclude each other.
    """
    has_prompts = cfg.prompts is not None or cfg.chat
    if cfg.run is None and cfg.model.path is not None and cfg.get("data") is None and not has_prompts:
        raise CaldpoError(
            "model.path has no held-out prompts of its own",
            key="prompts",
            remedy='give prompts, prompts=\'["first text", "second text"]\' or prompts=FILE, or chat=true, or data with'
            " held-out prompts, for example data=ultrafeedback",
        )
    check_target(cfg)
    if cfg.chat and (cfg.prompts is not None or cfg.samples != 1):
        raise CaldpoError(
            "chat=true reads its prompts from the terminal and gives one response to each",
            key="samples" if cfg.prompts is None else "prompts",
            value=cfg.samples if cfg.prompts is None else None,
            remedy="leave out one of the two",
        )
    if cfg.prompts is not None:
        read_prompts(cfg.prompts)
    if cfg.run is not None:
        find_one_run(Path(cfg.run).expanduser())


def read_prompts(prompts: str | Sequence[str]) -> list[PromptContent]:
    """Read the prompts of ``prompts=``: texts, or the name of a ``.txt`` or ``.jsonl`` file.

    Raises:
        CaldpoError: no such file, a row without a prompt, a prompt without text, or no prompt at all.
    """
    if isinstance(prompts, str):
        entries, source = list(_read_file(prompts)), str(prompts)
    else:
        entries, source = [(f"prompts[{i}]", prompt) for i, prompt in enumerate(prompts)], "[]"
    for origin, prompt in entries:
        if isinstance(prompt, str) and not prompt.strip():
            raise CaldpoError("the prompt has no text", key=origin)
    if not entries:
        raise _prompts_error("holds no prompt", source)
    return [prompt for _, prompt in entries]


def _read_file(name: str) -> Iterator[tuple[str, PromptContent]]:
    """Yield each prompt with its origin."""
    path = Path(name).expanduser()
    if path.suffix not in (".txt", ".jsonl"):
        raise _prompts_error("neither a list of texts nor a .txt or .jsonl file", name)
    if not path.is_file():
        raise _prompts_error("no such file", name)
    yield from _read_text(path) if path.suffix == ".txt" else _read_jsonl(path)


def _read_text(path: Path) -> Iterator[tuple[str, PromptContent]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CaldpoError(f"cannot be read as UTF-8 text: {error}", key="prompts", value=path) from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"{path}:{number}", line.removesuffix("\r")


def _read_jsonl(path: Path) -> Iterator[tuple[str, PromptContent]]:
    for row in read_jsonl(path):
        try:
            if row.error is not None:
                raise RowError(row.error)
            assert isinstance(row.value, dict)
            is_text = isinstance(row.value.get("prompt"), str)
            yield row.origin, text(row.value, "prompt") if is_text else messages(row.value, "prompt")
        except RowError as error:
            raise CaldpoError(
                str(error), key=row.origin, remedy="give each row a `prompt`: text, or a list of messages"
            ) from error


def _prompts_error(reason: str, prompts: str) -> CaldpoError:
    return CaldpoError(reason, key="prompts", value=prompts, remedy=f"give {_FORMATS}")
