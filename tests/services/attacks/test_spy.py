"""A tenant that looks at everything it may see learns nothing of what another sends.

The spy looks twice at each of its channels: about material that the victim sent before, and about material that nobody
did. What it sees differs in no bit.
"""

import json
import re

import httpx
import pytest
import yaml
from known_keys import known_key
from teacher_fixtures import save_model, teacher_server
from verifier_server import running
from vold_client import Completion, Item, TeacherClient, VerifierClient
from vold_service.keys import digest_of

TENANTS = {
    "victim": {},
    "spy": {},
    "ops": {"admin": True},
    "prometheus": {"metrics": True},
    "left": {"share_cache": "pair"},
    "right": {"share_cache": "pair"},
}
KEY = {name: known_key(f"spied {name}") for name in (*TENANTS, "metrics")}
WORDS = "spied-upon"


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    file = tmp_path_factory.mktemp("spied") / "keys.yaml"
    listed = [
        {"name": name, **more, "keys": [{"sha256": digest_of(KEY[name]).hex()}]} for name, more in TENANTS.items()
    ]
    file.write_text(yaml.safe_dump({"tenants": listed}))
    return ("--api-keys", str(file))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, keys):
    with teacher_server(save_model(tmp_path_factory.mktemp("teacher") / "tiny"), *keys) as server:
        yield server.http


@pytest.fixture(scope="module")
def verifier(keys):
    with running("--workers", "1", *keys, environment={"VOLD_METRICS_KEY": KEY["metrics"]}) as server:
        yield server.url


def bearer(name):
    return {"authorization": f"Bearer {KEY[name]}"}


def score(url, name, number):
    with TeacherClient(url, api_key=KEY[name], run_id=WORDS) as client:
        return client.score([[5, 6, number, 8]], [Completion(0, [7, 9, number]), Completion(0, [7, 9, 9, 9])])


def verify(url, name, number):
    # Not light: a worker is asked, so that the verdict can come from the cache.
    with VerifierClient(url, api_key=KEY[name]) as client:
        return client.verify(
            [Item("math", rf"so \boxed{{x+{number}}}", f"{number}+x"), Item("exact", str(number), "1")]
        )


TIMES = re.compile(r"seconds|uptime|_created|since|refreshed|available|spendable", re.IGNORECASE)


def without_times(value):
    if isinstance(value, dict):
        return {name: without_times(each) for name, each in value.items() if not TIMES.search(name)}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def seen(url, name):
    """All that a tenant can ask a service for, besides work."""
    with httpx.Client(base_url=url, headers=bearer(name)) as client:
        lines = client.get("/metrics").text.splitlines()
        looks = {"metrics": [line for line in lines if not line.startswith("#") and not TIMES.search(line)]}
        for path in ("/v1/status", "/v1/usage", "/v1/quota", "/v1/models", "/v1/info", "/v1/verifiers", "/v1/nothing"):
            reply = client.get(path)
            looks[path] = (reply.status_code, without_times(reply.json()))
        for tenant in ("victim", "nobody"):
            reply = client.get("/v1/usage", params={"tenant": tenant})
            looks[f"usage of {tenant}"] = (reply.status_code, reply.text.replace(tenant, "..."))
        looks["readyz"] = client.get("/readyz").text
    return looks


def numbers(looks):
    """Every number that the spy sees, by its place, for the differences between two looks."""
    found = {}

    def walk(path, value):
        if isinstance(value, dict):
            for name, each in value.items():
                walk(f"{path}.{name}", each)
        elif isinstance(value, list | tuple):
            for index, each in enumerate(value):
                walk(f"{path}[{index}]", each)
        else:
            found[path] = value

    metrics = dict(line.rsplit(" ", 1) for line in looks["metrics"])
    walk("", {**looks, "metrics": {name: float(value) for name, value in metrics.items()}})
    return found


def growth(before, after):
    """How each figure grew, and each text: whatever the second look has that the first has not."""
    old, new = numbers(before), numbers(after)
    return {
        path: value - old.get(path, 0) if isinstance(value, int | float) else value
        for path, value in new.items()
        if value != old.get(path)
    }


def reply_of(results):
    """What a reply says, without the scores and its times."""
    return [(getattr(each, "cached", None), type(getattr(each, "error", None))) for each in results]


