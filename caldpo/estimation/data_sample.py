"""A run's data, of which a sample is tokenised."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from caldpo.data.data_report import DataReport, SplitReport
from caldpo.data.datamodule import PairDataModule
from caldpo.data.mixtures import parts_of
from caldpo.errors import CaldpoError


@dataclass(frozen=True, slots=True)
class Sample:
    """What is known of a run's pairs.

    Args:
        report: of the sampled pairs.
        train_pairs, test_pairs: in the whole splits; where not all were tokenised, those that tokenisation will
            leave out are estimated from the sample.
    """

    report: DataReport
    train_pairs: int
    test_pairs: int

    @property
    def exact(self) -> bool:
        """Whether every training pair was tokenised."""
        return self.train_pairs == self.report.train.pairs

    def truncated(self) -> dict[str, int]:
        """Truncated prompts and responses of the whole training split, scaled up from the sample."""
        counts, scale = self.report.train.counts, self.train_pairs / self.report.train.pairs
        return {
            "prompts": round(counts.prompts_truncated * scale),
            "chosen": round(counts.chosen_truncated * scale),
            "rejected": round(counts.rejected_truncated * scale),
        }


def take_sample(
    data: PairDataModule,
    tokenizer: PreTrainedTokenizerBase,
    run_dir: Path,
    *,
    pairs: int,
    needs_scores: bool,
    loss_name: str,
    needs_rejected: bool = True,
) -> Sample:
    """Read and check the data as a run does, and tokenise ``pairs`` pairs of each split, drawn at random.

    Reading whole splits is quick beside tokenising them, and only that tells how many pairs a run will have. The
    data module holds the sample afterwards.

    Raises:
        CaldpoError: whatever is wrong with the data; pairs that a model would have to generate first.
    """
    _refuse_generation(data)
    asked = {"train": data.max_train_pairs, "test": data.max_test_pairs}
    data.max_train_pairs, data.max_test_pairs = (min(pairs, most or pairs) for most in asked.values())
    report = data.prepare_pairs(
        tokenizer, run_dir, needs_scores=needs_scores, loss_name=loss_name, needs_rejected=needs_rejected
    )
    return Sample(
        report,
        train_pairs=_whole(report.train, data.max_train_pairs, asked["train"]),
        test_pairs=_whole(report.test, data.max_test_pairs, asked["test"]),
    )


def _whole(split: SplitReport, drawn: int, asked: int | None) -> int:
    """Pairs of a split that a run would have."""
    usable = drawn + split.left_out
    if not split.left_out or asked == drawn:
        return split.pairs
    return round(min(usable, asked or usable) * split.pairs / drawn)


def _refuse_generation(data: PairDataModule) -> None:
    for key, split in (("data.train", data.train), ("data.test", data.test)):
        if split is not None and not all(data.source.is_generated(part.name) for part in parts_of(split, key)):
            raise CaldpoError(
                "these pairs are made by a language model when they are first used, and are not made yet, so that"
                " nothing is known of their lengths",
                key=key,
                value=split,
                remedy="start a run, which makes them; once they are cached the estimate reads them",
            )
