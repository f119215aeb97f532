"""What all variants of a benchmark share, written once: weights, tokenizer, pairs, and an adapter's start."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers.utils import logging

from caldpo.bench.benchmark_data import pairs_of_file, save_pairs, synthetic_pairs
from caldpo.bench.benchmark_model import Shape
from caldpo.bench.benchmark_settings import BenchmarkSettings
from caldpo.bench.word_ids import word_tokenizer
from caldpo.bench.worker_job import ADAPTER, IDS, MODEL, TEST, TOKENIZER, TRAIN
from caldpo.data.token_arrays import TokenizedPairs
from caldpo.models.random_init import RandomModel


def prepare(settings: BenchmarkSettings, shape: Shape, folder: Path) -> TokenizedPairs:
    """Fill ``folder``; returns the pairs.

    Raises:
        CaldpoError: the data file or its tokenizer is not there, or too small.
    """
    folder.mkdir(parents=True)
    limits = {"max_length": shape.max_length, "max_prompt_length": shape.max_prompt_length}
    if settings.data_file is None:
        pairs = synthetic_pairs(settings.pairs, vocab_size=shape.vocab_size, seed=settings.seed, **limits)
    else:
        assert settings.tokenizer is not None
        pairs = pairs_of_file(
            settings.data_file,
            settings.tokenizer,
            settings.pairs,
            vocab_size=shape.vocab_size,
            seed=settings.seed,
            folder=folder.parent,
            **limits,
        )
    save_pairs(pairs, folder / IDS, folder / TRAIN)
    first, _, _ = (folder / TRAIN).read_text(encoding="utf-8").partition("\n")
    (folder / TEST).write_text(first + "\n", encoding="utf-8")  # a run evaluates something; here it matters not what
    word_tokenizer(shape.vocab_size).save_pretrained(folder / TOKENIZER)
    _save_model(settings, shape, folder)
    return pairs


def discard(folder: Path) -> None:
    """Remove what :func:`prepare` made; the weights may be large."""
    shutil.rmtree(folder, ignore_errors=True)


def _save_model(settings: BenchmarkSettings, shape: Shape, folder: Path) -> None:
    logging.disable_progress_bar()
    model = RandomModel(tokenizer=str(folder / TOKENIZER), **shape.model_keys(settings.seed)).load_policy()
    model.save_pretrained(folder / MODEL)
    if shape.lora_rank is not None:
        from caldpo.models.adapters import Lora

        Lora(rank=shape.lora_rank).apply(model).save_pretrained(folder / ADAPTER, save_embedding_layers=False)
