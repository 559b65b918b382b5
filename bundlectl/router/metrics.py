"""``GET /metrics``: what the receipts add up to, and how the server is, in Prometheus' text format.

Counting is a few additions to plain dictionaries, taken from each receipt as it is written; names, types and text are
made when somebody looks. No label holds a tenant, a caller or a text: the receipts know those.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol

from bundlectl.model.receipt import Receipt

if TYPE_CHECKING:
    from prometheus_client import Metric

    from bundlectl.resolver.resolver import Status
    from bundlectl.router.assemble import Compiled
    from bundlectl.router.router import ReceiptSink

BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds in seconds of a request's stages together."""
_PLACE: Final = ("app", "environment")


class Watched(Protocol):
    """An environment that is served."""

    @property
    def app(self) -> str:
        """The app."""
        ...

    @property
    def environment(self) -> str:
        """The environment."""
        ...

    def loaded(self) -> Compiled | None:
        """Give what serves."""
        ...

    @property
    def status(self) -> Callable[[], Status | None]:
        """Gives how following goes."""
        ...


class Log(Protocol):
    """A log of receipts, as far as it is counted."""

    @property
    def written(self) -> int:
        """How many are stored."""
        ...

    @property
    def lost(self) -> int:
        """How many could not be."""
        ...