def learned(work, url):
    """(bits that the spy learned, channels compared): it works on what the victim had, and on what nobody had."""
    work(url, "spy", 40)  # from here on every figure of the spy's exists
    experiments = []
    for theirs, own in ((41, 41), (42, 52)):
        work(url, "victim", theirs)
        before = seen(url, "spy")
        result = reply_of(work(url, "spy", own))
        experiments.append({**growth(before, seen(url, "spy")), "the reply": result})
    known, unknown = experiments
    channels = known.keys() | unknown.keys()
    return [channel for channel in channels if known.get(channel) != unknown.get(channel)], channels


def teacher_work(url, name, number):
    return score(url, name, number).scores


@pytest.mark.parametrize("service", ["teacher", "verifier"])
def test_a_spy_learns_no_bit_of_what_another_tenant_sent(service, request):
    url = request.getfixturevalue(service)
    bits, channels = learned({"teacher": teacher_work, "verifier": verify}[service], url)
    print(f"{service}: bits learned by the spy: {len(bits)} of {len(channels)} channels")
    assert bits == []
    assert "the reply" in channels
    assert any("vold_tenant_requests_total" in channel for channel in channels)


@pytest.mark.parametrize("service", ["teacher", "verifier"])
def test_a_spy_sees_no_figure_that_moves_with_anothers_work(service, request):
    url = request.getfixturevalue(service)
    work = {"teacher": teacher_work, "verifier": verify}[service]
    work(url, "spy", 60)
    seen(url, "spy")
    # A look is itself a request of the spy's only if it is counted: the difference of two looks without work beside.
    idle = growth(seen(url, "spy"), seen(url, "spy"))
    before = seen(url, "spy")
    for number in range(61, 66):
        work(url, "victim", number)
    assert growth(before, seen(url, "spy")) == idle
    text = json.dumps(seen(url, "spy"))
    assert "victim" not in text.replace("usage of victim", "")
    assert WORDS not in text or service == "teacher"  # its own run


@pytest.mark.parametrize("service", ["teacher", "verifier"])
def test_metrics_of_all_are_for_administrators_and_a_key_of_their_own(service, request):
    url = request.getfixturevalue(service)
    {"teacher": teacher_work, "verifier": verify}[service](url, "victim", 70)
    own = httpx.get(f"{url}/metrics", headers=bearer("victim")).text
    assert 'vold_tenant_requests_total{code="OK",tenant="victim"}' in own
    samples = [line for line in own.splitlines() if not line.startswith("#")]
    assert samples
    assert all('tenant="victim"' in line for line in samples)
    names = ["ops", "prometheus"] + (["metrics"] if service == "verifier" else [])
    for name in names:
        text = httpx.get(f"{url}/metrics", headers=bearer(name)).text
        assert 'tenant="victim"' in text
        assert f"vold_{service}_cache_hits_total" in text
        status = httpx.get(f"{url}/v1/status", headers=bearer(name)).json()
        assert None not in status["last_minute"].values() or service == "teacher"
        assert status["rejected"] is not None
    assert httpx.get(f"{url}/metrics", headers={"authorization": "Bearer no"}).status_code == 401


def test_the_status_of_the_teacher_shows_a_tenant_its_own(teacher):
    teacher_work(teacher, "victim", 71)
    teacher_work(teacher, "spy", 72)
    own, all_ = (httpx.get(f"{teacher}/v1/status", headers=bearer(name)).json() for name in ("spy", "ops"))
    assert [row["name"] for row in own["tenants"]] == ["spy"]
    assert own["tenants"][0]["share"] == 1
    assert own["totals"]["scored_tokens"] == own["tenants"][0]["tokens"] < all_["totals"]["scored_tokens"]
    assert own["cache"] == dict.fromkeys(own["cache"])
    assert own["last_minute"] == dict.fromkeys(own["last_minute"])
    assert own["history"] == {"scored": [], "generated": [], "queued": []}
    assert own["queue"]["tokens"] == 0
    assert {"left", "victim"} & {row["name"] for row in all_["tenants"]}
    assert own["teachers"] == all_["teachers"]


def test_tenants_that_ask_for_it_share_what_is_cached(teacher, verifier):
    for work, url in ((teacher_work, teacher), (verify, verifier)):
        assert not work(url, "left", 80)[0].cached
        assert work(url, "left", 80)[0].cached
        assert work(url, "right", 80)[0].cached
        assert not work(url, "victim", 80)[0].cached
