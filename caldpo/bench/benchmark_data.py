"""The pairs that every variant trains on: synthetic ones with realistic lengths, or the user's own file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from rich.console import Console

from caldpo.bench.word_ids import EOS, SPECIAL, as_text
from caldpo.data.batching import StepBatchSampler
from caldpo.data.load import load_pairs, refuse_bad_rows, require_pairs, write_rejections
from caldpo.data.pair import TokenizedPair
from caldpo.data.pair_checks import refuse_untokenized
from caldpo.data.sources.local_files import LocalFiles
from caldpo.data.split import subset
from caldpo.data.template_source import require_template
from caldpo.data.token_arrays import TokenizedPairs
from caldpo.data.tokenize import tokenize_pairs, truncate
from caldpo.errors import CaldpoError
from caldpo.models.hub_model import load_tokenizer

# Log-normal lengths, tokens before truncation: the median, and the spread of the logarithm. Means are about 150
# and 205, one response in a hundred has more than 900 tokens; long answers meet long answers.
PROMPT_MEDIAN, RESPONSE_MEDIAN = 110, 150
SPREAD = 0.8
CORRELATION = 0.5  # between the logarithms of the two responses' lengths
SHORTEST = 2  # tokens: a word and its end


def synthetic_pairs(
    count: int, *, vocab_size: int, max_length: int, max_prompt_length: int, seed: int
) -> TokenizedPairs:
    """``count`` pairs of uniformly drawn ids, cut to the limits exactly as real pairs are.

    Responses end in an EOS unless they are cut.
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
    """``count`` pairs drawn from a file, tokenised as in training, and :func:`folded`.

    Args:
        path: as ``data.train`` of ``data=local``.
        tokenizer_name: hub id or folder.
        count: pairs wanted.
        vocab_size: of the model.
        max_length: tokens of a prompt and its longer response together.
        max_prompt_length: tokens left of the prompt of a pair that is too long.
        seed: of the draw.
        folder: where unusable rows are listed.

    Raises:
        CaldpoError: no such file or tokenizer, or fewer pairs than wanted.
    """
    loaded, report = load_pairs(LocalFiles(), path, on_degenerate="drop", on_reversed_scores="keep")
    rejected = folder / "rejected_rows.jsonl"
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
    chosen = subset(loaded, count, seed)
    if any(not isinstance(pair.prompt, str) for pair in chosen):
        require_template(tokenizer)
    split = tokenize_pairs(
        chosen,
        tokenizer,
        max_length=max_length,
        max_prompt_length=max_prompt_length,
        on_degenerate="keep",  # two responses that are the same once cut still cost what others cost
        console=Console(stderr=True),
        label="Tokenising",
    )
    refuse_untokenized(split.rejections, len(split.pairs), path, "error", rejected)
    return folded(split.pairs, vocab_size, tokenizer.eos_token_id)


def folded(pairs: Iterable[TokenizedPair], vocab_size: int, eos: int) -> TokenizedPairs:
    """The same lengths in a vocabulary of ``vocab_size`` ids, of which the first few are special.

    Special ids and ids beyond the vocabulary become others.

    Args:
        pairs: of another vocabulary.
        vocab_size: of the new one.
        eos: what ends a response that is not cut, in the pairs' own vocabulary.
    """
    plain = vocab_size - len(SPECIAL)

    def fold(ids: list[int]) -> list[int]:
        return [token if len(SPECIAL) <= token < vocab_size else len(SPECIAL) + token % plain for token in ids]

    def response(ids: list[int]) -> list[int]:
        return [*fold(ids[:-1]), EOS] if ids[-1] == eos else fold(ids)

    return TokenizedPairs(
        TokenizedPair(fold(p.prompt_ids), response(p.chosen_ids), response(p.rejected_ids), None, None, i, p.origin)
        for i, p in enumerate(pairs)
    )


def save_pairs(pairs: Iterable[TokenizedPair], ids: Path, texts: Path) -> None:
    """Write the pairs twice, a line each: as ids, and as text that tokenises to these ids."""
    with ids.open("w", encoding="utf-8") as id_file, texts.open("w", encoding="utf-8") as text_file:
        for p in pairs:
            id_file.write(json.dumps([p.prompt_ids, p.chosen_ids, p.rejected_ids]) + "\n")
            row = {"prompt": as_text(p.prompt_ids)}
            row |= {side: f" {as_text(x)}" for side, x in (("chosen", p.chosen_ids), ("rejected", p.rejected_ids))}
            text_file.write(json.dumps(row) + "\n")


def read_pairs(ids: Path) -> TokenizedPairs:
    """The ids that :func:`save_pairs` wrote."""
    rows = [json.loads(line) for line in ids.read_text(encoding="utf-8").splitlines()]
    return TokenizedPairs(
        TokenizedPair(prompt, chosen, rejected, None, None, i, f"{ids.name}:{i + 1}")
        for i, (prompt, chosen, rejected) in enumerate(rows)
    )


def training_order(count: int, micro_batch_size: int, seed: int) -> list[int]:
    """The order in which this project's training visits ``count`` pairs in its first epoch."""
    return StepBatchSampler(count, micro_batch_size, seed=seed).order()


def waste(lengths: np.ndarray, micro_batch_size: int) -> tuple[float, float]:
    """What rows cost: tokens with padding over tokens without, and those over tokens with each prompt once.

    Args:
        lengths: of prompt, chosen and rejected, ``(pairs, 3)``, in the order of training.
        micro_batch_size: pairs whose rows are padded to their longest.
    """
    rows = lengths[:, :1] + lengths[:, 1:]
    starts = range(0, len(lengths), micro_batch_size)
    padded = sum(rows[i : i + micro_batch_size].size * int(rows[i : i + micro_batch_size].max()) for i in starts)
    return padded / rows.sum(), rows.sum() / lengths.sum()
