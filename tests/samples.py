"""What a mirror has counted, by the text that it gives to Prometheus."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families


def total(text: str, metric: str, **labels: str) -> float:
    """The sum over all samples of `metric` that carry these labels."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == metric and labels.items() <= sample.labels.items()
    )
