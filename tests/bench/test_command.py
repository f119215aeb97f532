"""``python -m caldpo.benchmark`` as a person types it."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from caldpo.bench import benchmark_run as run
from caldpo.bench.benchmark_settings import VARIANTS, BenchmarkModel
from caldpo.bench.worker import OutOfMemoryError
from caldpo.bench.worker_job import Answer, Job, digest, write
from caldpo.benchmark import main
from caldpo.config.conf_dir import conf_dir
from caldpo.config.validation import check_config
from tests.bench.stopped_command import stopped
from tests.helpers.messages import names

TINY = ["benchmark_model=tiny", "repeats=1", "steps=2", "micro_batch_size=3", "hydra.run.dir=out"]
HEAVY = ("torch", "transformers", "trl", "datasets", "numpy", "rich")


def result() -> dict:
    return json.loads(Path("out/benchmark.json").read_text())


MODELS = [p.stem for p in sorted((conf_dir() / "benchmark_model").glob("*.yaml"))]


@pytest.mark.parametrize("model", MODELS)
def test_every_model_fits_its_signature(model: str) -> None:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("benchmark", [f"benchmark_model={model}"])
    check_config(cfg, "caldpo.bench.benchmark_settings.BenchmarkSettings")
    assert set(cfg.benchmark_model) - {"_target_"} == set(inspect.signature(BenchmarkModel).parameters)


def test_every_variant_is_explained(capsys) -> None:
    code, text = stopped(capsys, "--help")
    assert code == 0
    explained = {line.split()[0] for line in text.splitlines() if line.startswith("  ") and len(line.split()) > 1}
    assert set(VARIANTS) <= explained
    assert MODELS
    assert set(MODELS) <= explained


@pytest.mark.parametrize(
    ("overrides", "facts", "remedy"),
    [
        (["variants=[trl,caldpoo]"], ("variants=['trl', 'caldpoo']", "caldpo?", "trl, trl_no_checkpointing"), None),
        (["variants=[trl,caldpo_resident]"], ("caldpo_resident", "caldpo_frozen"), None),
        (["variants=trl"], ("variants=trl", "a list", "variant", "--help"), "variants=[trl]"),
        (["stepss=3"], ("stepss", "steps"), "warmup_steps"),
        (["benchmark_model=vocab"], ("benchmark_model=vocab", "vocabulary"), "mistral_7b_lora"),
        (["benchmark_model.hidden=3"], ("benchmark_model.hidden", "hidden_size"), "num_heads"),
        (["warmup_steps=0"], ("warmup_steps=0", "> 0"), None),
        (["variants=[trl,trl]"], ("variants=['trl', 'trl']", "twice"), None),
        (["variants=[]"], ("variants=[]", "nothing"), None),
        ([f"data_file={__file__}"], ("tokenizer", "data_file"), "tokenizer=FOLDER"),
        (["data_file=nope.jsonl"], ("data_file=nope.jsonl", "no such file"), "file"),
        (
            ["benchmark_model=tiny", "benchmark_model.max_prompt_length=64"],
            ("benchmark_model.max_prompt_length=64", "benchmark_model.max_length=64"),
            None,
        ),
        (
            ["benchmark_model=tiny", "benchmark_model.num_heads=3"],
            ("benchmark_model.num_heads=3", "benchmark_model.hidden_size=32"),
            None,
        ),
        (
            ["benchmark_model.num_heads=4", "benchmark_model.num_key_value_heads=3"],
            ("benchmark_model.num_key_value_heads=3", "benchmark_model.num_heads=4"),
            None,
        ),
        (
            ["-m", "benchmark_model=tiny", "benchmark_model.num_heads=2,3"],
            ("benchmark_model.num_heads=3", "benchmark_model.hidden_size=32"),
            None,
        ),
        (["+loss=dpo"], ("loss", "group"), "benchmark_model"),
    ],
)
def test_a_mistake_is_answered(overrides: list[str], facts: tuple[str, ...], remedy: str | None, capsys) -> None:
    code, text = stopped(capsys, *overrides)
    assert code == 2
    first, *others = text.splitlines()
    names(first, *facts)
    names(" ".join(others), remedy=remedy)
    assert not Path("outputs").exists()


@pytest.mark.parametrize("command", ["caldpo.train", "caldpo.estimate"])
@pytest.mark.parametrize("override", ["benchmark_model=tiny", "+benchmark_model=tiny", "benchmark_model.num_heads=2"])
def test_benchmark_models_belong_to_this_command(command: str, override: str, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        importlib.import_module(command).main([override])
    message = capsys.readouterr().err
    assert end.value.code == 2
    assert message.startswith("error: benchmark_model")
    assert "+benchmark_model" not in message
    assert " benchmark_model," not in message


def test_nothing_heavy_is_loaded_for_an_answer() -> None:
    script = f"""
