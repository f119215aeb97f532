"""The paper's recipes run through their real loading code, on stand-ins in the hub's own formats."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from caldpo.config.hydra_session import per_loss_options
from caldpo.evaluate import main as evaluate
from tests.helpers.command import train
from tests.helpers.messages import names
from tests.helpers.tiny import tiny_model, tiny_tokenizer
from tests.test_configs import CONF, composed

TEMPLATE = (
    "{% for m in messages %}{{ m['content'] + ' ' }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
# what a CPU needs instead of the recipe's GPU, and a handful of pairs instead of its thousands
HERE = [
    "trainer=cpu",
    "trainer.precision=32-true",
    "trainer.max_steps=2",
    "trainer.accumulate_grad_batches=2",
    "trainer.progress_bar=false",
    "callbacks.samples.max_new_tokens=4",
    "logger=csv",
    "data.max_unknown=1",  # the tiny vocabularies here have no words of the data sets
    "hydra.run.dir=run",
]


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def ultrafeedback(folder: Path) -> None:
    def row(i: int) -> dict[str, Any]:
        def turns(text: str) -> list[dict[str, str]]:
            return [{"role": "user", "content": f"w{i}"}, {"role": "assistant", "content": text}]

        chosen, rejected = turns(f"w{i} w1"), turns(f"w{i} w2")
        scores = {"score_chosen": 8.0, "score_rejected": 3.5}
        return {"prompt": f"w{i}", "prompt_id": "0" * 64, "chosen": chosen, "rejected": rejected} | scores

    parquet(folder / "data/train_prefs-00000-of-00001.parquet", [row(i) for i in range(10)])
    parquet(folder / "data/test_prefs-00000-of-00001.parquet", [row(i) for i in range(10, 14)])


def hh(folder: Path) -> None:
    for split, numbers in (("train", range(10)), ("test", range(10, 14))):
        rows = [
            {side: f"\n\nHuman: w{i}\n\nAssistant: w{i} {end}" for side, end in (("chosen", "w1"), ("rejected", "w2"))}
            for i in numbers
        ]
        path = folder / "harmless-base" / f"{split}.jsonl.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def tldr(folder: Path) -> None:
    def row(i: int) -> dict[str, Any]:
        post = {"id": str(i), "post": f"w{i} w3", "title": f"w{i}", "subreddit": "tifu", "site": None, "article": None}
        return {"info": post, "summaries": [{"text": " w4 w5"}, {"text": f" w{i}"}], "choice": i % 2}

    parquet(folder / "comparisons/train/0000.parquet", [row(i) for i in range(10)])
    parquet(folder / "comparisons/validation/0000.parquet", [row(i) for i in range(10, 14)])


def ultrachat(folder: Path) -> None:
    def row(i: int) -> dict[str, Any]:
        turns = [("user", f"w{i}"), ("assistant", "w2 w1"), ("user", "w3"), ("assistant", f"w{i} w1")]
        messages = [{"role": role, "content": text} for role, text in turns]
        return {"prompt": f"w{i}", "prompt_id": "0" * 64, "messages": messages}

    parquet(folder / "data/train_sft-00000-of-00001.parquet", [row(i) for i in range(10)])
    parquet(folder / "data/test_sft-00000-of-00001.parquet", [row(i) for i in range(10, 14)])


def tldr_sft(folder: Path) -> None:
    def row(i: int) -> dict[str, Any]:
        return {"id": str(i), "subreddit": "tifu", "title": f"w{i}", "post": f"w{i} w3", "summary": f"w4 w{i}"}

    parquet(folder / "data/train-00000-of-00001.parquet", [row(i) for i in range(10)])
    parquet(folder / "data/test-00000-of-00001.parquet", [row(i) for i in range(10, 14)])


def imdb(folder: Path) -> None:
    """Reviews of thirteen words, of which the first eight are no two's alike."""
    rows = [{"text": " ".join(f"w{(3 * i + 7 * j) % 40}" for j in range(13)), "label": i % 2} for i in range(14)]
    parquet(folder / "plain_text/train-00000-of-00001.parquet", rows)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a small model and the rows of an experiment's data in the current folder."""

    def make(architecture: str, build: Any) -> None:
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained("model")
        tiny_model(architecture).save_pretrained("model")
        build(tmp_path / "pairs")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return make


