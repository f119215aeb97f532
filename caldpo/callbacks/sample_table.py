"""A table of sample generations per evaluation: in samples.jsonl always, in the tracker where it has tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from caldpo.checkpointing.manifest import SAMPLES
from caldpo.config.bounds import NonNegative, NonNegativeInt, PositiveInt
from caldpo.config.signatures import validated
from caldpo.data.datamodule import PairDataModule
from caldpo.data.end_tokens import end_tokens, response_text
from caldpo.distributed.fsdp import is_sharded
from caldpo.models.sampling import sample_responses


class SampleTable(pl.Callback):
    """Samples the policy on a few held-out prompts whenever the held-out pairs are evaluated.

    Args:
        prompts: how many; the same at each evaluation. 0 switches it off.
        max_new_tokens: longest response, tokens.
        temperature: of sampling; 0 takes the likeliest token.
        seed: of the sampling.
    """

    @validated
    def __init__(
        self,
        prompts: NonNegativeInt = 4,
        max_new_tokens: PositiveInt = 64,
        temperature: NonNegative = 1.0,
        seed: NonNegativeInt = 0,
    ) -> None:
        self.prompts, self.max_new_tokens, self.temperature, self.seed = (
            prompts,
            max_new_tokens,
            temperature,
            seed,
        )

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        if not self.prompts:
            return
        module.require_finite_held_out()  # on all ranks: it says more than what comes of sampling from such weights
        if not (trainer.is_global_zero or is_sharded(module.policy)):
            return
        data: PairDataModule = trainer.datamodule  # type: ignore[attr-defined]
        held_out = data.held_out_prompts(self.prompts)
        ends = end_tokens(module.tokenizer, module.policy)
        responses = sample_responses(
            module.policy,
            module.tokenizer,
            [h.prompt_ids for h in held_out],
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=self.seed,
            device=module.device,
            ends=ends,
            whose=f"after {module.global_step} optimiser steps the policy's",
            names=[h.origin or f"prompt {i}" for i, h in enumerate(held_out, 1)],
        )
        if not trainer.is_global_zero:  # it was needed to generate, as it holds a part of the weights
            return
        reward = data.oracle
        new = []
        for prompt, ids in zip(held_out, responses, strict=True):
            text = response_text(module.tokenizer, ids, ends)
            asked = prompt.prompt if isinstance(prompt.prompt, str) else module.tokenizer.decode(prompt.prompt_ids)
            row = {"step": module.global_step, "prompt": asked, "chosen": prompt.reference, "sample": text}
            if reward is not None:
                row["true_reward"] = round(reward(asked, text), 4)
            new.append(row)
        file = Path(trainer.default_root_dir) / SAMPLES
        with file.open("a", encoding="utf-8") as opened:
            opened.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in new)
        for logger in trainer.loggers:
            if hasattr(logger, "log_table"):
                # a table is replaced, not appended to: every row of the run so far, at the step they belong to
                rows = [json.loads(line) for line in file.open(encoding="utf-8")]  # not splitlines(): U+2028
                logger.log_table(
                    "samples",
                    columns=list(new[0]),
                    data=[list(r.values()) for r in rows],
                    step=module.global_step,
                )
