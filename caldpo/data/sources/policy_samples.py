"""Sample responses of the embedded policy to many prompts: once, then read from a cache."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from caldpo.environments.sft_policy import reproducible
from caldpo.models.sampling import sample_responses
from caldpo.models.tiny_model import TinyModel
from caldpo.utils.delayed_progress import tracked
from caldpo.utils.digests import json_digest
from caldpo.utils.folder_cache import cached_folder

_FILE = "samples.json"  # in the cache's folder
_VERSION = 1  # raised when the same settings would give other samples
_BATCH = 512  # sequences at a time; another number draws other samples


def policy_samples(
    model: TinyModel, prompts: Sequence[str], per_prompt: int, *, seed: str, cache: Path, key: str
) -> list[list[str]]:
    """Sample ``per_prompt`` responses to each prompt from the policy's full distribution, as text.

    They are a function of the arguments but for ``cache``, drawn on one thread. A response that found no end within
    the model's positions is what there is of it.

    Raises:
        CaldpoError: about the configuration's ``key``: ``cache`` cannot be written to.
    """
    facts = [_VERSION, model.name, list(prompts), per_prompt, seed, _BATCH]
    name = f"{model.environment.name}-samples-{json_digest(facts)[:16]}"

    def make(folder: Path) -> None:
        texts = _draw(model, [prompt for prompt in prompts for _ in range(per_prompt)], json_digest([name, seed]))
        grouped = [texts[i : i + per_prompt] for i in range(0, len(texts), per_prompt)]
        (folder / _FILE).write_text(json.dumps(grouped), encoding="utf-8")

    folder = cached_folder(cache, name, make, key=key)
    samples: list[list[str]] = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    return samples


def _draw(model: TinyModel, prompts: Sequence[str], digest: str) -> list[str]:
    policy, tokenizer = model.load_policy(), model.load_tokenizer()
    ids = tokenizer(list(prompts))["input_ids"]
    responses: list[list[int]] = []
    for start in tracked(range(0, len(ids), _BATCH), f"Sampling responses of {model.name}"):
        batch = ids[start : start + _BATCH]
        seed = int(digest[:7], 16) + start
        with reproducible(seed):
            responses += sample_responses(
                policy,
                tokenizer,
                batch,
                ends=[tokenizer.eos_token_id],
                max_new_tokens=model.environment.max_length - max(map(len, batch)),
                temperature=1.0,
                seed=seed,
                batch_size=_BATCH,
            )
    return [str(tokenizer.decode(response, skip_special_tokens=True)) for response in responses]
