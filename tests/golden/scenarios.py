"""Golden runs: what is run, with which keys, and the name in the files of each recorded number's meaning.

All config keys, commands, files, columns and headings that the golden runs know are here. A rename is one edit here and
none in ``recorded.json``, so that it cannot hide a changed number.
"""

from __future__ import annotations

from dataclasses import dataclass

TRAIN, EVALUATE, COMPARE = "caldpo.train", "caldpo.evaluate", "caldpo.compare"  # modules with a main
OUTPUT, SWEEP_OUTPUT, RESUME = "hydra.run.dir={}", "hydra.sweep.dir={}", "resume={}"
COMMON = ("trainer.num_threads=1", "trainer.progress_bar=false", "logger=csv", "console=compact")
PAIRS = (
    *COMMON,
    "model=random",
    "model.tokenizer=tokenizer",
    "model.hidden_size=16",
    "model.architecture=llama",
    "data=local",
    "data.train=train.jsonl",
    "data.test=test.jsonl",
    "data.micro_batch_size=4",
    "data.eval_micro_batch_size=16",
    "data.preview_pairs=0",
    "trainer.accumulate_grad_batches=2",
    "trainer.max_steps=5",
    "trainer.val_check_interval=2",
    "callbacks.samples.prompts=2",
    "callbacks.samples.max_new_tokens=4",
    "callbacks.checkpoint.every=2",
    "optim.lr=0.01",
)
PADDED, PACKED = "layout=padded", "layout=packed"
RESIDENT, CACHED = "reference=frozen", "reference=precomputed"
TWO_RANKS = ("trainer.devices=2", "data.micro_batch_size=2")
TABLE = (
    *COMMON,
    "experiment=tabular",
    "trainer.max_steps=5",
    "trainer.val_check_interval=2",
    "callbacks.oracle.prompts=8",
    "loss=cal_dpo",
)


@dataclass(frozen=True)
class Golden:
    """A run whose numbers are recorded.

    Attributes:
        keys: its overrides.
        ranks: its processes (gloo).
        killed_at: the optimiser step at whose update SIGTERM stops it; it is resumed then.
        again: run a second time, with the caches that the first left; the second is recorded.
        same_as: the run whose recorded numbers this one has to have; None: its own are recorded.
        anywhere: compared on other machines too.
    """

    keys: tuple[str, ...]
    ranks: int = 1
    killed_at: int | None = None
    again: bool = False
    same_as: str | None = None
    anywhere: bool = True


def _pairs(*keys: str) -> tuple[str, ...]:
    return (*PAIRS, *keys)


DPO = _pairs("loss=dpo", PADDED, RESIDENT)
LORA = ("adapter=lora", "adapter.dropout=0.3", "reference=adapter")
FSDP = _pairs("loss=cal_dpo", PACKED, RESIDENT, *TWO_RANKS, "trainer.strategy=fsdp")
RUNS = {
    "padded": Golden(DPO),
    "packed": Golden(_pairs("loss=dpo", PACKED, RESIDENT)),
    "packed, logits recomputed": Golden(_pairs("loss=dpo", PACKED, RESIDENT, "logits_cache_mib=0"), same_as="packed"),
    "padded, token budget": Golden(_pairs("loss=dpo", PADDED, RESIDENT, "data.max_tokens_per_micro_batch=64")),
    "padded, float64": Golden(_pairs("loss=dpo", PADDED, RESIDENT, "trainer.precision=64-true")),
    # kernels of other processors round bfloat16 so differently that nothing tight could be compared
    "packed, bfloat16": Golden(
        _pairs("loss=dpo", PACKED, RESIDENT, "model.dtype=bfloat16", "trainer.precision=bf16-true"), anywhere=False
    ),
    "packed, mixed bfloat16": Golden(
        _pairs("loss=cal_dpo", PACKED, RESIDENT, "trainer.precision=bf16-mixed"), anywhere=False
    ),
    "cached, computed": Golden(_pairs("loss=cal_dpo", PACKED, CACHED)),
    "cached, read": Golden(_pairs("loss=cal_dpo", PACKED, CACHED), again=True, same_as="cached, computed"),
    "cal_dpo": Golden(_pairs("loss=cal_dpo", PADDED, RESIDENT)),
    "cal_dpo, scores": Golden(
        _pairs(
            "loss=cal_dpo",
            "loss.targets=scores",
            PACKED,
            RESIDENT,
            "optim=rmsprop",
            "optim.lr=0.01",
            "optim.schedule.warmup_steps=2",
        )
    ),
    "cal_ipo": Golden(_pairs("loss=cal_ipo", PACKED, RESIDENT)),
    "cal_slic": Golden(_pairs("loss=cal_slic", PADDED, RESIDENT)),
    "cpo": Golden(_pairs("loss=cpo", PACKED)),
    "f_dpo": Golden(_pairs("loss=f_dpo", PADDED, RESIDENT)),
    "ipo, recomputed activations": Golden(
        _pairs("loss=ipo", PACKED, RESIDENT, "model.gradient_checkpointing=true", "model.tie_word_embeddings=true")
    ),
    "rso": Golden(_pairs("loss=rso", PACKED, RESIDENT)),
    "sft": Golden(_pairs("loss=sft", PACKED)),
    "slic, gpt2": Golden(_pairs("loss=slic", PADDED, "model.architecture=gpt2")),
    "lora": Golden(_pairs("loss=dpo", PACKED, *LORA)),
    "ddp": Golden(_pairs("loss=dpo", PADDED, RESIDENT, *TWO_RANKS, "trainer.strategy=ddp"), ranks=2),
    "ddp, cached": Golden(_pairs("loss=cal_dpo", PACKED, CACHED, *TWO_RANKS, "trainer.strategy=ddp"), ranks=2),
    "fsdp": Golden(FSDP, ranks=2),
    "fsdp, lora": Golden(_pairs("loss=dpo", PACKED, *LORA, *TWO_RANKS, "trainer.strategy=fsdp"), ranks=2),
    "padded, resumed": Golden(DPO, killed_at=4, same_as="padded"),
    "lora, resumed": Golden(_pairs("loss=dpo", PACKED, *LORA), killed_at=3, same_as="lora"),
    "fsdp, resumed": Golden(FSDP, ranks=2, killed_at=4, same_as="fsdp"),
    "table": Golden(TABLE),
}

