"""README.md and the pages of docs/ as the tests read them: their commands and their blocks of code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if path.is_file()]
_BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
_STARTS = r"(?:python|torchrun [\w=-]+|srun python)"  # of a command that runs one of the project's


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of one language in a page."""
    return [match["text"] for match in _BLOCK.finditer(path.read_text()) if match["language"] == language]


def shell_lines() -> list[str]:
    """Every command line of every page once, in the order of the pages; without comments, with continuations joined."""
    text = "\n".join(block.replace("\\\n", " ") for path in DOCUMENTS for block in blocks(path, "sh"))
    lines = (shlex.join(shlex.split(line, comments=True)) for line in text.splitlines())
    return list(dict.fromkeys(line for line in lines if line))


def commands(name: str) -> list[list[str]]:
    """The arguments of every ``python -m caldpo.NAME`` in the pages."""
    matches = (re.fullmatch(rf"{_STARTS} -m caldpo\.{name}(?P<arguments> .*)?", line) for line in shell_lines())
    return [shlex.split(match["arguments"] or "") for match in matches if match]


def recipe(file: str) -> str:
    """The block of docs/recipes.md that begins with a comment naming ``file``, without that comment."""
    for language in ("python", "yaml"):
        for block in blocks(ROOT / "docs/recipes.md", language):
            first, _, rest = block.partition("\n")
            if first == f"# {file}":
                return rest
    raise KeyError(f"no recipe of {file}")
