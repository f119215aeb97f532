"""A table of sample generations per evaluation: in samples.jsonl always, and in the trackers of the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytorch_lightning as pl

from caldpo.callbacks.callback_base import PromptSampling, response_texts
from caldpo.checkpointing.manifest import SAMPLES
from caldpo.data.datamodule import PairDataModule
from caldpo.lightning_module import PreferenceModule
from caldpo.loggers.tracker_base import TableLogger


class SampleTable(PromptSampling):
    """Samples the policy on the same held-out prompts whenever the held-out pairs are evaluated."""

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
        rows = []
        for held, text in zip(held_out, response_texts(module, responses), strict=True):
            is_text = isinstance(held.prompt, str)
            prompt = str(held.prompt if is_text else module.tokenizer.decode(held.prompt_ids))
            row = {"step": module.global_step, "prompt": prompt, "chosen": held.reference, "sample": text}
            if data.oracle is not None:
                row["true_reward"] = round(data.oracle(prompt, text), 4)
            rows.append(row)
        file = Path(trainer.default_root_dir) / SAMPLES
        with file.open("a", encoding="utf-8") as opened:
            opened.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        for logger in trainer.loggers:
            if isinstance(logger, TableLogger):
                # a table is replaced, not appended to: every row of the run so far, at the step they belong to
                table = [
                    list(json.loads(line).values()) for line in file.open(encoding="utf-8")
                ]  # not splitlines(): U+2028
                logger.log_table("samples", columns=list(rows[0]), data=table, step=module.global_step)
