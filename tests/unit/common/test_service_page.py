"""The metrics history and the HTML of the status pages."""

from prometheus_client import CollectorRegistry, Counter, Histogram
from vold_service.page import HISTORY_SECONDS, MetricsHistory, by_label, ratio, status_page_reply, total


def test_history_keeps_counters_as_rates_and_gauges_as_read():
    counter, gauge = [100.0], [7.0]
    history = MetricsHistory({"done": lambda: counter[0]}, {"queued": lambda: gauge[0]})
    assert history.mean("done") == 0
    for growth, seconds in ((10, 1.0), (30, 2.0), (0, 1.0)):
        counter[0] += growth
        gauge[0] += 1
        history.sample(seconds)
    assert history.series("done", "queued") == {"done": [10, 15, 0], "queued": [8, 9, 10]}
    assert history.mean("done") == 25 / 3
    assert history.mean("queued", 2) == 9.5
    for _ in range(HISTORY_SECONDS + 5):
        history.sample()
    assert len(history.series("done")["done"]) == HISTORY_SECONDS


def test_totals_of_metrics():
    registry = CollectorRegistry()
    counter = Counter("tokens", "t", ["tenant", "work"], registry=registry)
    for tenant, work, value in (("a", "scored", 2), ("b", "scored", 5), ("a", "generated", 1)):
        counter.labels(tenant, work).inc(value)
    seconds = Histogram("seconds", "s", registry=registry)
    seconds.observe(0.5)
    assert total(counter) == 8
    assert total(counter, work="scored") == 7
    assert by_label(counter, "tenant") == {"b": 5, "a": 3}
    assert list(by_label(counter, "tenant")) == ["b", "a"]
    assert (total(seconds, "_count"), total(seconds, "_sum")) == (1, 0.5)
    assert (ratio(1, 4), ratio(1, 0)) == (0.25, None)


def test_status_pages_are_self_contained():
    for package, title in (("vold_teacher", "vold teacher"), ("vold_verifier", "vold verifier")):
        reply = status_page_reply(package, title)
        text = reply.body.decode()
        for mark in ("<!--title-->", "<!--content-->", "/*style*/", "/*script*/"):
            assert mark not in text
        assert f"<title>{title}</title>" in text
        assert "function plot" in text
        assert "connect-src 'self'" in reply.headers["content-security-policy"]
