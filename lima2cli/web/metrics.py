"""Metrics of runs for Prometheus: of those that go on, and of those that have ended since the server started."""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from lima2cli.errors import StateError, UnreadableInput
from lima2cli.runs.directory import ListedRun
from lima2cli.web.library import Library
from lima2cli.web.routes import Answer, Asked, Service

WINDOW_S = 3.0
"""Seconds over which rates are taken, so that they are those of now, and steady."""


class Rates:
    """Frames per second of each flow of one run."""

    def __init__(self) -> None:
        self._kept: deque[tuple[int, float, dict[str, int]]] = deque()

    def of(self, acquisition: int, now: float, flows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
        """Take note of the figures of flows at a time, in seconds; return the rates of the last seconds, at first 0."""
        received = {name: int(figures["received"]) for name, figures in flows.items()}
        if self._kept and self._kept[-1][0] != acquisition:
            self._kept.clear()
        self._kept.append((acquisition, now, received))
        while len(self._kept) > 2 and self._kept[1][1] <= now - WINDOW_S:
            self._kept.popleft()
        _, before, earlier = self._kept[0]
        seconds = now - before
        return {
            name: (count - earlier.get(name, 0)) / seconds if seconds > 0 else 0.0 for name, count in received.items()
        }


MOST_RUNS = 100
"""Runs that metrics are given of, the newest."""


class Metrics:
    """The route of metrics."""

    def __init__(self, library: Library) -> None:
        self._runs = Collected(library)
        self._registry = CollectorRegistry()
        self._registry.register(self._runs)

    async def __call__(self, service: Service, asked: Asked) -> Answer:
        """Answer with all metrics, in the text format of Prometheus."""
        return Answer(await service.call(generate_latest, self._registry), media=CONTENT_TYPE_PLAIN_0_0_4)


class Collected(Collector):
    """The metrics of all runs, asked for at each scrape."""

    def __init__(self, library: Library) -> None:
        self._library, self._seen, self._began = library, set[str](), time.time()
        self._rates: dict[str, Rates] = {}

    def describe(self) -> Iterator[Metric]:
        """Yield nothing: which there are is known at a scrape only."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        families = _families()
        for name in self._library.names()[-MOST_RUNS:]:
            try:
                one = self._library.look(name)
            except UnreadableInput:
                continue  # it was removed
            if one.state == "live":
                self._seen.add(name)
                self._live(families, name, one)
            elif name in self._seen:
                self._ended(families, name, one)
        yield from families.values()

    def _live(self, families: Mapping[str, Any], name: str, one: ListedRun) -> None:
        families["live"].add_metric([name], 1)
        families["seconds"].add_metric([name], one.answer["seconds"])
        try:
            detail = self._library.open(name).status(detail=True)["detail"]
        except (StateError, UnreadableInput):
            return  # it has ended meanwhile
        rates = self._rates.setdefault(name, Rates()).of(one.answer["acquisition"], time.monotonic(), detail["flows"])
        for flow, figures in detail["flows"].items():
            families["received"].add_metric([name, flow], figures["received"])
            families["lost"].add_metric([name, flow], figures["lost"])
            families["bytes"].add_metric([name, flow], figures["bytes"])
            families["fill"].add_metric([name, flow], figures["fill"])
            families["rate"].add_metric([name, flow], rates[flow])
        for node, count in one.answer["saved"].items():
            families["saved"].add_metric([name, node], count)
        for node, count in one.answer["rows"].items():
            families["rows"].add_metric([name, node], count)
        for receiver, figures in detail["receivers"].items():
            families["busy"].add_metric([name, receiver], figures["busy_s"])
            families["cpu"].add_metric([name, receiver], figures["cpu_s"])
            families["rss"].add_metric([name, receiver], figures["rss_bytes"])

    def _ended(self, families: Mapping[str, Any], name: str, one: ListedRun) -> None:
        self._rates.pop(name, None)
        families["live"].add_metric([name], 0)
        if one.summary is None:
            return
        if one.summary.seconds is not None:
            families["seconds"].add_metric([name], one.summary.seconds)
        for flow, account in one.summary.flows.items():
            families["received"].add_metric([name, flow], account.received or 0)
            families["lost"].add_metric([name, flow], account.lost or 0)
        for node, channel in one.summary.channels.items():
            families["saved"].add_metric([name, node], channel.saved)
        for node, table in one.summary.tables.items():
            for key in ("saved", "rows"):
                families[key].add_metric([name, node], table.rows or 0)


def _families() -> dict[str, Any]:
    """Return the metrics, without values, by short names."""
    run, flow, node, receiver = ["run"], ["run", "flow"], ["run", "node"], ["run", "receiver"]
    return {
        "live": GaugeMetricFamily("lima2_run_live", "1 while the run goes on, 0 after its end.", labels=run),
        "seconds": GaugeMetricFamily("lima2_run_seconds", "Seconds since the start.", labels=run),
        "received": CounterMetricFamily("lima2_flow_received_frames", "Frames received.", labels=flow),
        "lost": CounterMetricFamily("lima2_flow_lost_frames", "Frames lost.", labels=flow),
        "bytes": CounterMetricFamily("lima2_flow_received_bytes", "Bytes of the frames received.", labels=flow),
        "fill": GaugeMetricFamily("lima2_flow_fill_ratio", "Share of the fullest local buffer in use.", labels=flow),
        "rate": GaugeMetricFamily("lima2_flow_frames_per_second", "Frames received in a second.", labels=flow),
        "saved": CounterMetricFamily("lima2_node_saved_frames", "Frames and rows saved by a node.", labels=node),
        "rows": CounterMetricFamily("lima2_node_final_rows", "Leading rows that are final.", labels=node),
        "busy": CounterMetricFamily("lima2_receiver_busy_seconds", "Seconds that it had work.", labels=receiver),
        "cpu": CounterMetricFamily("lima2_receiver_cpu_seconds", "CPU seconds.", labels=receiver),
        "rss": GaugeMetricFamily("lima2_receiver_memory_bytes", "Peak memory.", labels=receiver),
    }
