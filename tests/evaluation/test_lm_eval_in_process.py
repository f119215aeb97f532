"""LM Eval in this process: what it is given of a policy, and how it leaves it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from caldpo.data.pair import PreferencePair
from caldpo.evaluation.lm_eval.in_process import run_in_process
from caldpo.evaluation.lm_eval.read_results import read_task
from caldpo.evaluation.lm_eval.subprocess_run import _arguments, _write_model
from caldpo.evaluation.lm_eval.task_plan import PAIRS, PlannedTask, TaskResults, pairs_task, plan_tasks
from caldpo.evaluation.suites.leaderboard import Leaderboard
from caldpo.models.adapters import Lora
from tests.callbacks.oracle_data import naive_logprob
from tests.data.small import rendered
from tests.evaluation.lm_eval_tasks import ASKED, data_sets_in, write_tasks
from tests.helpers.messages import refused
from tests.helpers.tiny import tiny_model, tiny_tokenizer

pytest.importorskip("lm_eval")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with data_sets_in(tmp_path_factory.mktemp("cache")):
        yield


def _policy(folder: Path, tokenizer: Any, **keys: Any) -> Any:
    common = {"model": tiny_model(), "tokenizer": tokenizer, "context": nullcontext, "folder": folder}
    return SimpleNamespace(**{**common, "device": torch.device("cpu"), "texts": PAIRS_OF_WORDS, **keys})


def _run(policy: Any, *plan: PlannedTask, own: Path | None = None, **keys: Any) -> TaskResults:
    """Run tasks of the user's own and held-out pairs, without LM Eval's own tasks."""
    suite = _suite(include_path=None if own is None else str(own), **keys)
    return run_in_process(list(plan), policy, suite, policy.folder / "no tasks")


def _suite(**keys: Any) -> Leaderboard:
    return Leaderboard(**{"tasks": [PAIRS], "batch_size": 4, "bootstrap_iters": 10, **keys})


PAIRS_OF_WORDS = [
    PreferencePair(f"w{i} w{i + 1}", f" w{i % 5} w3" + " w2" * (i % 3), f" w{i % 7} w4 w{i % 3}") for i in range(24)
]


def test_process_and_model_are_left_as_they_were(tmp_path: Path) -> None:
    policy = _policy(tmp_path, tiny_tokenizer())
    policy.model.train()
    policy.model.lm_head.eval()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    done = _run(policy, PlannedTask(PAIRS, None), limit=3)
    assert done.results[0][1]["n-samples"][PAIRS] == {"original": 24, "effective": 3}
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
    assert policy.model.training
    assert not policy.model.lm_head.training
    assert policy.model.model.training


def test_bos_stands_once_before_the_prompt(tmp_path: Path) -> None:
    """A tokenizer that puts BOS before every text: LM Eval scores what the project's engine scores."""
    tokenizer = tiny_tokenizer()
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    policy = _policy(tmp_path, tokenizer)
    done = _run(policy, PlannedTask(PAIRS, None), log_samples=True)
    plain = tiny_tokenizer()
    right = []
    for pair in PAIRS_OF_WORDS:
        prompt = [1, *plain(pair.prompt).input_ids]
        a, b = (naive_logprob(policy.model, prompt, plain(text).input_ids) for text in (pair.chosen, pair.rejected))
        right.append(a > b)
    assert 0 < np.mean(right) < 1
    assert done.results[0][1]["results"][PAIRS]["acc,none"] == pytest.approx(np.mean(right))
    lines = (tmp_path / "leaderboard_samples" / f"{PAIRS}.jsonl").read_text().splitlines()
    scores = json.loads(lines[0])["filtered_resps"]
    assert float(scores[0][0]) == pytest.approx(
        naive_logprob(policy.model, [1, 4, 5], plain(PAIRS_OF_WORDS[0].chosen).input_ids), abs=1e-4
    )


def test_conversations_are_written_as_training_writes_them(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' ' }}{% endfor %}"
    pair = PreferencePair(({"role": "user", "content": "w1 w2"},), "w3", "w4 w5")
    pairs_task(_policy(tmp_path, tokenizer, texts=[pair]))
    row = json.loads((tmp_path / "held_out_pairs.jsonl").read_text())
    texts = rendered(pair, tokenizer)
    assert row == {"prompt": texts.prompt, "choices": [texts.chosen, texts.rejected], "label": 0}
    assert row["prompt"] == "<user> w1 w2 "


def test_prompts_longer_than_the_context_are_told(tmp_path: Path) -> None:
    policy = _policy(tmp_path, tiny_tokenizer())
    policy.model.config.max_position_embeddings = 4
    done = _run(policy, PlannedTask(PAIRS, None))
    ends = [len(f"{p.prompt}{side}".split()) for p in PAIRS_OF_WORDS for side in (p.chosen, p.rejected)]
    assert done.truncations == sum(length > 5 for length in ends)


def test_mixed_precision_of_the_run(tmp_path: Path) -> None:
    policy = _policy(tmp_path, tiny_tokenizer(), texts=PAIRS_OF_WORDS[:2])
    policy.context = lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    dtypes = set()
    policy.model.lm_head.register_forward_hook(lambda module, given, out: dtypes.add(out.dtype))
    _run(policy, PlannedTask(PAIRS, None))
    assert dtypes == {torch.bfloat16}


