"""What `/metrics` says of extrapolation, beside vLLM's own."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from rlvr_decode.params import GATES, Extrapolation

STRENGTHS = (-1.0, -0.5, -0.1, 0.0, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 10.0)
RATES = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class Metrics:
    """Of the requests that were answered with settings applied, and of all that were refused."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._requests = Counter(
            "rlvr_decode_requests", "Requests by gate", ["gate"], registry=registry
        )
        self._strength = Histogram(
            "rlvr_decode_strength",
            "Strengths asked for",
            buckets=STRENGTHS,
            registry=registry,
        )
        self._rate = Histogram(
            "rlvr_decode_intervention_rate",
            "Expected rate of intervention of gated requests, over all of their tokens",
            buckets=RATES,
            registry=registry,
        )
        self._refused = Counter(
            "rlvr_decode_refusals", "Answers that say no, by status", ["status"], registry=registry
        )
        for gate in GATES:
            self._requests.labels(gate)

    def answered(self, settings: Extrapolation) -> None:
        self._requests.labels(settings.gate).inc()
        self._strength.observe(settings.strength)

    def refused(self, status: int) -> None:
        self._refused.labels(str(status)).inc()

    def intervened(self, rate: float) -> None:
        self._rate.observe(rate)


METRICS = Metrics()
