"""Every yaml composes, every key has a meaning written beside it, and every section fits its target."""

from __future__ import annotations

import inspect
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from caldpo.config.conf_dir import conf_dir
from caldpo.config.hydra_session import register_with_hydra
from caldpo.config.validation import check_config
from tests.helpers.documents import DOCUMENTS, commands

register_with_hydra()  # as a command does

CONF = conf_dir()
TOP_LEVEL = "caldpo.run_settings.RunSettings"
EVALUATION = "caldpo.evaluation.evaluation_settings.EvaluateSettings"
GENERATION = "caldpo.evaluation.evaluation_settings.GenerateSettings"
EXPORT = "caldpo.exporting.export_settings.ExportSettings"
PROPERTIES = "caldpo.theory.properties_settings.PropertiesSettings"
ESTIMATE = "caldpo.estimation.estimate_settings.EstimateSettings"
COMPARE = "caldpo.report.comparison.compare_runs"
LIST = "caldpo.report.run_listing.list_runs"
BENCHMARK = "caldpo.bench.benchmark_settings.BenchmarkSettings"
# what a person has to name on the command line, for options that cannot work without it
NAMED = {
    "data=local": ["data.train=train.jsonl"],
    "data=imdb": ["model=gpt2_large"],
    "data=imdb_sft": ["model=gpt2_large"],
    "model=random": ["model.tokenizer=folder"],
    "model=hf": ["model.path=folder", "data.train=train.jsonl"],
}


def options(group: str) -> list[str]:
    return sorted(p.stem for p in (CONF / group).glob("*.yaml") if p.stem != "base")


def composed(overrides: list[str], command: str = "train") -> DictConfig:
    GlobalHydra.instance().clear()
    named = [extra for o in overrides for extra in NAMED.get(o, [])] if command == "train" else []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(command, [*overrides, *named], return_hydra_config=False)


GROUPS = [
    *("loss", "rollouts", "reference", "adapter", "optim", "trainer"),
    *("logger", "callbacks", "data", "model", "experiment", "debug"),
]
EVERY_OPTION = [f"{group}={option}" for group in GROUPS for option in options(group)]


@pytest.mark.parametrize("override", EVERY_OPTION)
def test_every_option_composes_and_fits_its_targets(override: str) -> None:
    fits_its_targets(composed([override]), TOP_LEVEL)


@pytest.mark.parametrize("suite", options("suite"))
def test_every_suite_composes_under_its_own_name(suite: str) -> None:
    cfg = composed([f"suite={suite}"], "evaluate")
    fits_its_targets(cfg, EVALUATION)
    assert get_object(cfg[suite]["_target_"]).name == suite


def test_all_suites_go_together() -> None:
    cfg = composed([f"suite=[{','.join(options('suite'))}]"], "evaluate")
    fits_its_targets(cfg, EVALUATION)
    assert set(options("suite")) <= set(cfg)


def fits_its_targets(cfg: DictConfig, settings: str) -> None:
    check_config(cfg, settings)
    for path, section in sections(OmegaConf.to_container(cfg, resolve=False)):
        parameters = inspect.signature(get_object(section["_target_"])).parameters
        keys = set(section) - {"_target_"}
        assert keys <= set(parameters), f"{path}: {keys - set(parameters)} unknown to {section['_target_']}"
        needed = {n for n, p in parameters.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD}
        assert needed <= keys, f"{path}: {needed - keys} missing for {section['_target_']}"


def sections(node: Any, path: str = "") -> list[tuple[str, dict[str, Any]]]:
    found = []
    if isinstance(node, dict):
        if "_target_" in node:
            found.append((path, node))
        for key, value in node.items():
            found += sections(value, f"{path}.{key}" if path else str(key))
    return found


@pytest.mark.parametrize(
    ("loss", "model"),
    list(itertools.product(options("loss"), ["tiny", "zephyr", "pythia_2b8", "gpt2_large"])),
)
def test_every_loss_goes_with_every_model(loss: str, model: str) -> None:
    cfg = composed([f"loss={loss}", f"model={model}"])
    check_config(cfg, TOP_LEVEL)
    assert cfg.reward_beta == 0.1, "rewards/* are in one unit, whatever the loss's own beta"


def test_a_model_picks_its_data_and_the_command_line_wins() -> None:
    zephyr = composed(["model=zephyr"])
    assert zephyr.data.source.path == "HuggingFaceH4/ultrafeedback_binarized"
    assert (zephyr.data.train, zephyr.data.test) == ("train_prefs", "test_prefs")
    assert (zephyr.data.max_length, zephyr.data.max_prompt_length) == (1024, 512)
    assert (zephyr.optim.lr, zephyr.trainer.accelerator) == (5e-7, "gpu")
    for order in (["data=hh", "model=zephyr"], ["model=zephyr", "data=hh"]):
        chosen = composed(order)
        assert chosen.data.source.path == "Anthropic/hh-rlhf"
        assert chosen.data.max_length == 1024  # the limits are the model's
    local = composed(["model=zephyr", "data=local"])
    assert local.data.train == "train.jsonl"
    assert composed(["model=zephyr", "trainer=cpu", "optim.lr=1e-3"]).trainer.accelerator == "cpu"
    assert composed([]).data._target_ == zephyr.data._target_


