"""A table of sample generations per evaluation: in samples.jsonl always, in W&B where a run is tracked."""

from __future__ import annotations

import json
from pathlib import Path

import pytorch_lightning as pl

from caldpo.callbacks.callback_base import PromptSampling, response_texts
from caldpo.checkpointing.manifest import SAMPLES
from caldpo.config.bounds import NonNegative, NonNegativeInt, PositiveInt
from caldpo.config.signatures import validated
from caldpo.data.datamodule import PairDataModule
from caldpo.lightning_module import PreferenceModule
from caldpo.loggers import TableLogger


class SampleTable(PromptSampling):
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
        super().__init__(prompts, max_new_tokens, temperature, seed)

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: PreferenceModule) -> None:  # type: ignore[override]
        if not self.prompts:
            return
        module.require_finite_held_out()  # on all ranks: it names rows and terms, which sampling cannot
        if not self.takes_part(trainer, module):
            return
        data: PairDataModule = trainer.datamodule  # type: ignore[attr-defined]
        held_out = data.held_out_prompts(self.prompts)
        responses = self.sample(module.policy, module, held_out, seed=self.seed)
        if not trainer.is_global_zero:
            return
        reward = data.oracle
        rows = []
        for prompt, text in zip(held_out, response_texts(module, responses), strict=True):
            prompt_text = (
                prompt.prompt if isinstance(prompt.prompt, str) else str(module.tokenizer.decode(prompt.prompt_ids))
            )
            row = {"step": module.global_step, "prompt": prompt_text, "chosen": prompt.reference, "sample": text}
            if reward is not None:
                row["true_reward"] = round(reward(prompt_text, text), 4)
            rows.append(row)
        file = Path(trainer.default_root_dir) / SAMPLES
        with file.open("a", encoding="utf-8") as opened:
            opened.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        for logger in trainer.loggers:
            if isinstance(logger, TableLogger):
                # a table is replaced, not appended to: every row of the run so far, at the step they belong to
                table = [json.loads(line) for line in file.open(encoding="utf-8")]  # not splitlines(): U+2028
                logger.log_table(
                    "samples",
                    columns=list(rows[0]),
                    data=[list(row.values()) for row in table],
                    step=module.global_step,
                )
