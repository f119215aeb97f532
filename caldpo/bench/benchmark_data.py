"""What all variants share, written once: pairs, word tokenizer, weights, and the adapter's start."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from rich.console import Console
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging

from caldpo.bench.benchmark_settings import BenchmarkModel, BenchmarkSettings
from caldpo.bench.worker_job import ADAPTER, IDS, MODEL, TEST, TOKENIZER, TRAIN
from caldpo.data.batching import StepPlan
from caldpo.data.load import load_pairs, refuse_bad_rows, require_pairs
from caldpo.data.pair import TokenizedPair
from caldpo.data.pair_checks import refuse_untokenized
from caldpo.data.rejected_rows import REJECTED_ROWS, write_rejections
from caldpo.data.sources.local_files import LocalFiles
from caldpo.data.split import subset
from caldpo.data.template_checks import require_template
from caldpo.data.token_arrays import TokenizedPairs
from caldpo.data.tokenize import tokenize_pairs, truncate
from caldpo.errors import CaldpoError
from caldpo.estimation.run_flops import ModelCost
from caldpo.models.adapters import Lora
from caldpo.models.hub_model import load_tokenizer
from caldpo.models.random_init import RandomModel

# Log-normal lengths, tokens before truncation: the median, and the spread of the logarithm. Means are about 150
# and 205, one response in a hundred has more than 900 tokens; long responses meet long responses.
PROMPT_MEDIAN, RESPONSE_MEDIAN = 110, 150
SPREAD = 0.8
CORRELATION = 0.5  # between the logarithms of the two responses' lengths
SHORTEST = 2  # tokens: a word and the EOS

SPECIAL = ("<pad>", "<unk>", "</s>")  # ids 0, 1, 2
EOS = SPECIAL.index("</s>")


def prepare(settings: BenchmarkSettings, model: BenchmarkModel, folder: Path) -> tuple[TokenizedPairs, ModelCost]:
    """Write pairs, tokenizer, weights and the adapter's start into ``folder``; return the pairs, and sizes for FLOPs.

    Raises:
        CaldpoError: the data file or its tokenizer does not exist, or has too few pairs.
    """
    folder.mkdir(parents=True)
    keys = {name: getattr(model, name) for name in ("vocab_size", "max_length", "max_prompt_length")}
    keys["seed"] = settings.seed
    if settings.data_file is None:
        pairs = synthetic_pairs(settings.pairs, **keys)
    else:
        assert settings.tokenizer is not None
        file, tokenizer = settings.data_file, settings.tokenizer
        pairs = pairs_of_file(file, tokenizer, settings.pairs, folder=folder.parent, **keys)
    save_pairs(pairs, folder / IDS, folder / TRAIN)
    first, _, _ = (folder / TRAIN).read_text(encoding="utf-8").partition("\n")
    (folder / TEST).write_text(first + "\n", encoding="utf-8")  # a run has to evaluate some pair
    word_tokenizer(model.vocab_size).save_pretrained(folder / TOKENIZER)
    logging.disable_progress_bar()
    policy = RandomModel(tokenizer=str(folder / TOKENIZER), **model.random_model_keys(settings.seed)).load_policy()
    policy.save_pretrained(folder / MODEL)
    if model.lora_rank is not None:
        policy = Lora(rank=model.lora_rank).apply(policy)
        policy.save_pretrained(folder / ADAPTER, save_embedding_layers=False)
    return pairs, ModelCost.of(policy)


def synthetic_pairs(
    count: int, *, vocab_size: int, max_length: int, max_prompt_length: int, seed: int
) -> TokenizedPairs:
    """Draw ``count`` pairs of uniform ids, truncated exactly as real pairs are.

    Responses end in an EOS unless they are truncated.
    """
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal((count, 3))
    normal[:, 2] = CORRELATION * normal[:, 1] + np.sqrt(1 - CORRELATION**2) * normal[:, 2]
    medians = np.array([PROMPT_MEDIAN, RESPONSE_MEDIAN, RESPONSE_MEDIAN])
    lengths = np.maximum(SHORTEST, np.rint(medians * np.exp(SPREAD * normal))).astype(int)
    pairs = []
    for index, (prompt_length, *response_lengths) in enumerate(lengths.tolist()):
        prompt = rng.integers(len(SPECIAL), vocab_size, prompt_length).tolist()
        responses = [[*rng.integers(len(SPECIAL), vocab_size, n - 1).tolist(), EOS] for n in response_lengths]
        ids = truncate(prompt, *responses, max_length=max_length, max_prompt_length=max_prompt_length, bos=None)
        pairs.append(TokenizedPair(*ids, None, None, index, f"synthetic:{index}"))
    return TokenizedPairs(pairs)


def pairs_of_file(
    path: str,
    tokenizer_name: str,
    count: int,
    *,
    vocab_size: int,
    max_length: int,
    max_prompt_length: int,
    seed: int,
    folder: Path,
) -> TokenizedPairs:
    """Draw ``count`` pairs from a file, tokenise them as in training, and :func:`fold` them.

    Unusable rows are listed in ``folder``.

    Raises:
        CaldpoError: no such file or tokenizer, or fewer pairs than wanted.
    """
    loaded, report = load_pairs(LocalFiles(), path, on_degenerate="drop", on_reversed_scores="keep")
    rejected = folder / REJECTED_ROWS
    write_rejections([report], rejected)
    refuse_bad_rows([report], rejected)
    require_pairs(report)
    if len(loaded) < count:
        raise CaldpoError(
            f"has {len(loaded):,} usable pairs, and (warmup_steps + steps) x micro_batch_size are {count:,}",
            key="data_file",
            value=path,
            remedy="lower steps or micro_batch_size, or name a larger file",
        )
    tokenizer = load_tokenizer(tokenizer_name, key="tokenizer")
    drawn = subset(loaded, count, seed)
    if any(not isinstance(pair.prompt, str) for pair in drawn):
        require_template(tokenizer)
    split = tokenize_pairs(
        drawn,
        tokenizer,
        max_length=max_length,
        max_prompt_length=max_prompt_length,
        on_degenerate="keep",  # responses that are equal once truncated cost what others cost
        console=Console(stderr=True),
        label="Tokenising",
    )
    refuse_untokenized(split.rejections, len(split.pairs), path, "error", rejected)
    return fold(split.pairs, vocab_size, tokenizer.eos_token_id)


def fold(pairs: Iterable[TokenizedPair], vocab_size: int, eos: int) -> TokenizedPairs:
    """Map pairs to a vocabulary of ``vocab_size`` ids, of which the first few are special, keeping their lengths.

    Special ids and ids beyond the vocabulary become others. ``eos`` is that of the pairs' own vocabulary.
    """
    plain = vocab_size - len(SPECIAL)

    def fold_ids(ids: list[int]) -> list[int]:
        return [token if len(SPECIAL) <= token < vocab_size else len(SPECIAL) + token % plain for token in ids]

    def fold_response(ids: list[int]) -> list[int]:
        return [*fold_ids(ids[:-1]), EOS] if ids[-1] == eos else fold_ids(ids)

    return TokenizedPairs(
        TokenizedPair(
            fold_ids(p.prompt_ids), fold_response(p.chosen_ids), fold_response(p.rejected_ids), None, None, i, p.origin
        )
        for i, p in enumerate(pairs)
    )


def word_tokenizer(vocab_size: int) -> PreTrainedTokenizerBase:
    """Make a tokenizer of words, so that any ids can be written as text that tokenises to them.

    Its ``vocab_size`` tokens are the special ones, and ``w3``, ``w4``, ... by their ids.
    """
    words = [*SPECIAL, *(f"w{token}" for token in range(len(SPECIAL), vocab_size))]
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def save_pairs(pairs: Iterable[TokenizedPair], ids: Path, texts: Path) -> None:
    """Write the pairs twice, a line each: as ids, and as text that tokenises to these ids."""

    def text(token_ids: Iterable[int]) -> str:  # tokenisation appends the EOS
        return " ".join(f"w{token}" for token in token_ids if token != EOS)

    with ids.open("w", encoding="utf-8") as id_file, texts.open("w", encoding="utf-8") as text_file:
        for p in pairs:
            row = {"prompt_ids": p.prompt_ids, "chosen_ids": p.chosen_ids, "rejected_ids": p.rejected_ids}
            id_file.write(json.dumps(row) + "\n")
            sides = {"chosen": f" {text(p.chosen_ids)}", "rejected": f" {text(p.rejected_ids)}"}
            text_file.write(json.dumps({"prompt": text(p.prompt_ids), **sides}) + "\n")


def training_order(count: int, settings: BenchmarkSettings) -> list[int]:
    """Order in which this project's training visits ``count`` pairs in its first epoch."""
    return list(StepPlan(count, settings.micro_batch_size, seed=settings.seed).order(epoch=0))


def padding_waste(lengths: np.ndarray, micro_batch_size: int) -> tuple[float, float]:
    """Ratios of tokens with padding to tokens without, and of those to tokens with each prompt once.

    ``lengths`` are those of prompt, chosen and rejected, ``(pairs, 3)``, in the order of training.
    """
    rows = lengths[:, :1] + lengths[:, 1:]
    starts = range(0, len(lengths), micro_batch_size)
    padded = sum(rows[i : i + micro_batch_size].size * int(rows[i : i + micro_batch_size].max()) for i in starts)
    return padded / rows.sum(), rows.sum() / lengths.sum()