def test_chat_template_is_for_questions_not_for_held_out_pairs(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ 'w38 ' + m['content'] + ' w39' }}{% endfor %}"
    write_tasks(tmp_path / "own", lambda question: "w1")
    policy = _policy(tmp_path, tokenizer, texts=PAIRS_OF_WORDS[:2])
    plan = plan_tasks(["word_choice", PAIRS], None, templated=True)
    _run(policy, *plan, own=tmp_path / "own", log_samples=True, limit=2)

    def asked(name: str) -> str:
        rows = (tmp_path / "leaderboard_samples" / f"{name}.jsonl").read_text().splitlines()
        return str(json.loads(rows[0])["arguments"][0][0])

    assert asked("word_choice").startswith("w38 w")
    assert asked("word_choice").endswith(" w39")
    assert asked(PAIRS) == "w0 w1"


def test_adapted_policy(tmp_path: Path) -> None:
    """In memory with its adapter on top, and in a folder with the adapter merged."""
    pytest.importorskip("peft")
    policy = _policy(tmp_path, tiny_tokenizer(), weights=SimpleNamespace(path=None), texts=PAIRS_OF_WORDS[:4])
    plain = tiny_model()
    policy.model = Lora(rank=2).apply(policy.model).eval()
    torch.manual_seed(0)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    _run(policy, PlannedTask(PAIRS, None), log_samples=True)
    row = json.loads((tmp_path / "leaderboard_samples" / f"{PAIRS}.jsonl").read_text().splitlines()[0])
    words = policy.tokenizer(PAIRS_OF_WORDS[0].prompt).input_ids, policy.tokenizer(PAIRS_OF_WORDS[0].chosen).input_ids
    expected = naive_logprob(policy.model, *words)
    assert abs(expected - naive_logprob(plain, *words)) > 0.01
    assert float(row["filtered_resps"][0][0]) == pytest.approx(expected, abs=1e-4)
    _write_model(policy, tmp_path)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    assert naive_logprob(merged, *words) == pytest.approx(expected, abs=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "tokenizer")("w1 w2").input_ids == [5, 6]


def test_groups_and_tags(tmp_path: Path) -> None:
    """A group with a figure of its own is read by it, weighted by size; a tag is read task by task."""
    write_tasks(tmp_path / "own", lambda question: "w1")
    two = "task: word_two\ninclude: word_choice.yaml\nfewshot_split: test\nnum_fewshot: 2\ntag: null\n"
    (tmp_path / "own" / "two.yaml").write_text(two)
    (tmp_path / "own" / "group.yaml").write_text(
        "group: words\ntask: [word_choice, word_two]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    policy, group, tag = (
        _policy(tmp_path, tiny_tokenizer()),
        PlannedTask("words", None),
        PlannedTask("word_tasks", None),
    )
    done = _run(policy, group, tag, own=tmp_path / "own")
    read = {task.name: read_task(task, results) for task, results in done.results}
    measures, details = read["words"]
    parts = [details["metrics"][name]["acc,none"] for name in ("word_choice", "word_two")]
    assert parts[0] != parts[1]
    assert {name: m.value for name, m in measures.items()} == {"words": pytest.approx(sum(parts) / 2)}
    assert measures["words"].n == 2 * ASKED
    assert details["shots"] == {"word_choice": 0, "word_two": 2}
    assert "0 or 2-shot" in measures["words"].meaning
    measures, _ = read["word_tasks"]
    assert set(measures) == {"word_choice", "word_answer"}
    assert measures["word_choice"].value == parts[0]


def test_own_task_that_is_broken(tmp_path: Path) -> None:
    own = tmp_path / "own"
    write_tasks(own, lambda question: "w1")
    (own / "no_data.yaml").write_text((own / "word_choice.yaml").read_text().replace("word_choice", "no_data"))
    (own / "odd_key.yaml").write_text("include: word_choice.yaml\ntask: odd_key\nshots: 3\n")
    policy = _policy(tmp_path, tiny_tokenizer())
    with refused("no_data.jsonl", key="leaderboard.tasks", value="no_data"):
        _run(policy, PlannedTask("no_data", None), own=own)
    with refused("shots", key="leaderboard.tasks", value="odd_key", remedy="yaml"):
        _run(policy, PlannedTask("odd_key", None), own=own)


def test_command_line_of_vllm(tmp_path: Path) -> None:
    target = SimpleNamespace(of_run=lambda key, default: default)
    policy = _policy(tmp_path, tiny_tokenizer(), precision="bf16-mixed", target=target)
    task = PlannedTask("gsm8k", 5, templated=True)
    assert _arguments(task, policy, _suite(backend="vllm", limit=7), tmp_path) == [
        *("-m", "lm_eval", "--model", "vllm", "--model_args", "pretrained=policy,tokenizer=tokenizer,dtype=auto"),
        *("--batch_size", "auto", "--num_fewshot", "5", "--limit", "7"),
        *("--apply_chat_template", "--fewshot_as_multiturn", "--tasks", "gsm8k", "--output_path", "gsm8k"),
    ]
    line = " ".join(_arguments(task, policy, _suite(), tmp_path))
    assert "dtype=auto,mixed_precision_dtype=bfloat16 --device cpu --batch_size 4 " in line
