"""A word-level tokenizer whose every token is one word, with the space before it.

``▁plot`` is `` plot``, as in most language models: text comes back from its tokens exactly, prompt and response
can be tokenised apart, and reading a decoded response needs no repair of spaces.
"""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from caldpo.environments.reviews.vocabulary import PROMPT_WORDS, WORDS

BOS, EOS, PAD, UNK = "<s>", "</s>", "<pad>", "<unk>"
_SPACE = "▁"
MAX_LENGTH = 64
"""Tokens of the longest prompt with the longest review, and room for a model's ramblings."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the reviews environment, in text mode (no chat template); BOS is put in front.

    A word that is not in the vocabulary, or one without a space before it other than the prompt's first,
    becomes the unknown token.
    """
    first, *others = PROMPT_WORDS
    words = [first, *(f"{_SPACE}{word}" for word in WORDS if word != first)]
    vocabulary = {token: i for i, token in enumerate((PAD, BOS, EOS, UNK, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(_SPACE, prepend_scheme="never")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
