"""Use a sentiment classifier as reward: the log-odds that a text is positive."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from caldpo.errors import CaldpoError
from caldpo.models.hub_files import require_safe
from caldpo.utils.delayed_progress import tracked
from caldpo.utils.hub_access import cache_only


class SentimentReward:
    """``log p(positive) - log p(not positive)`` of whole texts, in nats.

    Args:
        path: hub id or folder of a sequence classifier.
        positive_label: the classifier's name for the positive class, upper or lower case.
        device: of the classifier.
        batch_size: texts at a time.
        key: configuration key of ``path``, for errors.

    Raises:
        CaldpoError: the classifier cannot be loaded, or has no such class.
    """

    def __init__(self, path: str, positive_label: str, device: str, batch_size: int, *, key: str) -> None:
        require_safe(path, key=key)
        try:
            local = cache_only(path, None)
            self.tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=local)
            self.model = AutoModelForSequenceClassification.from_pretrained(
                path, trust_remote_code=False, use_safetensors=True, local_files_only=local
            )
        except (OSError, ValueError, ImportError) as error:
            raise CaldpoError(
                f"cannot load a classifier: {str(error).strip().splitlines()[0].rstrip('.')}",
                key=key,
                value=path,
                remedy="give the hub id of a sentiment classifier, or a folder written by save_pretrained",
            ) from error
        self.model.eval().to(device)
        self.batch_size = batch_size
        self.positive = self._class(positive_label, key)
        # Roberta's first position is its padding id + 1, so two of its positions hold no token.
        self.max_length = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings - 2)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> list[float]:
        """Return the reward of each text; for one longer than the classifier reads, that of its beginning."""
        rewards: list[float] = []
        starts: Iterable[int] = range(0, len(texts), self.batch_size)
        for start in tracked(starts, "Scoring texts") if len(texts) > self.batch_size else starts:
            batch = list(texts[start : start + self.batch_size])
            limits = {"padding": True, "truncation": True, "max_length": self.max_length}
            inputs = self.tokenizer(batch, **limits, return_tensors="pt").to(self.model.device)
            logits = self.model(**inputs).logits.double()
            others = torch.cat([logits[:, : self.positive], logits[:, self.positive + 1 :]], dim=1)
            # log p_i - log(1 - p_i): the normaliser of the softmax cancels.
            rewards += (logits[:, self.positive] - others.logsumexp(dim=1)).tolist()
        return rewards

    def _class(self, label: str, key: str) -> int:
        names = {i: str(name) for i, name in self.model.config.id2label.items()}
        classes = [i for i, name in names.items() if name.lower() == label.lower()]
        if len(classes) != 1 or len(names) < 2:
            raise CaldpoError(
                f"the classifier has no such class (its classes: {', '.join(names.values())})",
                key=key.replace("classifier", "positive_label"),
                value=label,
            )
        return int(classes[0])
