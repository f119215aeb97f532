"""The log-prob engine: a causal language model and tokens in, summed log-probs of the responses out."""

from caldpo.logprobs.engine import LOGITS_CACHE_MIB, LogprobEngine

__all__ = ["LOGITS_CACHE_MIB", "LogprobEngine"]
