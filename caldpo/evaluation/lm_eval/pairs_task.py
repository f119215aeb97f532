"""The held-out pairs of a run as a multiple-choice task of the harness: an offline task, and a check of log-probs.

The two responses are the choices. ``acc`` is then the share of pairs whose chosen response has the higher summed
log-prob under the policy, ``acc_norm`` that of the higher log-prob per character; neither is divided by a reference,
and neither counts the end-of-text token, which the harness does not score. Pairs are whole, also those that training
cut; the tokenizer decides about BOS.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from caldpo.data.chat_template import render_pair
from caldpo.data.pair import PreferencePair
from caldpo.evaluation.lm_eval.task_plan import PAIRS


def pairs_task(pairs: Sequence[PreferencePair], tokenizer: PreTrainedTokenizerBase, folder: Path) -> dict[str, Any]:
    """The task's configuration; its questions are written into ``folder``.

    Conversations are written out by the chat template. The chosen response is the first choice of every second pair,
    so that a model which always takes the first is right by half.
    """
    file = folder / f"{PAIRS}.jsonl"
    with file.open("w", encoding="utf-8") as lines:
        for number, pair in enumerate(pairs):
            texts, label = render_pair(pair, tokenizer), number % 2
            choices = [texts.chosen, texts.rejected][:: -1 if label else 1]
            lines.write(json.dumps({"prompt": texts.prompt, "choices": choices, "label": label}) + "\n")
    return {
        "task": PAIRS,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file.absolute())}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "prompt",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "target_delimiter": "",  # a response begins where its prompt ends
        "num_fewshot": 0,
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")
        ],
        "metadata": {"version": 1},
    }
