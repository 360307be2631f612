"""The minutes that a status page plots."""

from prometheus_client import CollectorRegistry, Counter, Histogram
from vold_service.page import HISTORY_SECONDS, History, by_label, page, ratio, total


def test_history_keeps_growth_as_a_rate_and_levels_as_they_are():
    grown, level = [100.0], [7.0]
    history = History({"done": lambda: grown[0]}, {"queued": lambda: level[0]})
    assert history.mean("done") == 0
    for growth, seconds in ((10, 1.0), (30, 2.0), (0, 1.0)):
        grown[0] += growth
        level[0] += 1
        history.tick(seconds)
    assert history.columns() == {"done": [10, 15, 0], "queued": [8, 9, 10]}
    assert history.mean("done") == 25 / 3
    assert history.mean("queued", 2) == 9.5
    for _ in range(HISTORY_SECONDS + 5):
        history.tick()
    assert len(history.columns()["done"]) == HISTORY_SECONDS


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


def test_pages_are_whole_files_that_ask_nobody_else():
    for package in ("vold_teacher", "vold_verifier"):
        reply = page(package)
        text = reply.body.decode()
        assert "/*style*/" not in text
        assert "/*script*/" not in text
        assert "function plot" in text
        assert "connect-src 'self'" in reply.headers["content-security-policy"]
