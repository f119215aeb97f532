"""The log-prob engine: a causal language model and tokens in, summed log-probs of the responses out."""

from caldpo.logprobs.engine import KEPT_LOGITS_MIB, LogprobEngine, pair_logprobs, response_logprobs

__all__ = ["KEPT_LOGITS_MIB", "LogprobEngine", "pair_logprobs", "response_logprobs"]
