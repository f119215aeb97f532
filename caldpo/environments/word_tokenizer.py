"""Build word-level tokenizers for the embedded environments: every token is one word, with the space before it.

``▁plot`` is `` plot``, as in most language models: text comes back from its tokens exactly, prompt and response
can be tokenised apart, and a decoded response needs no repair of spaces.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNK = SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")
_SPACE = "▁"


def word_tokenizer(first: Iterable[str], later: Iterable[str], max_length: int) -> PreTrainedTokenizerFast:
    """Build a tokenizer without chat template that puts BOS in front.

    Ids run through the special tokens, then ``first``, words that begin a text, then ``later``, words with a space
    before them. Any other word becomes the unknown token.
    """
    words = [*SPECIAL_TOKENS, *first, *(f"{_SPACE}{word}" for word in later)]
    vocabulary = {word: i for i, word in enumerate(words)}
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
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
