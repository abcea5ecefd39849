"""The statistics extension: what is counted of a model, in Triton's words.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from serve_app.oip.metadata import Published
from serve_app.tally import ModelTotals


def statistics(models: Iterable[Published], totals: Mapping[str, ModelTotals]) -> dict[str, Any]:
    """The answer to `GET v2/models/stats`, and to that of one model.

    Both names of a model have the same figures: they are of the engine behind them. Counts are of pictures, not of
    requests.

    Args:
        totals: by `Published.model`; of a model without any, nothing was answered yet.
    """
    return {"model_stats": [_of_model(model, totals.get(model.model, ModelTotals())) for model in models]}


def _of_model(model: Published, totals: ModelTotals) -> dict[str, Any]:
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": totals.last_answer_unix_ms,
        "inference_count": totals.answered,
        "execution_count": sum(count for count, _ in totals.batches.values()),
        "inference_stats": _inference_stats(totals),
        "response_stats": {},
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": _duration(count),
                "compute_infer": _duration(count, total_ms),
                "compute_output": _duration(count),
            }
            for size, (count, total_ms) in sorted(totals.batches.items())
        ],
        "memory_usage": [],
    }


def _inference_stats(totals: ModelTotals) -> dict[str, dict[str, int]]:
    """Decoding is what Triton calls compute_input; there is no cache, and ranking is too quick to be measured."""
    answered = totals.answered
    return {
        "success": _duration(answered, totals.queue_ms + totals.preprocess_ms + totals.inference_ms),
        "fail": _duration(sum(totals.failed.values())),
        "queue": _duration(answered, totals.queue_ms),
        "compute_input": _duration(answered, totals.preprocess_ms),
        "compute_infer": _duration(answered, totals.inference_ms),
        "compute_output": _duration(answered),
        "cache_hit": _duration(0),
        "cache_miss": _duration(0),
    }


def _duration(count: int, total_ms: float = 0.0) -> dict[str, int]:
    return {"count": count, "ns": round(total_ms * 1e6)}
