"""Log-ratios of any policy to any reference on any pairs, as a data frame."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from caldpo.api.given_model import Model, Tokenizer, own_tokenizer, read_model, read_tokenizer, run_or_model
from caldpo.api.given_pairs import Pairs
from caldpo.api.tokenized_rows import tokenized_rows
from caldpo.api.trained_run import Run
from caldpo.config.bounds import PositiveInt
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from caldpo.data.pair import TokenizedPair

SIDES = ("chosen", "rejected")


@validated
def log_ratios(
    policy: Model | Run,
    reference: Model | Run | None,
    pairs: Pairs,
    *,
    tokenizer: Tokenizer | None = None,
    max_length: int | None = None,
    max_prompt_length: int | None = None,
    batch_size: PositiveInt = 16,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> pd.DataFrame:
    """Compute the log-probs of preference pairs by two models, and their log-ratios, in nats.

    Args:
        policy: a run or its folder, a folder in the hub's format, the id of a model of the hub, or a model in memory.
        reference: likewise; None takes the reference of the policy's run. Its own tokenizer, if it has one, has to give
            the same ids.
        pairs: files, or rows in memory.
        tokenizer: of both models; None takes that of the run or folder.
        max_length: tokens of a prompt and its longer response; a longer pair is truncated. None truncates nothing.
        max_prompt_length: tokens left of the prompt of a pair that is too long; None: half of ``max_length``.
        batch_size: largest number of responses in a forward pass.
        device: where to compute; models in memory move there, and back.

    Returns:
        A row per pair, in order. Sums over the tokens of a response, nats: ``policy_chosen``, ``policy_rejected``,
        ``reference_chosen``, ``reference_rejected``, and of the first less the last ``chosen_log_ratio`` and
        ``rejected_log_ratio``. ``chosen_tokens`` and ``rejected_tokens`` count the end token. ``prompt``, ``chosen``
        and ``rejected`` are the texts.

    Raises:
        CaldpoError: naming rows that are no pairs, and what cannot be loaded or computed.
    """
    import numpy as np
    import pandas as pd

    from caldpo.evaluation.model_loading import find_device
    from caldpo.model_data_checks import require_pairs_fit
    from caldpo.models.model_probes import require_valid_logprobs
    from caldpo.reference.reference_load import check_vocabulary

    place = find_device(device)
    policy = run_or_model(policy, "policy")
    reference = None if reference is None else run_or_model(reference, "reference")
    if reference is None and not isinstance(policy, Run):
        raise CaldpoError("is needed, since the policy is no run", key="reference", remedy="name a model or folder")
    known = _tokenizer_of(policy, reference, tokenizer)
    tokens, texts = tokenized_rows(pairs, known, max_length, max_prompt_length)
    model = read_model(policy, "policy")
    other = policy.reference if isinstance(policy, Run) and reference is None else read_model(reference, "reference")
    check_vocabulary("the given one", other, model)
    longest = max(len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids)) for pair in tokens)
    logps = {}
    for role, scored in (("policy", model), ("reference", other)):
        require_pairs_fit(scored, known, tokens)
        with _on(place, scored):
            require_valid_logprobs(scored, training=False, max_length=longest, key=role)
            logps[role] = _score(scored, tokens, known, batch_size, role)
    lengths = np.array([[len(pair.chosen_ids), len(pair.rejected_ids)] for pair in tokens]).T
    ratios = logps["policy"] - logps["reference"]
    columns: dict[str, Any] = {f"{role}_{side}": logps[role][i] for role in logps for i, side in enumerate(SIDES)}
    columns |= {f"{side}_log_ratio": ratios[i] for i, side in enumerate(SIDES)}
    columns |= {f"{side}_tokens": lengths[i] for i, side in enumerate(SIDES)}
    return pd.DataFrame(columns | {name: [getattr(pair, name) for pair in texts] for name in ("prompt", *SIDES)})


def _tokenizer_of(
    policy: Model | Run, reference: Model | Run | None, given: Tokenizer | None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of both models, and refuse a reference that brings another; no weights load."""
    from caldpo.reference.reference_load import check_tokens

    known = own_tokenizer(policy, "policy") if given is None else read_tokenizer(given)
    theirs = None if reference is None else own_tokenizer(reference, "reference")
    known = theirs if known is None else known
    if known is None:
        raise CaldpoError("neither model brings one", key="tokenizer", remedy="give tokenizer=")
    if theirs is not None:
        named = reference.folder if isinstance(reference, Run) else str(reference)
        check_tokens(known, theirs.get_vocab(), named, key="reference")
    return known


@contextlib.contextmanager
def _on(device: torch.device, model: PreTrainedModel) -> Iterator[None]:
    """Move a model to a device until the context ends."""
    before = model.device
    if before.type == device.type:
        yield
        return
    from torch import nn

    try:
        nn.Module.to(model, device)
        yield
    finally:
        nn.Module.to(model, before)


def _score(
    model: PreTrainedModel,
    pairs: Sequence[TokenizedPair],
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    role: str,
) -> NDArray[np.float64]:
    import torch

    from caldpo.evaluation.pair_scoring import score_pairs

    pad = tokenizer.pad_token_id
    with torch.no_grad():
        return score_pairs(
            model,
            pairs,
            pad_id=int(tokenizer.eos_token_id if pad is None else pad),
            batch=batch_size,
            label=f"{role}: log-probs",
            context=contextlib.nullcontext,
            whose=f"the {role}'s",
        )
