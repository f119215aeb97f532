"""Load, check, split and tokenise the data of a run, before any model is loaded."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, time
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from caldpo.config.bounds import Fraction, NonNegativeInt, PositiveInt
from caldpo.config.signatures import validated
from caldpo.data.chat_template import reads_clock
from caldpo.data.columns import Columns
from caldpo.data.data_console import DataReport, SplitReport, print_preview, print_report
from caldpo.data.data_loading import TokenizedDataModule
from caldpo.data.data_parts import Named
from caldpo.data.data_report import LoadReport
from caldpo.data.joined_sources import JoinedPairs, held_out_name, read_joined
from caldpo.data.load import refuse_bad_rows, require_pairs
from caldpo.data.pair import Message, PreferencePair, prompt_key, taken_apart
from caldpo.data.pair_checks import refuse_unknown, refuse_untokenized, require_scores
from caldpo.data.pair_stream import SAMPLE, PairStream, ShuffledRows, refuse_unstreamed
from caldpo.data.ranked import RankedRule
from caldpo.data.raw_row import PairSource, RewardSource
from caldpo.data.rejected_rows import REJECTED_ROWS, count_rejections, write_rejections
from caldpo.data.row_kinds import is_unpaired, refuse_unpair, refuse_unpaired
from caldpo.data.row_reader import RowReader
from caldpo.data.score_checks import require_score_range
from caldpo.data.split import settle_shared_prompts, split_by_prompt, subset
from caldpo.data.stored_pairs import StoredPairs
from caldpo.data.template_checks import read_template, require_template
from caldpo.data.token_cache import cached_tokens
from caldpo.data.tokenize import PairTokenizer, TokenizedSplit
from caldpo.errors import CaldpoError
from caldpo.utils.collectives import is_first_rank
from caldpo.utils.stream_console import Console
from caldpo.utils.text_format import counted


@dataclass(frozen=True, slots=True)
class HeldOutPrompt:
    """A prompt of the test split to generate from."""

    prompt: str | tuple[Message, ...]
    prompt_ids: list[int]  # truncated as in training
    reference: str  # the first chosen response to it; empty where all are undesirable
    origin: str = ""  # of the first pair with this prompt, as test.jsonl:3


class PairDataModule(TokenizedDataModule):
    """Preference pairs for training and validation.

    ``conf/data/base.yaml`` explains the keys. :meth:`prepare_pairs` does the work and stops at the first problem; it
    is called before a model is loaded. ``now`` is the time for chat templates that write the date, which a run sets to
    that of its first start.

    Raises:
        CaldpoError: keys that contradict each other.
    """

    @validated
    def __init__(
        self,
        *,
        source: PairSource,
        path: str | None = None,
        train: Named,
        test: Named | None,
        test_fraction: Fraction,
        split_seed: NonNegativeInt,
        max_train_pairs: PositiveInt | None,
        max_test_pairs: PositiveInt | None,
        max_length: PositiveInt,
        max_prompt_length: PositiveInt | None,
        chat_template: str | None,
        on_invalid: Literal["error", "skip"],
        on_degenerate: Literal["drop", "keep"],
        on_reversed_scores: Literal["reject", "swap", "keep"],
        on_shared_prompts: Literal["error", "drop_train", "keep"],
        ranked: RankedRule = "best_worst",
        unpair: bool = False,
        micro_batch_size: PositiveInt,
        max_tokens_per_micro_batch: PositiveInt | Literal["auto"] | None,
        eval_micro_batch_size: PositiveInt,
        drop_last: bool,
        preview_pairs: NonNegativeInt,
        cache: str | None,
        num_workers: NonNegativeInt,
        prefetch_factor: PositiveInt,
        seed: NonNegativeInt,
        columns: Columns | None = None,
        max_unknown: Fraction = 0.05,
        streaming: bool = False,
        shuffle_buffer: PositiveInt = 10_000,
    ) -> None:
        super().__init__(
            max_length=max_length,
            micro_batch_size=micro_batch_size,
            max_tokens_per_micro_batch=max_tokens_per_micro_batch,
            eval_micro_batch_size=eval_micro_batch_size,
            drop_last=drop_last,
            num_workers=num_workers,
            prefetch_factor=prefetch_factor,
            seed=seed,
        )
        if path is not None and "path" not in inspect.signature(type(source)).parameters:
            raise CaldpoError(
                f"{source.name} reads no data set of the hub",
                key="data.path",
                value=path,
                remedy="choose data=hub with it, or name files with data=local data.train=FILE_OR_FOLDER",
            )
        self.max_prompt_length = _prompt_limit(max_length, max_prompt_length)
        self._notes: list[str] = []
        if max_prompt_length is not None and max_prompt_length != self.max_prompt_length:
            self._notes.append(
                f"data.max_prompt_length={max_prompt_length} leaves no room for a response in data.max_length="
                f"{max_length}: using half of that, {self.max_prompt_length}"
            )
        self.streaming, self.shuffle_buffer = streaming, shuffle_buffer
        if streaming:
            refuse_unstreamed(
                {
                    "data.max_train_pairs": (max_train_pairs, None, "leave it out; trainer.max_steps ends the run"),
                    "data.max_tokens_per_micro_batch": (
                        max_tokens_per_micro_batch if isinstance(max_tokens_per_micro_batch, int) else None,
                        None,
                        "set null and choose data.micro_batch_size, since the lengths of later pairs are not known",
                    ),
                    "data.drop_last": (drop_last, False, "leave it out: each step of a stream has all its pairs"),
                    "data.num_workers": (max(num_workers, 1), 1, "set 1: each worker would read the whole stream"),
                }
            )
        self.source, self.train, self.test = source, train, test
        self.test_fraction, self.split_seed = test_fraction, split_seed
        self.max_train_pairs, self.max_test_pairs = max_train_pairs, max_test_pairs
        self.columns, self.chat_template, self.max_unknown = columns or Columns(), chat_template, max_unknown
        self.on_invalid, self.on_degenerate = on_invalid, on_degenerate
        self.on_reversed_scores, self.on_shared_prompts = on_reversed_scores, on_shared_prompts
        self.ranked, self.unpair = ranked, unpair
        self.preview_pairs = preview_pairs
        self.cache = None if cache is None else Path(cache).expanduser()
        self.now = datetime.combine(datetime.now(), time())  # the day alone, so that runs of one day share tokens
        self.test_sources: Sequence[PreferencePair] = []  # the test split as text, in the order of test_pairs
        self._rejected: Path | None = None  # the file that lists the rows that gave no pair

    def prepare_pairs(
        self,
        tokenizer: PreTrainedTokenizerBase,
        run_dir: Path,
        needs_scores: bool,
        loss_name: str,
        *,
        needs_rejected: bool = True,
        score_range: tuple[float, float] | None = None,
        takes_unpaired: bool = False,
    ) -> DataReport:
        """Load, check, split and tokenise both splits, and announce them with a preview.

        Writes ``rejected_rows.jsonl`` into ``run_dir``, before an error about rows too, and the named chat
        template, if any, into ``tokenizer``, so that generation and the exported model use the same one.

        Args:
            tokenizer: of the policy.
            run_dir: the run's folder; it exists.
            needs_scores: whether the loss takes its targets from the pairs' scores.
            loss_name: for the message if there are none.
            needs_rejected: whether the loss compares responses; otherwise rows with a single one are accepted, too.
            score_range: what the loss needs the scores to lie in; None: anything.
            takes_unpaired: whether the loss takes rows with one response and a label.

        Raises:
            CaldpoError: rows that are no pairs, or of a kind that the loss does not take, prompts in both splits,
                missing scores or such outside the range, a missing or broken chat template, a split without pairs.
        """
        first_rank = is_first_rank()
        console = Console(quiet=not first_rank)
        if self.chat_template is not None:
            tokenizer.chat_template = read_template(self.chat_template)
        self._rejected = rejected = run_dir / REJECTED_ROWS
        if self.unpair and not takes_unpaired:
            refuse_unpair(loss_name)
        reader = RowReader(self.columns, self.on_reversed_scores, not needs_rejected, self.ranked)
        rows = None
        if self.streaming:
            rows = ShuffledRows(self.source, self.train, buffer=self.shuffle_buffer, seed=self.seed)
        joined_train, joined_test, notes = self._load(
            rejected, write=first_rank, demonstrations=not needs_rejected, rows=rows
        )
        for joined in (joined_train, joined_test):
            is_train = joined is joined_train
            if not (self.unpair and is_train) and is_unpaired(joined.pairs, joined.key) and not takes_unpaired:
                refuse_unpaired(joined.pairs, joined.key, loss_name)
        if needs_scores:
            require_scores(joined_train.pairs, joined_train.label, loss_name)
            require_scores(joined_test.pairs, joined_test.label, loss_name)
        if score_range is not None:
            require_score_range(joined_train.pairs, joined_train.label, loss_name, score_range)
            require_score_range(joined_test.pairs, joined_test.label, loss_name, score_range)
        train, shared = settle_shared_prompts(joined_train.pairs, joined_test.pairs, self.on_shared_prompts)
        train, train_shares = joined_train.shared_out(train, self.split_seed)
        test, test_shares = joined_test.shared_out(joined_test.pairs, self.split_seed)
        form = self._prompt_form(tokenizer, text=train.all_text() and test.all_text())
        drawn_train = subset(train, self.max_train_pairs, self.split_seed)
        drawn_test = subset(test, self.max_test_pairs, self.split_seed)
        if self.unpair:
            apart = StoredPairs.of(row for pair in drawn_train for row in taken_apart(pair))
            pairs = counted(len(drawn_train), "pair")
            notes.append(f"data.unpair: {pairs} of data.train taken apart into {len(apart):,} unpaired rows")
        else:
            apart = drawn_train
        train_split = self._tokenize("train", apart, tokenizer, console)
        test_split = self._tokenize("test", drawn_test, tokenizer, console)

        loads = [*joined_train.reports, *joined_test.reports]
        later_train = LoadReport(joined_train.label, rejections=[*shared, *train_split.rejections])
        later_test = LoadReport(joined_test.label, rejections=test_split.rejections)
        if first_rank:
            write_rejections([*loads, later_train, later_test], rejected)
        for split, later in ((train_split, later_train), (test_split, later_test)):
            refuse_unknown(split.counts.unknown_share, self.max_unknown, later.split, tokenizer)
            refuse_untokenized(split.rejections, len(split.pairs), later.split, self.on_invalid, rejected)
        self._pairs = {"train": train_split.pairs, "test": test_split.pairs}
        if rows is not None:
            limits = self.max_length, self.max_prompt_length
            self.stream = PairStream(
                rows,
                reader,
                PairTokenizer(tokenizer, *limits, self.on_degenerate, self.now),
                needs_scores=needs_scores,
                score_range=score_range,
                on_invalid=self.on_invalid,
                on_degenerate=self.on_degenerate,
                on_shared_prompts=self.on_shared_prompts,
                test_prompts=frozenset(joined_test.pairs.keys()),
                labelled=bool((joined_train.pairs.labels() >= 0).all()),
                apart=self.unpair,
                rejected=rejected if first_rank else None,
            )
        self.test_sources = StoredPairs.of(iter(test_split.sources))  # without the training pairs stored beside them
        pad = tokenizer.pad_token_id
        self._pad_id = tokenizer.eos_token_id if pad is None else pad
        report = DataReport(
            source=self.source.name,
            loads=loads,
            train=SplitReport.of(train_split, later_train, left_out=len(train) - len(drawn_train)),
            test=SplitReport.of(test_split, later_test, left_out=len(test) - len(drawn_test)),
            max_length=self.max_length,
            max_prompt_length=self.max_prompt_length,
            prompts=form,
            notes=[*self._notes, *notes, *train_shares, *test_shares],
        )
        print_report(report, console)
        print_preview(train_split, tokenizer, self.preview_pairs, console)
        return report

    @property
    def oracle(self) -> Callable[[str, str], float] | None:
        """The source's known true reward of (prompt, response), where it has one."""
        return self.source.reward if isinstance(self.source, RewardSource) else None

    def true_rewards(self, prompts: Sequence[str], responses: Sequence[str]) -> NDArray[np.float64]:
        """Compute the true reward of each response to its prompt, where :attr:`oracle` is not None."""
        assert isinstance(self.source, RewardSource)
        return np.asarray(self.source.rewards(prompts, responses), dtype=np.float64)

    def pin_source(self, commit: str) -> None:
        """Read a hub data set at ``commit`` from now on; to be called before :meth:`prepare_pairs`."""
        self.source = self.source.pinned(commit)

    def rejected_rows(self) -> dict[str, int]:
        """Count by reason the rows that gave no pair, those of a stream as far as it was read."""
        return {} if self._rejected is None else count_rejections(self._rejected)

    def held_out_prompts(self, count: int) -> list[HeldOutPrompt]:
        """Return the first ``count`` distinct prompts of the test split, in order, or all if it has fewer."""
        prompts: dict[str, HeldOutPrompt] = {}
        for place, pair in enumerate(self.test_sources):
            key = prompt_key(pair.prompt)
            known = prompts.get(key)
            if known is not None:
                if not known.reference:
                    prompts[key] = replace(known, reference=pair.chosen)
                continue
            if len(prompts) == count:
                break
            prompts[key] = HeldOutPrompt(pair.prompt, self.test_pairs[place].prompt_ids, pair.chosen, pair.origin)
        return list(prompts.values())

    def _load(
        self, rejected: Path, *, write: bool, demonstrations: bool, rows: ShuffledRows | None
    ) -> tuple[JoinedPairs, JoinedPairs, list[str]]:
        """Load training pairs, test pairs, and lines about where the latter come from.

        Of a stream, the first ``rows`` are the training pairs here.

        All splits are read and the file of rejections is written before bad rows are an error, so that one
        attempt shows everything there is to mend.
        """
        policies: dict[str, Any] = {
            "on_degenerate": self.on_degenerate,
            "on_reversed_scores": self.on_reversed_scores,
            "demonstrations": demonstrations,
            "columns": self.columns,
            "ranked": self.ranked,
        }
        named, notes = held_out_name(self.source, self.train, self.test)
        if rows is not None:
            if named is None:
                raise CaldpoError(
                    "is needed with data.streaming, which cannot cut held-out pairs from pairs yet to be read",
                    key="data.test",
                    value=self.test,
                    remedy="name a split or a file of its own, with data.test=NAME",
                )
            first = f"{rows.label}, the first {SAMPLE} rows"
            train = read_joined(rows, first, "data.train", find_repeats=False, **policies)  # a stream keeps repeats
            notes.append(f"data.streaming: later rows are checked as they are read, {self.shuffle_buffer:,} at a time")
        else:
            train = read_joined(self.source, self.train, "data.train", **policies)
        test = None if named is None else read_joined(self.source, named, "data.test", **policies)
        reports = [*train.reports, *(test.reports if test else [])]
        if write:
            write_rejections(reports, rejected)
        if self.on_invalid == "error":
            refuse_bad_rows(reports, rejected)
        for report in reports:
            require_pairs(report)
        if test is None:
            pairs, held_out = split_by_prompt(train.pairs, self.test_fraction, self.split_seed)
            train, test = replace(train, pairs=pairs), train.held_out(held_out)
        return train, test, notes

    def _prompt_form(self, tokenizer: PreTrainedTokenizerBase, *, text: bool) -> str:
        """Name what renders the prompts, checked to exist: plain text or a chat template."""
        if text:
            return "plain text"
        require_template(tokenizer)
        form = self.chat_template or "the tokenizer's chat template"
        if reads_clock(str(tokenizer.get_chat_template())):
            form += f", which writes the date: this run's is {self.now:%Y-%m-%d}"
        return form

    def _tokenize(
        self, name: str, pairs: StoredPairs, tokenizer: PreTrainedTokenizerBase, console: Console
    ) -> TokenizedSplit:
        return cached_tokens(
            pairs,
            tokenizer,
            cache=self.cache,
            max_length=self.max_length,
            max_prompt_length=self.max_prompt_length,
            on_degenerate=self.on_degenerate,
            console=console,
            bar=Console(stderr=True, quiet=console.quiet),
            label=name,
            now=self.now,
        )


def _prompt_limit(max_length: int, max_prompt_length: int | None) -> int:
    """Limit the prompt of a pair that is too long: as configured, if below ``max_length``, else to half of that."""
    if max_length < 2:
        raise CaldpoError(
            "leaves no room for a prompt and a response",
            key="data.max_length",
            value=max_length,
            remedy="set the length of most pairs; published settings are 512 to 1024",
        )
    if max_prompt_length is not None and max_prompt_length < max_length:
        return max_prompt_length
    return max_length // 2
