"""Counts and latencies of a server, and their text in Prometheus' form. Knows no HTTP library and no index."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the latencies, in seconds."""


class Metrics:
    """What was asked and how long it took; written and read by the event loop alone."""

    def __init__(self) -> None:
        """Begin at nothing."""
        self.requests: Counter[tuple[str, str, int]] = Counter()
        self._buckets: defaultdict[str, list[int]] = defaultdict(lambda: [0] * (len(BUCKETS) + 1))
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered; ``route`` is a template, or there would be a count for every id."""
        self.requests[method, route, status] += 1
        self._buckets[route][bisect_left(BUCKETS, seconds)] += 1
        self._seconds[route] += seconds

    def text(self, gauges: Mapping[str, tuple[str, float]], batches: Mapping[int, int]) -> str:
        """Return all of it.

        Args:
            gauges: Name -> what it is, its value now.
            batches: Size -> how many batches of that size were answered.
        """
        lines = [*_head("avse_requests_total", "counter", "Requests by method, route and status.")]
        for (method, route, status), count in sorted(self.requests.items()):
            lines.append(f'avse_requests_total{{method="{method}",route="{route}",status="{status}"}} {count}')
        lines += _head("avse_request_seconds", "histogram", "Seconds from a request's head to the end of its answer.")
        for route, counts in sorted(self._buckets.items()):
            lines += _histogram("avse_request_seconds", f'route="{route}",', BUCKETS, counts, self._seconds[route])
        lines += _head("avse_batch_size", "histogram", "Questions answered together.")
        bounds = (1, 2, 4, 8, 16, 32)
        sizes = [0] * (len(bounds) + 1)
        for size, count in dict(batches).items():
            sizes[bisect_left(bounds, size)] += count
        total = sum(size * count for size, count in dict(batches).items())
        lines += _histogram("avse_batch_size", "", bounds, sizes, total)
        for name, (told, value) in gauges.items():
            lines += [*_head(name, "gauge", told), f"{name} {value:g}"]
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, told: str) -> list[str]:
    return [f"# HELP {name} {told}", f"# TYPE {name} {kind}"]


def _histogram(name: str, labels: str, bounds: Iterable[float], counts: list[int], total: float) -> list[str]:
    lines, below = [], 0
    for bound, count in zip(bounds, counts):
        below += count
        lines.append(f'{name}_bucket{{{labels}le="{bound:g}"}} {below}')
    below += counts[-1]
    lines.append(f'{name}_bucket{{{labels}le="+Inf"}} {below}')
    own = f"{{{labels.rstrip(',')}}}" if labels else ""
    return [*lines, f"{name}_sum{own} {total:.6g}", f"{name}_count{own} {below}"]