import sys
from caldpo.benchmark import main
for line in (["--help"], ["stepss=3"], ["variants=[x]"], ["benchmark_model.num_heads=3"], ["data_file=x"]):
    try:
        main(line)
    except SystemExit:
        pass
print("HEAVY:", *[m for m in {HEAVY} if m in sys.modules])
"""
    root = Path(run.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.splitlines()[-1].split() == ["HEAVY:"]


def test_a_missing_library_names_its_extra(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "find_spec", lambda name: None)
    code, text = stopped(capsys, *TINY)
    assert code == 1
    names(text, "variants=[trl,trl_low_memory,trl_single]", "TRL", remedy="pip install 'caldpo[bench]'")
    code, text = stopped(capsys, *TINY, "variants=[caldpo]", "benchmark_model.lora_rank=2")
    names(text, "benchmark_model.lora_rank=2", "PEFT", remedy="pip install 'caldpo[peft]'")
    code, text = stopped(
        capsys, *TINY, "variants=[caldpo]", "benchmark_model.lora_rank=2", "benchmark_model.base_bits=4"
    )
    names(text, "benchmark_model.base_bits=4", "bitsandbytes", remedy="pip install 'caldpo[qlora]'")


def test_weights_of_few_bits_need_adapters_beside_them(capsys) -> None:
    code, text = stopped(capsys, *TINY, "benchmark_model.base_bits=4")
    assert code == 2
    names(text, "benchmark_model.base_bits=4", remedy="benchmark_model.lora_rank")


class Workers:
    """Fake worker processes with the given answers by variant."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: dict[str, dict]) -> None:
        self.answers, self.order = answers, []
        monkeypatch.setattr(run, "run_variant", self.variant)
        monkeypatch.setattr(run, "run_matmul", self.matmul)
        monkeypatch.setattr(run, "estimated_bytes", lambda job: None)

    def variant(self, job: Job) -> None:
        self.order.append(job.variant)
        answer = self.answers[job.variant]
        if answer.get("too large"):
            raise OutOfMemoryError
        Path(job.output).mkdir(parents=True)
        steps = job.settings.all_steps
        plain = Answer([0.5] * steps, [2.0] * steps, [digest([])] * steps, 4.0, None, {"peak": 8, "of": ""}, "", {})
        write(replace(plain, **answer), job.answer)

    def matmul(self, job: Job) -> float:
        return 1e9


def test_rounds_are_interleaved_and_memory_may_run_out(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers(monkeypatch, {"trl": {"too large": True}, "trl_best": {}, "caldpo": {"seconds": 1.0}})
    main([*TINY, "repeats=2", "variants=[trl,trl_best,caldpo]"])
    assert workers.order == ["trl", "trl_best", "caldpo", "trl_best", "caldpo"]
    facts = result()["facts"]
    names(facts["trl_best"], "first run", "1.5 pairs/s", "1.00 times TRL, fastest")
    names(facts["caldpo"], "first run", "6 pairs/s", "4.00 times TRL, fastest")
    rows = {row["name"]: row for row in result()["rows"]}
    assert rows["trl"]["pairs_per_second"] is None
    assert rows["caldpo"]["speed"] == 4.0, "against the first of TRL that fits"
    names(Path("out/benchmark.md").read_text(), "out of memory")
    assert not Path("out/work").exists(), "weights are not left behind"


def test_disagreement_fails_after_the_table(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    Workers(monkeypatch, {"trl": {}, "caldpo": {"grad_norms": [2.0, 2.0, 2.1]}})
    code, text = stopped(capsys, *TINY, "variants=[trl,caldpo]")
    assert code == 1
    difference = "gradient norm of step 3"
    table, _, error = text.partition("error:")
    names(table, "NO AGREEMENT", difference, "0.05", "speed")
    names(error, "caldpo", difference, "0.05", "benchmark.json")
    assert result()["rows"][1]["difference"]["problem"] is not None
