"""Sampling responses from a causal language model, reproducibly and without touching global generators."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caldpo.compilation import uncompiled
from caldpo.models.padding import prompt_batches
from caldpo.sharding.shard import is_sharded


def reference_seed(seed: int) -> int:
    """The seed of the reference's samples where the policy's have ``seed``.

    With one seed for both, similar models draw the same words, and whoever is better wins more often than independent
    samples would say.
    """
    return random.Random(f"reference {seed}").getrandbits(31)


@torch.no_grad()
def sample_responses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    batch_size: int = 128,
    device: torch.device | None = None,
    done: Callable[[int], object] = lambda responses: None,
) -> list[list[int]]:
    """One response per prompt, as token ids up to and including EOS (absent when the length ran out).

    Args:
        prompts: token ids of each prompt, as the model was trained on them.
        temperature: of plain sampling from the whole distribution; 0 takes the likeliest token.
        seed: of the sampling; global generators are left as they were.
        batch_size: prompts at a time; another one draws other samples.
        device: where the model computes, if that is not where its weights lie.
        done: told after each batch how many responses it was of, for a progress bar.
    """
    was_training = model.training
    model.eval()
    device = device or model.device
    devices = [device] if device.type == "cuda" else []
    responses: list[list[int]] = [[] for _ in prompts]
    with uncompiled(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for places in prompt_batches(
            model,
            prompts,
            batch_size,
            max_new_tokens=max_new_tokens,
            device=device,
            synced_gpus=is_sharded(model),
        ):
            batch = [prompts[place] for place in places]
            for place, ids in zip(
                places, _sample_batch(model, tokenizer, batch, max_new_tokens, temperature, device), strict=True
            ):
                responses[place] = ids
            done(len(batch))
    model.train(was_training)
    return responses


def _sample_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    temperature: float,
    device: torch.device,
) -> list[list[int]]:
    longest = max(map(len, prompts))
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    generate: Any = model.generate  # typed as a tensor by torch's __getattr__
    out = generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        eos_token_id=eos,
        pad_token_id=pad,
        use_cache=True,
        synced_gpus=is_sharded(model),  # ranks with parts of the weights go on until the last of them is done
        **(sampling if temperature else {"do_sample": False}),
    )[:, longest:].tolist()
    # the first EOS ends a response; what follows is padding, whatever its id
    return [row[: row.index(eos) + 1] if eos in row else row for row in out]
