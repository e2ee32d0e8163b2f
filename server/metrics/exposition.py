"""All figures in Prometheus' text format: what was counted, and what the store and the disks hold now."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from sqlalchemy import Connection

from server.metrics.counts import COMMIT_S, FLUSH_S, INGEST_S, RECEIVED, REQUEST_S, REQUESTS
from server.metrics.sharing import Told
from storage import figures
from storage.durations import BOUNDS_S
from storage.records import Status

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
COUNTED = {
    REQUESTS: ("Requests by route, method and status.", ("route", "method", "status")),
    RECEIVED: ("Bytes of files that came in, by door.", ("door",)),
}
TOOK = {
    REQUEST_S: ("How long requests took.", ("route", "method")),
    INGEST_S: ("How long reading a file's header and filing its rows took.", ("door", "step")),
    COMMIT_S: ("How long groups of transactions took, with the wait for the writer's lock.", ()),
    FLUSH_S: ("How long the disk took to confirm bytes or a name.", ()),
}


@dataclass(frozen=True, slots=True)
class Holdings:
    """What the store and the disks hold now. `free_bytes`: by what lies there."""

    sessions: dict[Status, int]
    open_uploads: int
    queues: dict[str, figures.Queue]
    alarms: int
    free_bytes: dict[str, int]


def holdings(tx: Connection, free_bytes: dict[str, int]) -> Holdings:
    """A unit of work that looks."""
    return Holdings(
        figures.sessions_by_status(tx), figures.open_uploads(tx), figures.queues(tx), figures.alarms(tx), free_bytes)


def exposition(
    told: Told, held: Holdings, reserve_bytes: int, certificate_ends_at: datetime | None, version: str
) -> bytes:
    """The page that Prometheus reads; `certificate_ends_at`: of HTTPS, None without it."""
    ends = [] if certificate_ends_at is None else [_gauge(
        "packhorse_certificate_expires_timestamp_seconds", "When the certificate that is served with ends, Unix time.",
        (), {(): certificate_ends_at.timestamp()})]
    return generate_latest(_Page([*_counted(told), *_held(held, reserve_bytes, version), *ends]))


class _Page:
    """What generate_latest asks of a registry."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _counted(told: Told) -> Iterator[Metric]:
    counted, took = told
    for name, (says, labels) in COUNTED.items():
        counter = CounterMetricFamily(name, says, labels=labels)
        for values, value in sorted(counted.get(name, {}).items()):
            counter.add_metric(values, value)
        yield counter
    for name, (says, labels) in TOOK.items():
        histogram = HistogramMetricFamily(name, says, labels=labels)
        for values, (places, sum_s) in sorted(took.get(name, {}).items()):
            histogram.add_metric(values, _cumulative(places), sum_s)
        yield histogram


def _cumulative(places: list[int]) -> list[tuple[str, float]]:
    total, found = 0, []
    for bound, count in zip((*BOUNDS_S, float("inf")), places, strict=True):
        total += count
        found.append(("+Inf" if bound == float("inf") else str(bound), float(total)))
    return found


def _held(held: Holdings, reserve_bytes: int, version: str) -> Iterator[Metric]:
    yield _gauge("packhorse_sessions", "Sessions by status.", ("status",),
                 {(status.value,): count for status, count in held.sessions.items()})
    yield _gauge("packhorse_uploads_open", "Uploads that wait for bytes.", (), {(): held.open_uploads})
    yield _gauge("packhorse_jobs", "Jobs by kind and state.", ("kind", "state"), {
        (kind, state): getattr(queue, state) for kind, queue in held.queues.items()
        for state in ("waiting", "running", "failed")})
    yield _gauge("packhorse_jobs_oldest_seconds", "For how long the job that is due longest has been so.", ("kind",),
                 {(kind,): queue.oldest_s for kind, queue in held.queues.items()})
    yield _gauge("packhorse_integrity_alarms", "Blobs on which an integrity alarm is open.", (), {(): held.alarms})
    yield _gauge("packhorse_disk_free_bytes", "What the disk has left.", ("place",),
                 {(place,): free for place, free in held.free_bytes.items()})
    yield _gauge("packhorse_disk_reserve_bytes", "What uploads leave free, so that the database can go on.", (),
                 {(): reserve_bytes})
    yield _gauge("packhorse_info", "Always 1; the label tells the version.", ("version",), {(version,): 1})


def _gauge(name: str, says: str, labels: tuple[str, ...], values: dict[tuple[str, ...], float]) -> Metric:
    gauge = GaugeMetricFamily(name, says, labels=labels)
    for label_values, value in values.items():
        gauge.add_metric(label_values, value)
    return gauge
