"""README.md and docs/: every command is known, every name and link is real, every recipe works, the site builds."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import runpy
import shlex
import subprocess
import sys
import types
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate

import caldpo
import caldpo.data.formats
import caldpo.losses
import caldpo.modifiers
from caldpo import metric_definitions
from caldpo.config.validation import check_config
from caldpo.data.formats import detect, formats
from caldpo.data.pair import PreferencePair, TokenizedPair
from caldpo.evaluation.evaluated_policy import EvaluatedPolicy
from caldpo.modifiers.modified_loss import modified
from caldpo.resume.config_diff import IGNORED
from caldpo.types import PairLogps
from tests import test_metrics
from tests.data import test_formats
from tests.data.format_rows import uf
from tests.evaluation import test_suites
from tests.helpers.documents import DOCUMENTS, ROOT, blocks, commands, recipe, shell_lines
from tests.losses import test_losses
from tests.test_configs import CONF, TOP_LEVEL

pytestmark = pytest.mark.skipif(not DOCUMENTS, reason="an installed wheel has no pages")

# by tests/test_configs.py
COMPOSED = (
    *("train", "evaluate", "generate", "export", "compare", "list", "estimate"),
    *("benchmark", "properties", "study"),
)
LINES_OF_A_TABLE = ("tests/losses", "tests/evaluation", "tests/test_metrics.py", "caldpo/metrics.py")
# files that the recipes would add, and placeholders
NOT_HERE = re.compile(r"/(x|cpo_simpo|score_weight|ranked|longest|mine)\.|[A-Z]{2,}|^caldpo/conf$")


def text_of(path: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)


@pytest.mark.parametrize("line", shell_lines())
def test_every_command_is_known(line: str) -> None:
    words = [word for word in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=\S+", word)]
    for part in " ".join(words).split(" && "):
        check_command(part.split())


def check_command(words: list[str]) -> None:
    """Fail unless a command is composed by another test, or names a target, an extra or a file that is there."""
    match words:
        case ["make", *targets]:
            named = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
            assert set(targets) <= named
        case ["pip", "install", *rest]:
            extras = re.findall(r"\.\[([\w,]+)\]", " ".join(rest))
            assert extras
            assert set(extras[0].split(",")) <= set(optional_dependencies())
        case ["python" | "srun" | "torchrun", *_, module] | ["python" | "srun" | "torchrun", *_, module, _, _] if (
            module in ("caldpo.benchmark", "caldpo.train")
        ):
            pass
        case ["python", "-m", "pytest", *rest]:
            assert all((ROOT / word).exists() for word in rest if word.startswith("tests/"))
        case ["python", "-m", module, *_] if module.startswith(("tests.", "caldpo.bench.")):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
        case ["python", script] if script.endswith(".py"):
            assert (ROOT / script).is_file()
        case ["python", "-m", "caldpo.wandb_workspace", place]:
            assert place.count("/") == 1
        case ["pre-commit", "install"]:
            assert (ROOT / ".pre-commit-config.yaml").is_file()
        case _:
            module = words[words.index("-m") + 1]
            assert module.startswith("caldpo.")
            assert module.removeprefix("caldpo.") in COMPOSED


def optional_dependencies() -> dict[str, list[str]]:
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_every_kind_of_command_is_composed() -> None:
    assert all(commands(name) for name in COMPOSED)


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_pages_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        path = page.parent / file if file else page
        assert path.is_file(), target
        headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M) if anchor else []
        assert not anchor or anchor in [slug(heading) for heading in headings], target


def slug(heading: str) -> str:
    """The anchor that a heading gets, here as on a code host."""
    return re.sub(r"[^\w -]", "", heading.lower().replace("`", "")).strip().replace(" ", "-")


@pytest.mark.parametrize(
    "page", [path for path in DOCUMENTS if path.name != "changelog.md"], ids=lambda path: path.name
)
def test_files_that_are_named_are_there(page: Path) -> None:
    named = re.findall(r"`((?:caldpo|conf|docs|tests)/[\w./-]*)`", page.read_text())
    for name in named:
        assert NOT_HERE.search(name) or (ROOT / name).exists(), name
    for module in re.findall(r"\b(?:from|import) (caldpo[\w.]*)", page.read_text()):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or path.is_dir(), module


@pytest.mark.parametrize(
    "page", [p for p in DOCUMENTS if p.name not in ("changelog.md", "configuration.md")], ids=lambda path: path.name
)
def test_keys_that_are_named_are_keys(page: Path) -> None:
    known = set(re.findall(r"^\| `([\w./]+)` \|", (ROOT / "docs/configuration.md").read_text(), re.M))
    known |= {"hydra.run.dir", "hydra.sweep.dir", "hydra.sweeper.params", "data.source.config", "data.source.revision"}
    named = set(re.findall(r"(?:^|[\s`'])((?:[a-z_]+\.)+[a-z_]+)=", page.read_text(), re.M))
    groups = {
        "data",
        "loss",
        "modifier",
        "model",
        "optim",
        "trainer",
        "adapter",
        "reference",
        "callbacks",
        "logger",
        "benchmark_model",
    }
    assert {key for key in named if key.split(".")[0] in groups} <= known


def test_keys_that_may_change_at_resume_are_ignored() -> None:
    text = " ".join((ROOT / "docs/resume.md").read_text().split())
    (listed,) = re.findall(r"may change, such as (.*?); the whole list is `IGNORED`", text)
    assert {key.removesuffix("*") for key in re.findall(r"`([^`]+)`", listed)} <= set(IGNORED)


def test_the_readme_is_short_and_begins_with_the_picture() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 200
    assert any(line.startswith("![") and "docs/reward_dynamics.svg" in line for line in lines[:6])
    assert (ROOT / "docs/reward_dynamics.svg").stat().st_size < 2**19


def test_every_page_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert {page for page in pages if f"docs/{page}" not in readme} == set()


@pytest.mark.parametrize("name", ["configuration", "metrics"])
def test_a_generated_page_is_current(name: str) -> None:
    page = runpy.run_path(str(ROOT / f"docs/{name}.py"))["page"]()
    assert page == (ROOT / f"docs/{name}.md").read_text(), f"python docs/{name}.py"


def options(group: str) -> set[str]:
    """The options of a group of conf/; of experiments without the stages and grids of the same name."""
    names = {path.stem for path in (CONF / group).glob("*.yaml")} - {"base"}
    return {re.sub("_(sft|beta)$", "", name) for name in names} if group == "experiment" else names


def cells(file: str, head: str) -> list[list[str]]:
    """The rows, as cells, of the table whose first line begins with ``head``."""
    (table,) = re.findall(rf"^{re.escape(head)}.*\n\|-.*\n((?:\|.*\n)+)", (ROOT / file).read_text(), re.M)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in table.splitlines()]


def names_in(cell: str) -> set[str]:
    return set(re.findall(r"`([a-z]\w*)`", cell))


GROUPS = dict(row for row in cells("docs/training.md", "| group | options |")) if DOCUMENTS else {}
LISTS = [  # tables written by hand: file, group of conf/, and the options that the table lists
    *[
        (file, group, set().union(*(names_in(row[0]) for row in cells(file, f"| `{group}=` |"))))
        for file, group in (
            *(("README.md", "loss"), ("docs/losses.md", "loss"), ("docs/losses.md", "modifier")),
            ("docs/evaluation.md", "suite"),
        )
        if DOCUMENTS
    ],
    *(("docs/training.md", group.strip("`"), names_in(listed)) for group, listed in GROUPS.items()),
]


@pytest.mark.parametrize(("file", "group", "listed"), LISTS, ids=[f"{file}-{group}" for file, group, _ in LISTS])
def test_a_table_written_by_hand_lists_every_option(file: str, group: str, listed: set[str]) -> None:
    missing, unknown = options(group) - listed, listed - options(group)
    assert not missing, f"{file}: its table of `{group}` options lacks {', '.join(sorted(missing))}"
    assert not unknown, f"{file}: its table of `{group}` options names {', '.join(sorted(unknown))}, which conf/ lacks"


def test_the_table_of_groups_lists_every_group_of_a_training() -> None:
    groups = {path.parent.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml")} - {
        ".",
        "suite",
        "benchmark_model",
    }
    assert {group.strip("`") for group in GROUPS} == groups, "docs/training.md: its table of groups"


def test_a_key_with_several_meanings_has_a_row_for_each() -> None:
    page = runpy.run_path(str(ROOT / "docs/configuration.py"))["page"]()
    rows = re.findall(r"^\| `loss.beta` \|.*$", page, re.M)
    named = [set(re.findall(r"\w+", row.rpartition("*(")[2])) for row in rows]
    with_beta = {path.stem for path in (CONF / "loss").glob("*.yaml") if "beta" in yaml.safe_load(path.read_text())}
    assert sum(map(len, named)) == len(with_beta)
    assert set().union(*named) == with_beta
    assert {"dpo", "rso"} in named
    assert {"ipo"} in named


def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="needs mkdocs-material, of the [docs] extra")
    config = (ROOT / ".mkdocs.yml").as_posix()
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-f", config, "-d", str(tmp_path)]
    done = subprocess.run(
        command, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    outside = re.findall(r'(?:src|href)="(https?://[^"]+\.(?:js|css|woff2?))', (tmp_path / "index.html").read_text())
    assert outside == [], "the site is read without the network"


def test_every_format_has_an_example_row() -> None:
    text = (ROOT / "docs/data.md").read_text()
    parts = text.split("```json\n")
    rows = {re.findall(r"^`(\w+)` \(", before, re.M)[-1]: after.split("\n")[0] for before, after in pairwise(parts)}
    assert set(rows) == set(formats())
    for name, row in rows.items():
        assert detect(json.loads(row)) == name
        found = formats()[name].parse(json.loads(row))
        responses = [found.response] if isinstance(found, PreferencePair) else found.responses
        assert all(responses)
    (readme,) = blocks(ROOT / "README.md", "json")
    assert [detect(json.loads(row)) for row in readme.splitlines()] == ["trl_standard", "trl_conversational"]


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda path: path.name)
def test_python_compiles(page: Path) -> None:
    for block in blocks(page, "python"):
        if not block.lstrip("# \n").startswith(LINES_OF_A_TABLE):
            compile(block, page.name, "exec")


def test_the_loss_of_the_python_page_computes(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = (block for block in blocks(ROOT / "docs/python_api.md", "python") if "PairLogps" in block)
    exec(compile(block, "python_api.md", "exec"), {"caldpo": caldpo})
    assert "calibration" in capsys.readouterr().out


def test_recipe_of_a_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpo_simpo.py").write_text(recipe("caldpo/losses/cpo_simpo.py"))
    monkeypatch.setattr(caldpo.losses, "__path__", [*caldpo.losses.__path__, str(tmp_path)])
    loss = instantiate(yaml.safe_load(recipe("conf/loss/cpo_simpo.yaml")))
    row = eval("{" + recipe("tests/losses/test_losses.py") + "}", vars(test_losses))["cpo_simpo"]
    logps = test_losses.to_logps(test_losses.PAIRS)
    expected = torch.tensor([row.value(pair) for pair in test_losses.PAIRS], dtype=torch.float64)
    torch.testing.assert_close(loss(logps).loss.detach(), expected, rtol=1e-12, atol=1e-12)
    for gradient, sign in zip(test_losses.gradients(loss, logps), row.signs, strict=True):
        assert (gradient.sign() == sign).all()
    assert not loss.needs_reference
    sys.modules.pop("caldpo.losses.cpo_simpo", None)


def test_recipe_of_a_modifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "score_weight.py").write_text(recipe("caldpo/modifiers/score_weight.py"))
    monkeypatch.setattr(caldpo.modifiers, "__path__", [*caldpo.modifiers.__path__, str(tmp_path)])
    modifier = instantiate(yaml.safe_load(recipe("conf/modifier/score_weight.yaml")))
    loss = modified(test_losses.load("dpo"), {modifier.name: modifier})
    logps = test_losses.to_logps(test_losses.PAIRS)
    weights = [1 - math.exp(-abs(pair.sw - pair.sl)) for pair in test_losses.PAIRS]
    plain = [test_losses.ROWS["dpo"].value(pair) for pair in test_losses.PAIRS]
    expected = torch.tensor([w * x for w, x in zip(weights, plain, strict=True)], dtype=torch.float64)
    torch.testing.assert_close(loss(logps).loss.detach(), expected, rtol=1e-12, atol=1e-12)
    assert loss.needs_scores
    sys.modules.pop("caldpo.modifiers.score_weight", None)


def test_recipe_of_a_row_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ranked.py").write_text(recipe("caldpo/data/formats/ranked.py"))
    package = caldpo.data.formats
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    formats.cache_clear()
    try:
        names = {**vars(test_formats)}
        exec(recipe("tests/data/test_formats.py"), names)
        name, row, pair = names["EXAMPLES"][-1]
        assert detect(row) == name
        assert formats()[name].parse(row) == pair
        assert set(formats()[name].COLUMNS) <= set(row)
        assert detect(uf() | row) == "ultrafeedback", "rows with the responses of another format are excluded"
        (example,) = blocks(ROOT / "docs/recipes.md", "json")
        assert json.loads(example) == row
    finally:
        formats.cache_clear()
        sys.modules.pop("caldpo.data.formats.ranked", None)


def test_recipe_of_a_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("longest_suite")
    monkeypatch.setitem(sys.modules, "longest_suite", module)
    exec(compile(recipe("longest_suite.py"), "longest_suite.py", "exec"), vars(module))
    text = recipe("own/suite/longest.yaml")
    suite = instantiate(yaml.safe_load(text))
    assert text.startswith(f"# @package {suite.name}\n")
    subject = types.SimpleNamespace(texts=[types.SimpleNamespace(chosen=c) for c in ("a", "a b c")], pairs=[1, 2])
    result = suite.run(subject)
    assert {name: measure.value for name, measure in result.measures.items()} == {"words": 3}


def test_recipe_of_the_row_of_a_suite(tmp_path: Path) -> None:
    row = eval("{" + recipe("tests/evaluation/test_suites.py") + "}", vars(test_suites))["longest"]
    (tmp_path / "test.jsonl").write_text('{"chosen": "a"}\n{"chosen": "a b c"}\n')
    assert (row.measure, row.expected(tmp_path / "run")) == ("words", 3)


def test_what_a_suite_may_read_is_there() -> None:
    (section,) = re.findall(r"^## An evaluation suite$.*?(?=^## )", (ROOT / "docs/recipes.md").read_text(), re.M | re.S)
    lines = re.findall(r"^- `policy\.(\w+)`: .*$", section, re.M)
    assert len(lines) == 5
    assert all(hasattr(EvaluatedPolicy, name) for name in lines)
    for kind, line in ((TokenizedPair, "pairs"), (PreferencePair, "texts")):
        (fields,) = re.findall(rf"^- `policy\.{line}`: .*: (.*)\.$", section, re.M)
        assert set(re.findall(r"`(\w+)`", fields)) <= {field.name for field in dataclasses.fields(kind)}


def test_recipe_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/mine.yaml").write_text(recipe("conf/model/mine.yaml"))
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"hydra.searchpath=[file://{tmp_path}]", "model=mine"])
    check_config(cfg, TOP_LEVEL)
    assert (cfg.model.path, cfg.data.train) == ("Qwen/Qwen3-0.6B", "train_prefs")


def test_recipe_of_a_metric() -> None:
    ones = torch.ones(2)
    logps = PairLogps(ones, ones, ones - 3, ones, 2 * ones, ones)
    names = {"a": logps.chosen_log_ratio, "logps": logps}
    metrics = eval("{" + recipe("caldpo/metrics.py, in pair_metrics") + "}", names)
    assert {name: value.tolist() for name, value in metrics.items()} == {"per_token/log_ratio": [1.5, 1.5]}
    defined = {**vars(metric_definitions)}
    exec(recipe("caldpo/metric_definitions.py"), defined)
    definition = defined["LOG_RATIO_PER_TOKEN"]
    assert [definition.name] == [*metrics]
    assert isinstance(metric_definitions.WITH_REFERENCE, tuple)
    assert isinstance(metric_definitions.WITHOUT_REFERENCE, tuple)
    assert definition.name not in {metric.name for metric in metric_definitions.DEFINITIONS}
    by_hand = eval("{" + recipe("tests/test_metrics.py, in test_values_by_hand") + "}", vars(test_metrics))
    logps = test_metrics.logps()
    names = {"a": logps.chosen_log_ratio, "logps": logps}
    metrics = eval("{" + recipe("caldpo/metrics.py, in pair_metrics") + "}", names)
    assert {name: value.tolist() for name, value in metrics.items()} == by_hand
