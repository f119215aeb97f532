"""How likely the policy's texts are to another model: whether reward was bought by gibberish."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from caldpo.data.pair import TokenizedPair
from caldpo.evaluation.eval_precision import placed
from caldpo.evaluation.evaluated_policy import EvaluatedPolicy
from caldpo.evaluation.pair_scoring import score_pairs
from caldpo.models.hub_model import load_causal_lm, load_tokenizer

Values = NDArray[np.float64]
KEY = "oracle.perplexity_model"


def score_texts(
    path: str, subject: EvaluatedPolicy, prompts: Sequence[str], texts: Sequence[str]
) -> tuple[Values, Values]:
    """Summed log-probs in nats, and tokens, of each text under another model; of an empty text nothing, at no token.

    Args:
        path: hub id or folder of that model, which reads the texts in its own tokens.
        subject: whose policy wrote them.
        prompts: of each text.
        texts: the responses.
    """
    tokenizer = subject.bench.once(f"tokenizer {path}", lambda: load_tokenizer(path, key=KEY))
    model = subject.bench.once(
        f"perplexity {path} {subject.precision}",
        lambda: placed(load_causal_lm(path, key=KEY, dtype="auto"), subject.precision, subject.device),
    )
    heads = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    tails = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    logps, tokens = np.zeros(len(texts)), np.array([len(ids) for ids in tails], dtype=np.float64)
    said = np.flatnonzero(tokens)
    start = [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id]
    pairs = [TokenizedPair(heads[i] or start, tails[i], tails[i][:1], None, None, n, "") for n, i in enumerate(said)]
    logps[said] = score_pairs(
        model,
        pairs,
        pad_id=tokenizer.pad_token_id,
        batch=subject.batch,
        label="perplexity",
        context=subject.context,
        whose=f"{path}'s",
    )[0]
    return logps, tokens
