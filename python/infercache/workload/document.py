"""What a simulation showed, as one JSON document: everything that the other reports are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from infercache import __version__
from infercache.workload.report import latencies, without_cache

if TYPE_CHECKING:
    from infercache.workload.simulation import Simulation
    from infercache.workload.trials import Trial

__all__ = ["document", "popularity"]

#: Of the document: another number, another form.
FORMAT = 1
#: Points of the curve of popularity.
_POINTS = 120


def document(simulation: Simulation) -> dict[str, Any]:
    """The document: sizes in bytes, times in seconds, ratios between 0 and 1, counts of the whole log, not of a sample.

    `bound` beside a figure: it is that, give or take this, in 19 of 20 samples; 0: it is exact.
    """
    log, options = simulation.log, simulation.options
    found: dict[str, Any] = {
        "format": FORMAT,
        "infercache": __version__,
        "logs": [
            {
                "name": reading.where,
                "format": reading.format,
                "requests": reading.requests,
                "fields": {field: at.name for field, at in reading.fields.items()},
            }
            for reading in simulation.readings
        ],
        "left_out": dict(simulation.left_out.counts),
        "requests": simulation.requests,
        "span": log.span if log.has_times else None,
        "different": round(log.different),
        "different_bytes": round(log.different_bytes),
        "rate": log.rate,
        "replayed": len(log.asked),
        "seed": options.seed,
        "hit_seconds": simulation.hit_seconds,
        "price": options.price,
        "groups": [
            {"workload": group.workload, "model": group.model, "requests": int(count), "model_seconds": float(seconds)}
            for group, count, seconds in zip(log.groups, log.requests, log.seconds, strict=True)
        ],
        "without_cache": None,
        "popularity": popularity(simulation),
        "trials": [_trial(simulation, trial) for trial in [*simulation.trials, *simulation.unbounded]],
        "recommended": {
            "size": simulation.recommended().setting.size,
            "ttl": simulation.recommended().setting.ttl,
            "eviction": simulation.recommended().setting.eviction,
        },
    }
    if log.has_costs:
        p50, p99, mean = without_cache(simulation)
        worked = float(log.seconds.sum())
        found["without_cache"] = {
            "model_seconds": worked,
            "gpu_hours": worked / 3_600,
            "money": _money(simulation, worked),
            "p50": p50,
            "p99": p99,
            "mean": mean,
        }
    return found


def _trial(simulation: Simulation, trial: Trial) -> dict[str, Any]:
    log = simulation.log
    hits = float(trial.hits.sum())
    found: dict[str, Any] = {
        "size": trial.setting.size,
        "ttl": trial.setting.ttl,
        "eviction": trial.setting.eviction,
        "hits": round(hits),
        "hit_ratio": hits / simulation.requests,
        "hit_ratio_bound": trial.hits_bound / simulation.requests,
        "refused": round(trial.refused),
        "evictions": round(trial.evictions),
        "expirations": round(trial.expirations),
        "entries": round(trial.entries),
        "bytes": round(trial.bytes),
        "groups": [
            {"hit_ratio": float(hit / count), "saved_seconds": float(saved)}
            for hit, saved, count in zip(trial.hits, trial.saved, log.requests, strict=True)
        ],
    }
    if log.has_costs:
        saved = float(trial.saved.sum())
        p50, p99, mean = latencies(simulation, trial)
        found |= {
            "saved_seconds": saved,
            "saved_seconds_bound": trial.saved_bound,
            "saved_gpu_hours": saved / 3_600,
            "saved_money": _money(simulation, saved),
            "p50": p50,
            "p99": p99,
            "mean": mean,
        }
    return found


def _money(simulation: Simulation, seconds: float) -> float | None:
    return simulation.price_of(seconds) if simulation.options.price else None


def popularity(simulation: Simulation) -> dict[str, list[float]]:
    """How often the key of a rank is asked for, at ranks evenly spaced by their logarithm. In a sample each key
    stands for `1 / rate` of the log, so its rank is that many times as high.
    """
    counts = simulation.log.popularity()
    places = np.unique(np.geomspace(1, len(counts), min(_POINTS, len(counts))).astype(np.int64)) - 1
    ranks = (places + 0.5) / simulation.log.rate + 0.5
    return {"rank": ranks.tolist(), "requests": counts[places].astype(float).tolist()}