# the comparison of two losses over two seeds, evaluated
COMPARED = (*PAIRS, PACKED, RESIDENT, "callbacks.samples.prompts=0")
SWEEP = ("-m", "loss=dpo,cal_dpo", "seed=0,1", "hydra.sweep.subdir=${hydra.job.num}")
SUITES = ("preference", "displacement")
EVALUATION = (f"suite=[{','.join(SUITES)}]", "preference.resamples=100", "displacement.resamples=100", "report=false")

# files of a run, and of a comparison
METRICS_FILE, SAMPLES_FILE, WEIGHTS_FILES = "metrics.csv", "samples.jsonl", "policy/*.safetensors"
EVALUATION_FILE = "evaluation/{}.json"  # of a suite
COMPARISON_FILE, REPORT_FILE = "comparison.csv", "report.md"

# each of the tables below: meaning -> name
STEP = "step"
HELD_OUT = "val/{}"  # column of a metric on held-out pairs
CLOCK = ("tokens_per_second",)  # columns of metrics.csv that are not recorded
METRICS = {
    "loss": "loss",
    "contrast term": "terms/contrast",
    "calibration term": "terms/calibration",
    "negative log-likelihood term": "terms/nll",
    "chosen log-prob": "logps/chosen",
    "rejected log-prob": "logps/rejected",
    "chosen log-ratio": "log_ratios/chosen",
    "rejected log-ratio": "log_ratios/rejected",
    "chosen implicit reward": "rewards/chosen",
    "rejected implicit reward": "rewards/rejected",
    "reward margin": "rewards/margins",
    "accuracy": "rewards/accuracies",
    "share with lower chosen log-prob": "displacement",
    "gradient norm": "grad_norm",
    "share of clipped steps": "clip_fraction",
    "learning rate": "lr",
}
# at the end of a run whose data knows the true reward; those of a table are exact
ORACLE = {
    "true reward": "oracle/reward",
    "true reward of the reference": "oracle/reference_reward",
    "win rate over the reference": "oracle/win_rate",
    "KL to the reference": "oracle/kl",
    "correlation of implicit and true reward": "oracle/pearson",
    "rank correlation of implicit and true reward": "oracle/spearman",
    "slope of implicit on true reward": "oracle/slope",
    "absolute error of the implicit reward": "oracle/error",
    "exact true reward": "oracle/exact_reward",
    "exact KL to the reference": "oracle/exact_kl",
    "exact KL from the optimum": "oracle/kl_from_optimum",
    "exact KL to the optimum": "oracle/kl_to_optimum",
    "exact objective": "oracle/objective",
    "exact objective of the optimum": "oracle/objective_optimum",
}
SAMPLES = {"step": "step", "prompt": "prompt", "generated": "sample"}  # samples.jsonl
# of a suite's file: the measures under this key, and of each of them these figures
MEASURES_KEY = "measures"
FIGURES = {"value": "value", "low": "low", "high": "high", "examples": "n"}
MEASURES = {
    "preference": {
        "accuracy": "accuracy",
        "reward margin": "margin",
        "chosen log-ratio": "log_ratio_chosen",
        "rejected log-ratio": "log_ratio_rejected",
        "calibration error": "calibration_error",
        "calibration error by chance": "calibration_error_by_chance",
        "accuracy where the chosen response is longer": "accuracy_longer",
        "accuracy where the chosen response is shorter": "accuracy_shorter",
        "accuracy of preferring the longer response": "accuracy_of_length",
        "rank correlation of margin and length difference": "length_correlation",
        "calibration error at the loss's own beta": "calibration_error_own_beta",
        "slope of implicit on true reward": "slope",
        "Pearson correlation of implicit and true reward": "pearson",
        "Spearman correlation of implicit and true reward": "spearman",
        "absolute error of the implicit reward": "error",
        "accuracy of the ranking by true reward": "accuracy_of_truth",
        "slope at the loss's own beta": "slope_own_beta",
    },
    "displacement": {
        "share of chosen that fell": "chosen_fell",
        "share of pairs of which both fell": "both_fell",
        "share of rejected that fell": "rejected_fell",
        "chosen log-ratio per token": "chosen_per_token",
        "rejected log-ratio per token": "rejected_per_token",
        "drift per token": "drift",
        "size of drift per token": "drift_size",
    },
}
# comparison.csv: a final metric on held-out pairs, one of the last training batch alone, a suite's measure
COMPARISON_RUN = "run"
COMPARISON = {"held-out": HELD_OUT, "training": "train/{}", "measure": "evaluation/{}/{}"}
# report.md: the table of this section, a row for each setting
REPORT_SECTION = "Final figures on held-out pairs"
REPORT = {
    "setting": "setting",
    "seeds": "seeds",
    "chosen log-ratio": "chosen log-ratio (nats)",
    "rejected log-ratio": "rejected log-ratio (nats)",
    "log-ratio margin": "log-ratio margin (nats)",
    "reward margin": "reward margin (0.1 x nats)",
    "accuracy": "accuracy (share of pairs)",
    "share with lower chosen log-prob": "displacement (share of pairs)",
}