class Metrics:
    """The counters of one process. Used on one event loop; a reader on another thread sees them as they are."""

    def __init__(self) -> None:
        self.responses: dict[int, int] = defaultdict(int)
        """HTTP responses of ``POST /v1/requests`` by status."""
        self.gauges: dict[str, Callable[[], float]] = {}
        """What else is read when somebody looks: name -> value. A name that ends in ``_total`` is a counter."""
        self.logs: list[Log] = []
        """Where receipts are stored."""
        self._requests: dict[tuple[str, ...], int] = defaultdict(int)
        self._seconds: dict[tuple[str, ...], list[float]] = defaultdict(lambda: [0.0] * (len(BUCKETS) + 2))
        self._stages: dict[tuple[str, ...], float] = defaultdict(float)
        self._attempts: dict[tuple[str, ...], int] = defaultdict(int)
        self._tokens: dict[tuple[str, ...], int] = defaultdict(int)
        self._usd: dict[tuple[str, ...], float] = defaultdict(float)
        self._guards: dict[tuple[str, ...], int] = defaultdict(int)

    def of(self, log: ReceiptSink) -> Counted:
        """Give a sink that counts what goes to another."""
        return Counted(self, log)

    def count(self, receipt: Receipt) -> None:
        """Count a request."""
        place = (receipt.release.app, receipt.release.environment)
        if receipt.error is not None:
            outcome = receipt.error["error"]
        elif receipt.refused is not None:
            outcome = receipt.refused.code
        else:
            outcome = "degraded" if receipt.degraded is not None else "answered"
        self._requests[(*place, receipt.task, receipt.route or "", outcome, receipt.cache)] += 1
        total = 0.0
        for stage, seconds in receipt.stages.items():
            self._stages[(*place, stage)] += seconds
            total += seconds
        timing = self._seconds[(*place, receipt.task)]
        timing[bisect_left(BUCKETS, total)] += 1
        timing[-1] += total
        for attempt in receipt.attempts:
            model = (*place, attempt.model)
            self._attempts[(*model, attempt.provider, attempt.outcome)] += 1
            usage = attempt.usage
            if usage.input_tokens or usage.output_tokens:
                self._tokens[(*model, "input")] += usage.input_tokens
                self._tokens[(*model, "output")] += usage.output_tokens
        if receipt.cost.usd:
            self._usd[place] += receipt.cost.usd
        for guard in receipt.guards:
            if guard.action != "pass":
                self._guards[(*place, guard.side, guard.action)] += 1

    # ------------------------------------------------------------ looked at

    def text(self, watched: Sequence[Watched], now: datetime) -> bytes:
        """Give all of it, with what Python and the system know of the process."""
        from prometheus_client import GCCollector, PlatformCollector, ProcessCollector, generate_latest
        from prometheus_client.registry import Collector, CollectorRegistry

        gathered = list(self._gathered(watched, now))

        class Once(Collector):
            def collect(self) -> Iterator[Metric]:
                yield from gathered

        registry = CollectorRegistry(auto_describe=False)
        registry.register(Once())
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        return generate_latest(registry)

    def _gathered(self, watched: Sequence[Watched], now: datetime) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        def counter(name: str, help_: str, labels: Sequence[str], values: dict[tuple[str, ...], float]) -> Metric:
            family = CounterMetricFamily(f"bundlectl_{name}", help_, labels=labels)
            for key, value in list(values.items()):
                family.add_metric(key, value)
            return family

        yield counter(
            "requests",
            "Requests by what became of them: answered, degraded, or the code of the refusal or error.",
            (*_PLACE, "task", "route", "outcome", "cache"),
            dict(self._requests),
        )
        histogram = HistogramMetricFamily(
            "bundlectl_request_seconds", "Seconds of all stages of a request.", labels=(*_PLACE, "task")
        )
        for key, timing in list(self._seconds.items()):
            sums, counts = 0.0, []
            for bound, count in zip([*map(str, BUCKETS), "+Inf"], timing[:-1], strict=True):
                sums += count
                counts.append((bound, sums))
            histogram.add_metric(key, counts, timing[-1])
        yield histogram
        yield counter("stage_seconds", "Seconds spent in each stage.", (*_PLACE, "stage"), dict(self._stages))
        yield counter(
            "model_attempts",
            "Calls of models by outcome.",
            (*_PLACE, "model", "provider", "outcome"),
            dict(self._attempts),
        )
        yield counter(
            "tokens", "Tokens sent to and received from models.", (*_PLACE, "model", "side"), dict(self._tokens)
        )
        yield counter("cost_usd", "US dollars by the price book, where it knows the price.", _PLACE, dict(self._usd))
        yield counter(
            "guard_actions", "Texts flagged, redacted or blocked.", (*_PLACE, "side", "action"), dict(self._guards)
        )
        statuses: dict[tuple[str, ...], float] = {(str(status),): n for status, n in list(self.responses.items())}
        yield counter("http_responses", "Responses of POST /v1/requests by status.", ("status",), statuses)
        stored: dict[str, Callable[[], float]] = {
            "receipts_written_total": lambda: sum(log.written for log in self.logs),
            "receipts_lost_total": lambda: sum(log.lost for log in self.logs),
        }
        for name, read in (self.gauges | stored).items():
            family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            yield family(f"bundlectl_{name.removesuffix('_total')}", _GAUGES[name], value=read())
        ready = GaugeMetricFamily("bundlectl_ready", "1 where a verified release is loaded.", labels=_PLACE)
        info = GaugeMetricFamily(
            "bundlectl_release_info", "1 for the release that answers.", labels=(*_PLACE, "epoch", "serial", "bundle")
        )
        stale = GaugeMetricFamily("bundlectl_release_stale", "1 where the registry cannot be followed.", labels=_PLACE)
        polled = GaugeMetricFamily(
            "bundlectl_last_poll_age_seconds", "Since the last look at the registry.", labels=_PLACE
        )
        alarms = GaugeMetricFamily("bundlectl_alarms", "Alarms that are raised now.", labels=_PLACE)
        for one in watched:
            place = (one.app, one.environment)
            compiled, status = one.loaded(), one.status()
            ready.add_metric(place, float(compiled is not None))
            if compiled is not None:
                ref = compiled.ref
                info.add_metric((*place, str(ref.epoch), str(ref.serial), ref.bundle), 1)
            if status is not None:
                stale.add_metric(place, float(status.stale))
                alarms.add_metric(place, len(status.alarms))
                if status.last_poll is not None:
                    polled.add_metric(place, max(0.0, (now.astimezone(UTC) - status.last_poll).total_seconds()))
        yield from (ready, info, stale, polled, alarms)


_GAUGES: Final = {
    "active_requests": "Requests being answered.",
    "waiting_requests": "Requests waiting for their turn.",
    "turned_away_total": "Requests that were told to come back later.",
    "receipts_written_total": "Receipts on disk.",
    "receipts_lost_total": "Receipts that could not be stored.",
}


class Counted:
    """Counts receipts on their way to a log."""

    __slots__ = ("_log", "_metrics")

    def __init__(self, metrics: Metrics, log: ReceiptSink) -> None:
        self._metrics = metrics
        self._log = log

    def write(self, receipt: Receipt) -> None:
        """Count it and pass it on."""
        self._metrics.count(receipt)
        self._log.write(receipt)
