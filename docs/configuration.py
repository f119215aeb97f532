"""Write configuration.md, the page of every configuration key, from the comments in conf/: ``make docs`` runs it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

CONF = Path(__file__).resolve().parents[1] / "conf"
PAGE = Path(__file__).with_suffix(".md")
COMMANDS = (
    *("train", "hydra_base", "evaluate", "generate", "target", "export", "compare", "list", "estimate"),
    *("benchmark", "properties", "study"),
)
GROUPS = (
    *("loss", "rollouts", "model", "data", "adapter", "reference"),
    *("optim", "trainer", "callbacks", "logger", "suite"),
)
HEAD = """# Configuration

Every key with its default and meaning, and every option of every group. `group=option` picks a yaml of `conf/`,
`group.key=value` changes a key; see [Training](training.md). Where only some options have a key, the options are named
in brackets; where a key means different things in different options, it has a row for each meaning. This page is made
from the comments in `conf/`. After a change there, regenerate it:

```sh
python docs/configuration.py
```
"""
SECTION = {
    "train": "`python -m caldpo.train`",
    "hydra_base": "Folders of runs and sweeps",
    "per_loss": "Settings of a loss in one experiment, or with one model",
    "target": "Keys of `caldpo.evaluate` and `caldpo.generate`",
}
HYDRAS_OWN = ("hydra.help.", "hydra.hydra_logging.", "hydra.job_logging.", "hydra.callbacks.")  # explained in place
LINE = re.compile(r"(?P<indent> *)(?:- )?(?P<key>[\w./-]+): ?(?P<rest>.*)")


@dataclass(frozen=True)
class Key:
    """One key of a yaml: its dotted name as on the command line, its default, and the comment that explains it."""

    name: str
    value: str
    meaning: str


@dataclass(frozen=True)
class ConfigFile:
    """A yaml of conf/: the comment at its top, its keys, and the options that its defaults list picks."""

    name: str
    about: str
    keys: tuple[Key, ...]
    picks: tuple[str, ...]


def read(path: Path) -> ConfigFile:
    """Read the keys of a yaml with the comments at their lines or above them."""
    lines = path.read_text(encoding="utf-8").splitlines()
    package = next((line.split()[-1] for line in lines if line.startswith("# @package")), None)
    group = path.parent.relative_to(CONF).as_posix()
    prefix = {"_global_": "", None: "" if group == "." else f"{group.replace('/', '.')}."}.get(package, f"{package}.")
    lines = [line for line in lines if not line.startswith("# @package")]
    about = []
    while lines and lines[0].startswith("#"):
        about.append(lines.pop(0).removeprefix("#").removeprefix(" "))
    keys, picks, above, parents, text_from = [], [], [], [], None
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if text_from is not None and (not line.strip() or indent > text_from):
            continue  # inside a block of text
        text_from = None
        match = LINE.fullmatch(line)
        if line.lstrip().startswith("#"):
            above.append(line.strip("# "))
        if match is None or line.lstrip().startswith("#"):
            above = above if line.lstrip().startswith("#") else []
            continue
        value, _, beside = match["rest"].partition("#") if match["rest"].startswith("#") else _split(match["rest"])
        parents = [(depth, name) for depth, name in parents if depth < indent] + [(indent, match["key"])]
        name = ".".join(part for _, part in parents)
        if line.lstrip().startswith("- override /"):
            picks.append(f"{line.split('override /')[1].split(':')[0]}={value}")
        elif not name.startswith("defaults") and match["key"] != "_target_" and value:
            keys.append(Key(prefix + name, value, beside.strip() or " ".join(above)))
        if value.startswith("|"):
            text_from = indent
        above = []
    return ConfigFile(path.stem, _paragraph(about), tuple(keys), tuple(picks))


def _split(rest: str) -> tuple[str, str, str]:
    value, sign, comment = rest.partition(" #")
    return value.strip(), sign, comment


def _paragraph(lines: Iterable[str]) -> str:
    """Join comment lines; an indented line is a command, which stays code."""
    parts = [f"`{line.strip()}`" if line.startswith("  ") else escaped(line.strip()) for line in lines]
    return " ".join(parts)


def escaped(text: str) -> str:
    """Escape what a table or Markdown would read as its own."""
    return re.sub(r"([|*<>\[\]])", r"\\\1", text)


def code(text: str) -> str:
    """Set a value as code in a cell of a table."""
    return "`" + text.replace("|", "\\|") + "`"


def key_table(files: list[ConfigFile], prefix: str = "") -> list[str]:
    """Make one table of the keys of several options: a row per key, or per meaning where options differ in it."""
    by_name: dict[str, list[tuple[str, Key]]] = defaultdict(list)
    for file in files:
        for key in file.keys:
            if key.name.startswith(prefix) and key.meaning and not key.name.startswith(HYDRAS_OWN):
                by_name[key.name].append((file.name, key))
    if not by_name:
        return []
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for name, keys in by_name.items():
        for meaning, options in _by_meaning(keys).items():
            values: dict[str, list[str]] = defaultdict(list)
            for option, value in options.items():
                values[value].append(option)
            common = max(values, key=lambda value: ("base" in values[value], len(values[value])))
            cells = [code(common)] + [f"{code(v)} ({', '.join(o)})" for v, o in values.items() if v != common]
            of = f" *({', '.join(options)})*" if len(options) < len(files) and "base" not in options else ""
            lines.append(f"| `{name}` | {', '.join(cells)} | {escaped(meaning)}{of} |")
    return [*lines, ""]


def _by_meaning(keys: list[tuple[str, Key]]) -> dict[str, dict[str, str]]:
    """Group one key's values, by option, by its meaning; that of a group's base yaml holds for every option."""
    base = next((key.meaning for option, key in keys if option == "base"), None)
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    for option, key in keys:
        groups[base or key.meaning][option] = key.value
    return groups


def option_table(group: str, files: list[ConfigFile]) -> list[str]:
    """Make the table of a group's options, with what each sets in other groups."""
    lines = ["| option | what | it sets |", "|---|---|---|"]
    for file in files:
        other = [k for k in file.keys if not k.name.startswith(f"{group.replace('/', '.')}.") and group != "suite"]
        sets = [code(pick) for pick in file.picks] + [code(f"{key.name}={key.value}") for key in other]
        if file.name != "base":
            lines.append(f"| `{group}={file.name}` | {file.about} | {' '.join(sets)} |")
    if all(line.endswith("|  |") for line in lines[2:]):
        lines = ["| option | what |", "|---|---|", *(line.removesuffix("  |") for line in lines[2:])]
    return [*lines, ""]


def page() -> str:
    """Make the whole page."""
    lines = [HEAD]
    commands = sorted(CONF.glob("*.yaml"), key=lambda path: (_place(path.stem, COMMANDS), path.stem))
    for path in commands:
        file = read(path)
        title = SECTION.get(path.stem, f"`python -m caldpo.{path.stem}`")
        lines += [f"## {title}", "", f"`conf/{path.name}`. {file.about}", "", *key_table([file])]
    groups = {path.parent for path in CONF.rglob("*.yaml")} - {CONF}
    for folder in sorted(groups, key=lambda path: (_place(path.name, GROUPS), path)):
        group = folder.relative_to(CONF).as_posix()
        files = [read(path) for path in sorted(folder.glob("*.yaml"))]
        prefix = "" if group == "suite" else f"{group.replace('/', '.')}."
        lines += [f"## `{group}`", "", *option_table(group, files), *key_table(files, prefix)]
    return "\n".join(lines).rstrip() + "\n"


def _place(name: str, order: tuple[str, ...]) -> int:
    return order.index(name) if name in order else len(order)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
