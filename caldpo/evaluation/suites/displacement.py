"""Measure likelihood displacement: which responses became less likely while the margin between them grew.

Razin et al. 2024 (arXiv 2410.08847); Pal et al. 2024 (arXiv 2402.13228) saw it where responses share most tokens.
The log-ratios of unrelated text show what else training changed.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from caldpo.config.bounds import PositiveInt, Share
from caldpo.config.signatures import validated
from caldpo.data.pair import TokenizedPair
from caldpo.data.sources.json_rows import read_jsonl
from caldpo.errors import CaldpoError
from caldpo.evaluation.bootstrap import Bootstrap
from caldpo.evaluation.evaluated_policy import EvaluatedPolicy
from caldpo.evaluation.suite_base import Measure, Result, Suite

LEVELS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
PLAIN = Path(__file__).parents[1] / "texts" / "plain.txt"
_MAX_UNKNOWN = 0.2  # share of unknown tokens above which the tokenizer does not know the language of a text
_KEY = "displacement.unrelated"
Values = NDArray[np.float64]


@validated
@dataclass(frozen=True, kw_only=True)
class Displacement(Suite):
    """Distribution of the log-ratios of held-out responses, by length, and drift on unrelated text.

    Unrelated text is that of a file, or plain sentences of the project; where the tokenizer does not know plain
    English, the held-out prompts, on which no loss is computed.
    """

    name: ClassVar[str] = "displacement"
    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True

    length_bins: PositiveInt = 4
    unrelated: str = "auto"
    max_text_tokens: PositiveInt = 256
    resamples: PositiveInt = 1000
    confidence: Share = 0.95

    def check(self) -> None:
        if self.unrelated not in ("auto", "none"):
            read_texts(self.unrelated)

    def run(self, policy: EvaluatedPolicy) -> Result:
        chosen, rejected = policy.log_ratios
        tokens = np.array([[len(p.chosen_ids), len(p.rejected_ids)] for p in policy.pairs], dtype=np.float64).T
        bootstrap = Bootstrap(self.resamples, self.confidence, policy.settings.seed)
        measures = _shift_measures(chosen, rejected, tokens, bootstrap, policy.prompts)
        drift, unrelated = self._drift(policy, bootstrap)
        quantiles = {
            name: np.quantile(values, LEVELS).tolist() for name, values in (("chosen", chosen), ("rejected", rejected))
        }
        return Result(
            measures=measures | drift,
            examples=len(chosen),
            details={
                "log_ratios": {"levels": list(LEVELS), **quantiles},
                "by_length": by_length(chosen, rejected, tokens.mean(axis=0), self.length_bins),
                "unrelated": unrelated,
                "confidence": self.confidence,
            },
        )

    def _drift(self, policy: EvaluatedPolicy, bootstrap: Bootstrap) -> tuple[dict[str, Measure], str | None]:
        """Measure log-ratios of unrelated texts, and describe these; nothing where no text has two tokens.

        Raises:
            CaldpoError: the tokenizer does not know most words of the file.
        """
        if self.unrelated == "none":
            return {}, None
        plain = self.unrelated == "auto"
        texts = read_texts(str(PLAIN) if plain else self.unrelated)
        ids = [policy.tokenizer(text)["input_ids"][: self.max_text_tokens] for text in texts]
        title = "drift on unrelated text"
        description = f"{len(ids)} plain sentences" if plain else f"{len(ids)} texts of {self.unrelated}"
        is_unknown = [token == policy.tokenizer.unk_token_id for text in ids for token in text]
        if not is_unknown or np.mean(is_unknown) > _MAX_UNKNOWN:
            if not plain:
                raise CaldpoError(
                    "most of its words are unknown to the model's tokenizer", key=_KEY, value=self.unrelated
                )
            ids = [prompt.prompt_ids for prompt in policy.held_out(len(policy.pairs))]
            title = "drift on held-out prompts"
            description = "the held-out prompts, on which no loss is computed (plain text is unknown to this tokenizer)"
        ids = [tokens for tokens in ids if len(tokens) > 1]
        if not ids:
            return {}, None
        pairs = [TokenizedPair(t[:1], t[1:], t[1:2], None, None, i, "") for i, t in enumerate(ids)]
        by_policy = policy.logps("policy", pairs, "unrelated text")
        ratios = (by_policy - policy.logps("reference", pairs, "unrelated text"))[0]
        tokens = np.array([len(t) - 1 for t in ids], dtype=np.float64)
        clusters = range(len(ids))  # each text its own
        measures = {
            "drift": Measure(
                **bootstrap.of_sums(lambda total, count: total / count, (ratios, tokens), clusters),
                title=title,
                unit="nats per token",
                meaning=f"log-ratio policy/reference per token of text that no loss was computed on: {description}",
                main=True,
            ),
            "drift_size": Measure(
                **bootstrap.mean(np.abs(ratios) / tokens, clusters),
                title="size of that drift",
                unit="nats per token",
                meaning="mean absolute log-ratio per token of the same texts, each counted once",
            ),
        }
        return measures, description


def by_length(chosen: Values, rejected: Values, lengths: Values, bins: int) -> list[dict[str, Any]]:
    """Count pairs whose responses became less likely, in bins of about equally many pairs by length.

    Args:
        chosen: log-ratios, nats, ``(pairs,)``.
        rejected: the same of the rejected responses.
        lengths: of each pair, in tokens. Pairs of one length share a bin.
        bins: largest number of bins; fewer where lengths repeat.
    """
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, bins + 1)[1:-1], method="lower"))
    bin_of = np.searchsorted(edges, lengths, side="left")
    members = [bin_of == i for i in np.unique(bin_of)]
    return [
        {
            "low": float(lengths[inside].min()),
            "high": float(lengths[inside].max()),
            "count": int(inside.sum()),
            "chosen_fell": float((chosen[inside] < 0).mean()),
            "both_fell": float(((chosen[inside] < 0) & (rejected[inside] < 0)).mean()),
            "chosen": float(chosen[inside].mean()),
        }
        for inside in members
    ]


def _shift_measures(
    chosen: Values, rejected: Values, tokens: Values, bootstrap: Bootstrap, prompts: Sequence[Hashable]
) -> dict[str, Measure]:
    def per_token(log_ratio: Any, count: Any) -> Any:
        return log_ratio / count

    return {
        "chosen_fell": Measure(
            **bootstrap.mean(chosen < 0, prompts),
            title="chosen fell",
            unit="share of pairs",
            meaning="share of held-out pairs whose chosen response became less likely than under the reference",
            main=True,
        ),
        "both_fell": Measure(
            **bootstrap.mean((chosen < 0) & (rejected < 0), prompts),
            title="both fell",
            unit="share of pairs",
            meaning="share of pairs of which both responses became less likely: something else became likelier",
            main=True,
        ),
        "rejected_fell": Measure(
            **bootstrap.mean(rejected < 0, prompts),
            title="rejected fell",
            unit="share of pairs",
            meaning="share of pairs whose rejected response became less likely than under the reference",
        ),
        "chosen_per_token": Measure(
            **bootstrap.of_sums(per_token, (chosen, tokens[0]), prompts),
            title="chosen log-ratio per token",
            unit="nats per token",
            meaning="sum of the chosen responses' log-ratios divided by the sum of their tokens",
            main=True,
        ),
        "rejected_per_token": Measure(
            **bootstrap.of_sums(per_token, (rejected, tokens[1]), prompts),
            title="rejected log-ratio per token",
            unit="nats per token",
            meaning="the same of the rejected responses",
        ),
    }


def read_texts(path: str) -> list[str]:
    """Read the texts of a file: one a line of ``.txt``, or the key ``text`` of each line of ``.jsonl``.

    Raises:
        CaldpoError: there is no such file, or a line without text.
    """
    file = Path(path).expanduser()
    try:
        lines = _read_jsonl_texts(file) if file.suffix == ".jsonl" else file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise CaldpoError(f"cannot be read: {reason}", key=_KEY, value=path) from error
    texts = [text for text in lines if text.strip()]
    if not texts:
        raise CaldpoError("holds no text", key=_KEY, value=path)
    return texts


def _read_jsonl_texts(file: Path) -> list[str]:
    texts = []
    for row in read_jsonl(file):
        text = row.value.get("text") if isinstance(row.value, Mapping) else None
        if row.error is not None or not isinstance(text, str):
            raise CaldpoError(row.error or 'is no object with a "text"', key=row.origin)
        texts.append(text)
    return texts