def trained(experiment: str, *overrides: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Summary and configuration of a run of the experiment on the stand-ins."""
    train(f"experiment={experiment}", "model.path=model", "data.source.path=pairs", *HERE, *overrides)
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["start_difference"] == 0
    assert summary["metrics"]["val/logps/chosen"] < 0
    return summary, yaml.safe_load(Path("run/config.yaml").read_text())


@pytest.mark.parametrize(
    ("experiment", "architecture", "build"),
    [
        ("ultrafeedback_zephyr", "mistral", ultrafeedback),
        ("hh_pythia", "gpt_neox", hh),
        ("hh_pythia_sft", "gpt_neox", hh),
        ("tldr_pythia", "gpt_neox", tldr),
    ],
)
def test_recipe(experiment: str, architecture: str, build: Any, stand_in: Any) -> None:
    stand_in(architecture, build)
    summary, config = trained(experiment)
    assert summary["data"]["train"]["pairs"] == 10
    assert summary["data"]["test"]["pairs"] == 4
    assert config["optim"]["lr"] == 5e-7
    assert config["model"]["gradient_checkpointing"] is True
    assert config["model"]["dtype"] == "float32"  # a step of 5e-7 is lost in bfloat16


@pytest.mark.parametrize(
    ("experiment", "architecture", "build", "lr"),
    [
        ("ultrafeedback_zephyr_sft", "mistral", ultrachat, 2e-5),
        ("tldr_pythia_sft", "gpt_neox", tldr_sft, 5e-7),
        ("imdb_gpt2_sft", "gpt2", imdb, 1e-5),
    ],
)
def test_sft_stage_on_demonstrations(
    experiment: str, architecture: str, build: Any, lr: float, stand_in: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """One response a row; its policy is where the experiment that it comes before starts from."""
    stand_in(architecture, build)
    summary, config = trained(experiment, "model.tokenizer=model", "optim.lr=0.05", "data.test_fraction=0.3")
    data = summary["data"]
    assert data["train"]["pairs"] + data["test"]["pairs"] == 14
    assert summary["metrics"]["val/log_ratios/chosen"] > 0  # what is imitated becomes likelier
    assert composed([f"experiment={experiment}"]).optim.lr == lr
    assert config["loss"]["_target_"].endswith("SFT")
    assert Path("run/policy/config.json").is_file()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        evaluate(["run", "suite=preference"])
    held_out = data["test"]["pairs"]
    names(capsys.readouterr().err, "suite=preference", f"{held_out} of {held_out}")


def test_demonstrations_teach_no_preference(stand_in: Any, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in("gpt2", imdb)
    with pytest.raises(SystemExit):
        train("experiment=imdb_gpt2_sft", "loss=dpo", "model.path=model", "data.source.path=pairs", *HERE)
    names(capsys.readouterr().err, "error:", "rejected", "loss")


EXPERIMENTS = ("ultrafeedback_zephyr", "hh_pythia", "tldr_pythia", "imdb_gpt2")
BETAS = {  # in the order of EXPERIMENTS; what is said to be published, as it was published
    "dpo": (0.01, 0.1, 0.5, 0.1),
    "cal_dpo": (1e-3, 0.1, 0.001, 0.1),
    "ipo": (0.01, 0.1, 0.1, 0.1),
    "cpo": (0.1, 0.1, 0.1, 0.1),
}


@pytest.mark.parametrize("loss", sorted(BETAS))
def test_each_loss_has_its_own_beta_in_each_recipe(loss: str) -> None:
    for experiment, beta in zip(EXPERIMENTS, BETAS[loss], strict=True):
        cfg = composed([f"experiment={experiment}", f"loss={loss}"])
        assert (cfg.loss.beta, cfg.reward_beta) == (beta, 0.1), experiment
    assert composed([f"experiment={experiment}", f"loss={loss}", "loss.beta=0.3"]).loss.beta == 0.3


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_loss_of_a_recipe_says_where_its_settings_are_from(experiment: str) -> None:
    swept = composed_with_hydra(experiment).hydra.sweeper.params.loss.split(",")
    text = (CONF / "per_loss.yaml").read_text()
    _, _, recipe = text.partition(f"\n{experiment}:\n")
    lines = re.findall(r"((?:^  #.*\n)*)^  (\w+): (.*)$", recipe.partition("\n\n")[0], re.MULTILINE)
    settings = {loss: above + beside for above, loss, beside in lines}
    assert set(swept) == {"dpo", "f_dpo", "ipo", "slic", "cpo", "cal_dpo"}
    assert settings.keys() >= set(swept)  # others have settings here where someone published some
    sources = ("# ours", "published", "Rafailov", "release", "alignment-handbook", "huggingface.co")
    for loss, written in settings.items():
        assert any(source in written for source in sources), loss


@pytest.mark.parametrize("option", sorted(per_loss_options()))
def test_settings_of_a_loss_are_taken_by_its_recipe_and_fit_it(option: str) -> None:
    """What a recipe sets for a loss arrives where that loss is chosen, whatever sets it: a model or an experiment."""
    recipe = next(name for name in (*EXPERIMENTS, "tiny", "hf") if option.startswith(f"{name}_"))
    chosen = [f"experiment={recipe}"] if recipe in EXPERIMENTS else [f"model={recipe}"]
    cfg = composed([*chosen, f"loss={option.removeprefix(f'{recipe}_')}"])
    for section, keys in per_loss_options()[option].items():
        written = OmegaConf.to_container(cfg[section], resolve=False)
        assert written | keys == written
    assert "per_loss" not in cfg


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_grids_over_beta_reach_down_to_5e_5(experiment: str) -> None:
    params = composed_with_hydra(f"{experiment}_beta").hydra.sweeper.params
    grid = [float(beta) for beta in params["loss.beta"].split(",")]
    assert min(grid) == 5e-5
    assert sorted(grid) == grid
    assert "cal_dpo" in params.loss.split(",")
    for beta in grid:
        assert composed([f"experiment={experiment}_beta", f"loss.beta={beta}"]).loss.beta == beta


def composed_with_hydra(experiment: str) -> Any:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [f"experiment={experiment}"], return_hydra_config=True)
