"""Whether a run that is built again is the run that was trained: its reference, its pairs, its log-ratios."""

from __future__ import annotations

from caldpo.evaluation.evaluated_policy import EvaluatedPolicy
from caldpo.utils.yaml_io import flatten


def doubts(subject: EvaluatedPolicy) -> list[str]:
    """What a reader has to know before believing measures of a run: notes, none where all is as it was."""
    if subject.target.run is None:
        return []
    if not subject.target.own_data:
        return [f"of the pairs of {subject.data.source.name} ({subject.data.test}), not of those that the run held out"]
    return [*_other_reference(subject), *_other_pairs(subject)]


def logged_otherwise(subject: EvaluatedPolicy, chosen: float) -> list[str]:
    """A note where the run logged another mean chosen log-ratio than is measured of the same weights and pairs.

    Args:
        subject: a run.
        chosen: measured mean log-ratio of the chosen responses, nats.
    """
    settings, logged = subject.settings, subject.target.summary.get("metrics", {}).get("val/log_ratios/chosen")
    whole = settings.checkpoint == "final" and settings.max_pairs is None and subject.bench.reference is None
    if (
        not whole
        or not subject.target.own_data
        or not isinstance(logged, float)
        or subject.weights.step != subject.target.steps
    ):
        return []
    if _other_pairs(subject):
        return []  # which says it already
    # half precision rounds log-probs of long responses by whole nats
    allowed = 1e-3 * (1 + abs(logged)) if subject.precision in ("32-true", "64-true") else 0.1 * (1 + abs(logged))
    if abs(chosen - logged) <= allowed:
        return []
    return [
        f"the run logged a mean chosen log-ratio of {logged:.4g} nats at its end where {chosen:.4g} is measured:"
        " its data, reference or weights are not what they were"
    ]


def _other_reference(subject: EvaluatedPolicy) -> list[str]:
    """The reference is named by what it starts from: a hub id by its commit, an embedded model by its digest."""
    then, now = subject.target.summary.get("reference"), subject.reference_identity
    if subject.bench.reference is not None:
        return [f"against {subject.bench.reference}, not the run's own reference"]
    if then is None or then == now:
        return []
    return [f"the run was trained against {then}; its configuration now builds {now}"]


def _other_pairs(subject: EvaluatedPolicy) -> list[str]:
    then = flatten(subject.target.summary.get("data")).get("test.pairs")
    now = len(subject.data.test_pairs)
    if not isinstance(then, int) or then == now:
        return []
    return [f"{now:,} held-out pairs are looked at where the run had {then:,}"]