@pytest.mark.parametrize("name", options("experiment"))
def test_experiments_name_themselves(name: str) -> None:
    assert composed([f"experiment={name}"]).name == name


def yaml_files() -> list[Path]:
    return sorted(CONF.rglob("*.yaml"))


@pytest.mark.parametrize("file", yaml_files(), ids=lambda p: str(p.relative_to(CONF)))
def test_every_key_is_explained(file: Path) -> None:
    """A comment on the key's line or right above it, but for defaults lists, targets and group headings.

    Keys that a model or an experiment sets in another section are explained in that section's own yaml, and
    Hydra's in Hydra's manual.
    """
    lines = file.read_text().splitlines()
    own = {"model": "model:", "experiment": None}.get(file.parent.name)
    inside, unexplained = None, []
    for above, line in zip(["", *lines], lines, strict=False):
        if line and not line[0].isspace():
            inside = line
        key = re.match(r"^\s*([\w.]+):(.*)$", line)
        if key is None or key[1] in ("_target_", "defaults", "schedule", "source") or "#" in line:
            continue
        if key[2].strip() == "" or above.strip().startswith("#") or key[1] == "name":
            continue
        if inside is not None and inside.startswith("hydra:"):
            continue
        if lines[0].startswith("# @package _global_") and file.parent.name != "conf" and inside != own:
            continue
        unexplained.append(line)
    assert unexplained == []


def test_every_file_says_what_it_is() -> None:
    for file in yaml_files():
        head = [line for line in file.read_text().splitlines() if not line.startswith("# @package")]
        assert head[0].startswith("#"), f"{file.relative_to(CONF)} begins without a comment"


def test_the_pages_have_commands() -> None:
    assert not DOCUMENTS or len(commands("train")) >= 5


@pytest.mark.parametrize("words", commands("train"), ids=" ".join)
def test_documented_trainings_compose(words: list[str]) -> None:
    if "--help" in words:
        return
    sweep = "-m" in words
    overrides = [w for w in words if w != "-m" and not w.startswith("hydra.")]
    lists = [[f"{o.split('=')[0]}={v}" for v in o.split("=", 1)[1].split(",")] if sweep else [o] for o in overrides]
    for job in itertools.product(*lists):
        check_config(composed(list(job)), TOP_LEVEL)


@pytest.mark.parametrize("words", commands("evaluate"), ids=" ".join)
def test_documented_evaluations_compose(words: list[str]) -> None:
    cfg = composed([word for word in words if "=" in word], "evaluate")
    check_config(cfg, EVALUATION)
    if cfg.model.path is None:
        assert cfg.run is not None or "=" not in words[0], "a run is named"


@pytest.mark.parametrize("words", commands("generate"), ids=" ".join)
def test_documented_generations_compose(words: list[str]) -> None:
    check_config(composed([word for word in words if "=" in word], "generate"), GENERATION)


@pytest.mark.parametrize("words", commands("export"), ids=" ".join)
def test_documented_exports_compose(words: list[str]) -> None:
    assert "=" not in words[0], "a run is named"
    check_config(composed([word for word in words if "=" in word], "export"), EXPORT)


@pytest.mark.parametrize("words", commands("estimate"), ids=" ".join)
def test_documented_estimates_compose(words: list[str]) -> None:
    check_config(composed(words, "estimate"), ESTIMATE)


@pytest.mark.parametrize("words", commands("compare"), ids=" ".join)
def test_documented_comparisons_compose(words: list[str]) -> None:
    assert "=" not in words[0], "a sweep is named"
    folders = f"sweep=[{','.join(word for word in words if '=' not in word)}]"
    check_config(composed([folders, *(word for word in words if "=" in word)], "compare"), COMPARE)


@pytest.mark.parametrize("words", commands("list"), ids=" ".join)
def test_documented_lists_compose(words: list[str]) -> None:
    check_config(composed([word if "=" in word else f"folder={word}" for word in words], "list"), LIST)


@pytest.mark.parametrize("words", commands("benchmark"), ids=" ".join)
def test_documented_benchmarks_compose(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from caldpo.bench.benchmark_settings import read_settings

    monkeypatch.chdir(tmp_path)
    Path("train.jsonl").touch()
    cfg = composed(words, "benchmark")
    check_config(cfg, BENCHMARK)
    read_settings(cfg)


@pytest.mark.parametrize("words", commands("study"), ids=" ".join)
def test_documented_studies_compose(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from caldpo.studies.study_settings import SETTINGS, find_study_problems

    monkeypatch.chdir(tmp_path)  # where no study has begun
    cfg = composed(words, "study")
    check_config(cfg, SETTINGS)
    assert [problem.key for problem in find_study_problems(cfg)] in ([], ["losses"])  # losses=[mine] is to be added


@pytest.mark.parametrize("words", commands("properties"), ids=" ".join)
def test_documented_properties_compose(words: list[str]) -> None:
    check_config(composed(words, "properties"), PROPERTIES)


def test_suites_named_in_the_text_of_the_pages_have_such_keys() -> None:
    suites = options("suite")
    cfg = composed([f"suite=[{','.join(suites)}]"], "evaluate")
    text = "".join(path.read_text() for path in DOCUMENTS)
    named = set(re.findall(rf"\b({'|'.join(suites)})\.(\w+)=", text))
    assert not DOCUMENTS or len(named) > 6
    assert {key for suite, key in named if key not in cfg[suite]} == set()
