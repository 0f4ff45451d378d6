"""RunStatus -> metrics in Prometheus's text format 0.0.4, for the textfile collector of its node_exporter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final, Literal, get_args

from aneurysm.precaching.status import RunStatus, TaskState

_Samples = Mapping[str, float]
"""Values by the value of the one label; "" where there is none."""
_STATES: Final = get_args(TaskState)


def exposition(status: RunStatus) -> str:
    """
    Return the state of a run as metrics.

    Names and units follow the conventions of Prometheus. Labels are codes of this program, never of a series or host.
    """
    tasks = Counter(t.state for t in status.tasks if not t.is_worker)
    waiting = status.tasks_total - sum(tasks.values())
    outcomes = {
        "cached": status.cached,
        "rejected": status.rejected,
        "failed": status.failed,
        "skipped": status.skipped,
    }
    parts = [
        _metric("series_total", "counter", "Series done in this run, by what came of them.", "status", outcomes),
        _metric("series_not_cached_total", "counter", "Series not cached, by reason.", "reason", status.reasons),
        _metric("series_expected", "gauge", "Series of the run.", "", {"": status.total or 0}),
        _metric("series_done", "gauge", "Series that are done, also before the run.", "", {"": status.done}),
        _metric("series_in_hand", "gauge", "Series that are being built.", "", {"": len(status.in_hand)}),
        _metric(
            "series_stragglers", "gauge", "Series that are being built for much longer than expected.", "",
            {"": sum(s.is_straggler for s in status.in_hand)},
        ),
        _metric("series_seconds_total", "counter", "Time that series took.", "", {"": status.series_s}),
        _metric("read_bytes_total", "counter", "Bytes of input of cached series.", "", {"": status.bytes_in}),
        _metric("written_bytes_total", "counter", "Bytes of the volumes built.", "", {"": status.bytes_out}),
        _metric(
            "tasks", "gauge", "Tasks of the run, by state.", "state",
            {s: tasks[s] for s in _STATES} | {"waiting": waiting},
        ),
        _metric("odd_hosts", "gauge", "Hosts where more series fail than elsewhere.", "", {"": len(status.odd_hosts)}),
        _metric("run_complete", "gauge", "1 if all series are done.", "", {"": float(status.is_complete)}),
        _metric("run_started_timestamp_seconds", "gauge", "When the run began.", "", {"": status.started}),
        _metric("status_timestamp_seconds", "gauge", "When these metrics were taken.", "", {"": status.time}),
    ]  # fmt: skip
    if status.left_s is not None:
        parts.append(_metric("run_left_seconds", "gauge", "Time left at the present rate.", "", {"": status.left_s}))
    return "".join(parts)


def _metric(name: str, kind: Literal["counter", "gauge"], about: str, label: str, samples: _Samples) -> str:
    name = f"aneurysm_{name}"
    lines = [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
    for value, number in samples.items():
        # Codes of ours, which have nothing that would have to be escaped.
        labels = f'{{{label}="{value}"}}' if label else ""
        lines.append(f"{name}{labels} {number!r}")
    return "\n".join(lines) + "\n"
