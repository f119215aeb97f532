"""What somebody means by a key or value that is not there, and all mistakes of a command line at once."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from omegaconf import OmegaConf

from caldpo.config.did_you_mean import KEYS
from caldpo.config.preflight import composed
from caldpo.config.value_checks import problem
from caldpo.errors import CaldpoError
from caldpo.run_settings import SETTINGS, find_config_problems
from caldpo.train import main
from tests.helpers.messages import names
from tests.test_configs import CONF

Precision = Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed", "64-true"]


def told(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        *[("bf16", "bf16-mixed"), ("bfloat16", "bf16-mixed"), ("bf16-tru", "bf16-true")],
        *[("fp16", "16-mixed"), (16, "16-mixed"), ("half", "16-mixed")],
        *[("fp32", "32-true"), (32, "32-true"), ("float32", "32-true"), ("64", "64-true")],
    ],
)
def test_usual_names_of_precisions(value: object, meant: str) -> None:
    names(problem(Precision, value), f"did you mean {meant}?")


@pytest.mark.parametrize(("value", "meant"), [("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32")])
def test_the_same_name_of_a_dtype(value: str, meant: str) -> None:
    names(problem(Literal["auto", "float32", "bfloat16", "float16"], value), f"did you mean {meant}?")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("lr=1e-3", "optim.lr"),
        ("learning_rate=1e-3", "optim.lr"),
        ("batch_size=4", "data.micro_batch_size"),
        ("epochs=3", "trainer.max_epochs"),
        ("beta=0.1", "loss.beta"),
        ("max_length=512", "data.max_length"),
        ("max_steps=3", "trainer.max_steps"),
        ("gradient_accumulation_steps=3", "trainer.accumulate_grad_batches"),
        ("bf16=true", "trainer.precision"),
        ("output_dir=x", "hydra.run.dir"),
        ("dataset=x", "data"),
        ("optim.learning_rate=3", "optim.lr"),
        ("trainer.epochs=3", "trainer.max_epochs"),
        ("model.attn_implementation=sdpa", "model.attention"),
    ],
)
def test_usual_names_of_keys(written: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["model=hf"] if written.startswith("model.") else []
    said = told(written, *model, capsys=capsys)
    names(line_of(written.partition("=")[0], said), f"did you mean {meant}?")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("trainer.fetch_every=3", "trainer.metrics_sync_every"),
        ("val_every=3", "trainer.val_check_interval"),
        ("trainer.threads=1", "trainer.num_threads"),
        ("data.pairs_per_batch=3", "data.micro_batch_size"),
        ("eval_pairs_per_batch=3", "data.eval_micro_batch_size"),
        ("data.tokens_per_batch=3", "data.max_tokens_per_micro_batch"),
        ("kept_logits_mib=3", "logits_cache_mib"),
        ("reference.differs=true", "reference.distinct"),
        ("trainer.on_bad_numbers=skip", "trainer.on_nonfinite"),
        ("trust_code=true", "allow_untrusted_code"),
        ("objective=val/loss", "optimized_metric"),
    ],
)
def test_names_that_keys_had_once(written: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = told(written, capsys=capsys)
    key, _, value = written.partition("=")
    names(line_of(key, said), f"renamed to {meant}")
    names(said, remedy=f"write {meant}={value}")
    assert "did you mean" not in said


@pytest.mark.parametrize(
    ("words", "facts", "remedy"),
    [
        # a key that is required and not given yet
        (
            "model=hf model_name_or_path=gpt2",
            ["model_name_or_path:", "did you mean model.path?"],
            "write model.path=gpt2",
        ),
        # keys of an option that is not chosen
        ("model.path=Qwen/X", ["model.path:"], "write model=hf model.path=Qwen/X"),
        ("adapter.rank=8", ["adapter.rank:"], "write adapter=lora adapter.rank=8"),
        (
            "adapter=none adapter.rank=8",
            ["adapter.rank:"],
            ("write adapter=lora adapter.rank=8", "in place of adapter=none"),
        ),
        ("lora_r=8", ["lora_r:", "adapter.rank"], "write adapter=lora adapter.rank=8"),
        ("lora_alpha=8", ["lora_alpha:", "adapter.alpha"], "write adapter=lora adapter.alpha=8"),
        ("lora_target_modules=x", ["adapter.target_modules"], "write adapter=lora adapter.target_modules=x"),
        ("adapter=qlora lora_target_modules=x", ["did you mean adapter.target_modules?"], "write"),
        ("attn_implementation=x", ["model.attention"], "write model=hf model.attention=x"),
        (
            "gradient_checkpointing=true",
            ["model.gradient_checkpointing"],
            "write model=hf model.gradient_checkpointing=true",
        ),
        ("tokenizer=x", ["model.tokenizer"], "write model=hf model.tokenizer=x"),
        ("label_smoothing=0.1", ["loss.label_smoothing"], "write loss=dpo loss.label_smoothing=0.1"),
        ("loss=dpo label_smoothing=0.1", ["did you mean loss.label_smoothing?"], "write loss.label_smoothing=0.1"),
        # other names of the weight, where the loss has one
        *[(f"loss.{name}=1", ["did you mean loss.calibration_weight?"], "write") for name in ("weight", "lambda", "c")],
        ("loss=dpo loss.weight=1", ["loss.weight:"], "beta, label_smoothing"),
        # keys of other frameworks, whose values have other names here
        ("model.name_or_path=gpt2", ["did you mean model.path?"], "write model=hf model.path=gpt2"),
        ("model=random model.path=gpt2", ["model.path:"], ("model=hf model.path=gpt2", "in place of model=random")),
        ("bf16=true", ["did you mean trainer.precision?"], "write trainer.precision=bf16-mixed"),
        ("trainer.bf16=True", ["did you mean trainer.precision?"], "write trainer.precision=bf16-mixed"),
        ("fp16=false", ["did you mean trainer.precision?"], "write trainer.precision=..."),
        ("loss.loss_type=ipo", ["did you mean loss?"], "write loss=ipo"),
        ("loss_type=Cal-DPO", ["did you mean loss?"], "write loss=cal_dpo"),
        ("loss_type=sigmoid", ["did you mean loss?"], "write loss=dpo"),  # TRL's name of it
        ("loss_type=hinge", ["did you mean loss?"], "write loss=rso"),
        ("loss_type=what_is_this", ["did you mean loss?"], "write loss=..."),
        ("use_peft=true", ["did you mean adapter?"], "write adapter=lora"),
        ("load_in_4bit=true", ["did you mean adapter?"], "write adapter=qlora"),
        ("dataset=owner/name", ["did you mean data?"], "write data=hub data.path=owner/name"),
        # slips of the pen: the whole override, and what else there is
        ("loss.calibration_weigth=1", ["calibration_weight?"], ("write loss.calibration_weight=1", "score_center")),
        ("sed=1", ["did you mean seed?"], ("write seed=1", "reward_beta")),
        ("los=ipo", ["did you mean loss?"], "write loss=ipo"),
        ("~trainer.max_step", ["trainer.max_step:"], "trainer.max_steps=..."),
        # a path or an id in the place of an option
        ("model=Qwen/Qwen3-0.6B", ["model=Qwen/Qwen3-0.6B:"], "model=hf model.path=Qwen/Qwen3-0.6B"),
        ("model=/models/x", ["model=/models/x:"], "model=hf model.path=/models/x"),
        ("model=gpt2", ["model=gpt2:", "gpt2_large"], "model=hf model.path=gpt2"),
        ("data=train.jsonl", ["data=train.jsonl:"], "data=local data.train=train.jsonl"),
        ("data=owner/name", ["data=owner/name:", "hub"], "data=hub data.path=owner/name"),
        # a path as a split of the embedded data
        ("data.train=/x/rows.jsonl", ["data.train=/x/rows.jsonl:"], ("data=local", "model=hf")),
        # lists and options
        ("suites=longer", ["suites=longer:", "list"], "'suites=[longer]'"),
        ("suite=x", ["suite:", "did you mean suites?"], "write 'suites=[x]'"),
        ("--loss dpo", ["--loss:"], "write loss=dpo"),
        ("--lr 1e-4", ["--lr:"], "write optim.lr=1e-4"),  # spelled like --run
        ("--learning-rate=1 seed=1", ["--learning-rate=1:"], "write optim.lr=1"),
        ("--seed 1", ["--seed:"], "write seed=1"),
        ("--colour red", ["--colour:"], "write colour=red"),
        ("--mulltirun", ["--mulltirun:", "did you mean --multirun?"], "--help"),
    ],
)
def test_a_likely_mistake_names_what_to_write(
    words: str, facts: list[str], remedy: str | tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    said = told(*words.split(), capsys=capsys)
    names(said, *facts, remedy=remedy)
    assert "=...." not in said


def test_a_folder_in_the_place_of_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    said = told("data=mine", "model=mine", capsys=capsys)
    names(said, "data=local data.train=mine", "model=hf model.path=mine")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("reference=resident", "frozen"),
        ("reference=cached", "precomputed"),
        ("console=line", "compact"),
        ("loss.targets=half", "fixed"),
    ],
)
def test_names_that_values_had_once(written: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    names(told(written, capsys=capsys), f"error: {written}:", f"did you mean {meant}?")


def test_names_that_keys_of_an_adapter_had_once(capsys: pytest.CaptureFixture[str]) -> None:
    said = told("adapter=lora", "adapter.start=x", "adapter.start_as=merged", capsys=capsys)
    names(line_of("adapter.start", said), "renamed to adapter.init_from", "write adapter.init_from=x")
    names(line_of("adapter.start_as", said), "renamed to adapter.init_mode", "write adapter.init_mode=merged")


def test_each_of_several_keys_has_its_hint(capsys: pytest.CaptureFixture[str]) -> None:
    said = told("lr=1", "epochs=2", "loss.beat=3", capsys=capsys)
    assert said.startswith("error: 3 ")
    for written, meant in (("lr", "optim.lr"), ("epochs", "trainer.max_epochs"), ("loss.beat", "beta")):
        names(line_of(written, said), f"did you mean {meant}?")


def line_of(key: str, said: str) -> str:
    """The line about the one problem, or about one of several."""
    (line,) = (line for line in said.splitlines() if line.strip().removeprefix("error: ").startswith(f"{key}:"))
    return line


def test_a_key_in_several_places_names_them(capsys: pytest.CaptureFixture[str]) -> None:
    said = told("temperature=1", capsys=capsys)
    names(said, "error: temperature:", "callbacks.samples.temperature", "callbacks.oracle.temperature")


def test_hints_lead_somewhere() -> None:
    """Each key that is named is one of a training run, an evaluation or an export."""
    cfgs = [
        composed("train", ["adapter=lora", *chosen], settings=SETTINGS, agree=None)
        for chosen in ((), ("model=hf", "model.path=a/b", "data.train=x"))
    ]
    groups = {folder.name for folder in CONF.iterdir() if folder.is_dir()}
    known = {"to", "output", "batch", "checkpoint", "judge.base_url", "judge.mock", "per_loss", *groups}
    known |= {"overwrite", "micro_batch_size", "num_threads"}  # of an evaluation, of a benchmark
    missing = object()

    def there(key: str) -> bool:
        return key in known or any(OmegaConf.select(c, key, default=missing) is not missing for c in cfgs)

    assert {key for keys in KEYS.values() for key in keys if not there(key)} == set()


def test_wrong_options_are_named_together(capsys: pytest.CaptureFixture[str]) -> None:
    said = told("loss=calDPO", "model=zefyr", "lr=3", "optim.smoothing=3", capsys=capsys)
    assert said.startswith("error: 3 ")  # whether there is optim.smoothing, the right model would say
    names(line_of("loss=calDPO", said), "did you mean cal_dpo?")
    names(line_of("model=zefyr", said), "did you mean zephyr?")
    names(line_of("lr", said), "did you mean optim.lr?")


def test_an_unknown_option_of_an_optional_group(capsys: pytest.CaptureFixture[str]) -> None:
    names(told("per_loss=tldr_pythia_dp", capsys=capsys), "error: per_loss=tldr_pythia_dp:", "tldr_pythia_dpo?")


def test_wrong_options_of_a_sweep_are_named_together(capsys: pytest.CaptureFixture[str]) -> None:
    said = told("-m", "loss=dpo,calDPO", "optim=adam,adamw", capsys=capsys)
    names(line_of("loss=calDPO", said), "did you mean cal_dpo?")
    names(line_of("optim=adam", said), "did you mean adamw?")


@pytest.mark.parametrize(
    "words", [["loss", "=", "dpo"], ["loss=", "dpo"], ["loss", "=dpo"], ["loss = dpo"], ["seed=1", "loss =dpo"]]
)
def test_spaces_around_the_sign(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    said = told(*words, capsys=capsys)
    assert said.startswith("error: loss: ")
    names(said, "loss=dpo")


def test_nothing_is_read_into_good_commands() -> None:
    cfg = composed("train", ["loss=dpo", "data.test=", "name=a"], settings=SETTINGS, agree=find_config_problems)
    assert cfg.loss.beta == 0.1
    with pytest.raises(CaldpoError):
        composed("train", ["loss=dpo", "loss.beta=-1"], settings=SETTINGS, agree=find_config_problems)


@pytest.mark.parametrize("written", ["calDPO", "CAL-DPO", "Cal_DPO"])
def test_options_are_meant_whatever_their_case(written: str, capsys: pytest.CaptureFixture[str]) -> None:
    names(told(f"loss={written}", capsys=capsys), f"error: loss={written}:", "did you mean cal_dpo?")


def test_a_folder_to_write_is_the_key_of_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    from caldpo.evaluate import main as evaluate
    from caldpo.export import main as export

    for main_of, key in ((export, "to"), (evaluate, "output")):
        with pytest.raises(SystemExit):
            main_of(["run=x", "output_dir=y"])
        names(capsys.readouterr().err, "output_dir:", f"did you mean {key}?")


def test_keys_of_an_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    from caldpo.evaluate import main as evaluate

    for written, hint, remedy in (
        ("suites=oracle", "did you mean suite?", "write suite=oracle"),
        ("again=true", "renamed to overwrite", "write overwrite=true"),
        ("preference.binns=3", "did you mean bins?", "write preference.bins=3"),
    ):
        with pytest.raises(SystemExit):
            evaluate(["model.path=x", "data=hh", written])
        said = capsys.readouterr().err
        names(said, f"error: {written.partition('=')[0]}:", hint, remedy=remedy)


def test_of_an_option_that_is_chosen_twice_the_last_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    names(told("loss=dpo", "loss=slic", "loss.beta=1", capsys=capsys), "error: loss.beta:", "loss=slic")
