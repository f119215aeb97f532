"""Digests of what a run's numbers depend on: saved with each checkpoint, and compared before resuming from it.

Nothing has to be named here to be compared: every key of the configuration is, except those of
:data:`~caldpo.resume.config_diff.IGNORED`, and so is the content of every file that such a key names. The keys of
:data:`COMPARED_AS_READ` name files whose content is compared as the run read it: another column in a data file, or
weights saved in other shards, are the same run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caldpo.checkpointing.checkpoint_weights import frozen_names
from caldpo.data.datamodule import PairDataModule
from caldpo.data.token_cache import tokenizer_digest
from caldpo.models.adapted_policy import base_model
from caldpo.reference.fingerprint import key_of, model_configuration, weights_digest
from caldpo.reference.reference_base import Reference, ReferenceSource
from caldpo.resume.config_diff import compared_keys, config_digest, without_length
from caldpo.utils.digests import json_digest, path_digests
from caldpo.utils.versions import versions

COMPARED_AS_READ = (
    "model.path",
    "model.tokenizer",
    "reference.path",
    "adapter.init_from",
    "data.train",
    "data.test",
    "data.chat_template",
    "data.source.path",
    "data.source.policy",
)
_UNCOMPARED = ("transformers_version", "_from_model_config", "_commit_hash")  # of generation settings


def data_inputs(config: Mapping[str, Any], data: PairDataModule, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Digest, by name, what is known before weights load: resolved configuration, prepared pairs and tokenizer."""
    compared = {k: v for k, v in compared_keys(config).items() if not k.startswith(COMPARED_AS_READ)}
    texts = [[pair.prompt, pair.chosen, pair.rejected] for pair in data.test_sources]
    return {
        "the configuration": config_digest(without_length(config)),
        "the tokens of the training pairs": data.train_pairs.digest(),
        **({} if data.stream is None else {"the files of data.train": json_digest(data.stream.file_sizes())}),
        "the tokens of the held-out pairs": data.test_pairs.digest(),
        "the scores of the training pairs": data.train_pairs.scores_digest(),
        "the scores of the held-out pairs": data.test_pairs.scores_digest(),
        "the texts of the held-out pairs": json_digest(texts),
        "the tokenizer": tokenizer_digest(tokenizer),
        **{f"what {key} names": digest for key, digest in path_digests(compared).items()},
    }


def policy_inputs(policy: PreTrainedModel) -> dict[str, str]:
    """Digest the policy's configuration and generation settings, before its first step."""
    generation = getattr(base_model(policy), "generation_config", None)
    settings = {} if generation is None else {k: v for k, v in generation.to_dict().items() if k not in _UNCOMPARED}
    return {
        "the policy's configuration": key_of(model_configuration(policy)),
        "the policy's generation settings": json_digest(settings),
    }


def frozen_inputs(policy: PreTrainedModel, reference: Reference, source: ReferenceSource) -> dict[str, str]:
    """Digest the weights that no checkpoint holds, the reference's and the policy's frozen ones; a collective call."""
    facts = dict(reference.facts())
    weights = facts.pop("weights")
    inputs = {"the reference's weights": weights, "the reference's configuration": key_of(facts)}
    own_start = source.path is None and source.dtype == "same"
    if frozen_names(policy) and not own_start:  # else they are the reference's, and reading them takes long
        inputs["the policy's frozen weights"] = weights_digest(policy)
    return inputs


def environment(policy: PreTrainedModel, device: torch.device, layout: str) -> dict[str, str]:
    """Describe what a run's last bits depend on and may change at a resume: that is noted, not refused."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {
        **versions(),
        "CPU threads": str(torch.get_num_threads()),
        "device": f"{device.type} ({gpu})",
        "attention": str(base_model(policy).config._attn_implementation),
        "layout": layout,
    }
