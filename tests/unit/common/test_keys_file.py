"""The file of API keys: its contents, its reload, and its errors, which never show a key."""

import base64
import datetime
import json
import os

import pytest
import vold_service.keys
import yaml
from known_keys import known_key
from vold_service.errors import Code, ServiceError
from vold_service.keys import Keys, KeysError, describe_new_key, digest_of
from vold_service.tenants import OPEN_TENANT

KEY, OTHER = known_key("one"), known_key("other")


def sha(key: str) -> str:
    return digest_of(key).hex()


def bearer(key: str) -> str:
    return f"Bearer {key}"


@pytest.fixture
def file(tmp_path):
    return tmp_path / "keys.yaml"


@pytest.fixture(autouse=True)
def check_file_on_every_call(monkeypatch):
    monkeypatch.setattr(vold_service.keys, "CHECK_SECONDS", 0.0)


def write(file, *tenants, text=None) -> None:
    """Write the file and make sure that its time has changed."""
    before = file.stat().st_mtime_ns if file.exists() else 0
    file.write_text(text if text is not None else yaml.safe_dump({"tenants": list(tenants)}))
    os.utime(file, ns=(before + 10**9, before + 10**9))


def refusal(keys: Keys, header: str | None, **options) -> str:
    with pytest.raises(ServiceError) as caught:
        keys.authenticate(header, **options)
    assert caught.value.code == Code.UNAUTHENTICATED
    return caught.value.message


def test_without_keys_every_caller_is_accepted():
    assert Keys.load(None, {}).open
    assert Keys.load(None, {}).authenticate(None).tenant is OPEN_TENANT
    assert Keys.load(None, {}).authenticate("Bearer whatever").tenant is OPEN_TENANT


def test_a_key_stands_for_its_tenant_and_run(file):
    write(
        file,
        {
            "name": "maths",
            "weight": 2,
            "tokens_per_minute": 1000,
            "max_concurrent": 3,
            "max_sequence": 64,
            "admin": True,
            "keys": [{"sha256": sha(KEY), "run_id": "beta"}],
        },
    )
    grant = Keys.load(file, {}).authenticate(bearer(KEY))
    tenant = grant.tenant
    assert (tenant.name, tenant.weight, tenant.tokens_per_minute) == ("maths", 2, 1000)
    assert (tenant.max_concurrent, tenant.max_sequence, tenant.admin) == (3, 64, True)
    assert grant.run_id == "beta"


def test_the_file_may_be_json(file):
    write(file, text=json.dumps({"tenants": [{"name": "maths", "keys": [{"sha256": sha(KEY)}]}]}))
    assert Keys.load(file, {}).authenticate(bearer(KEY)).tenant.name == "maths"


def test_a_file_without_keys_accepts_no_caller(file):
    write(file)
    assert "wants an API key" in refusal(Keys.load(file, {}), None)
    assert "not one of this service's" in refusal(Keys.load(file, {}), bearer(KEY))


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", KEY, "Basic " + base64.b64encode(KEY.encode()).decode()])
def test_a_header_without_a_key(file, header):
    write(file, {"name": "maths", "keys": [{"sha256": sha(KEY)}]})
    assert "Bearer KEY" in refusal(Keys.load(file, {}), header)


def test_basic_where_it_is_allowed_has_the_key_as_its_password(file):
    write(file, {"name": "maths", "keys": [{"sha256": sha(KEY)}]})
    keys = Keys.load(file, {})
    header = "Basic " + base64.b64encode(f"me:{KEY}".encode()).decode()
    assert keys.authenticate(header, basic=True).tenant.name == "maths"
    refusal(keys, header)
    refusal(keys, "Basic !!!", basic=True)
    refusal(keys, "Basic " + base64.b64encode(f"{KEY}:me".encode()).decode(), basic=True)


@pytest.mark.parametrize("kind", [str, datetime.date.fromisoformat])
def test_a_key_expires(file, kind):
    today = datetime.datetime.now(datetime.UTC).date()
    old, fresh = kind(str(today - datetime.timedelta(days=1))), kind(str(today + datetime.timedelta(days=2)))
    keys = [{"sha256": sha(KEY), "expires": old}, {"sha256": sha(OTHER), "expires": fresh}]
    write(file, {"name": "maths", "keys": keys})
    assert f"expired on {today - datetime.timedelta(days=1)} 00:00 UTC" in refusal(Keys.load(file, {}), bearer(KEY))
    assert Keys.load(file, {}).authenticate(bearer(OTHER)).tenant.name == "maths"


def test_keys_in_the_environment_join_the_tenants_of_the_file(file):
    write(file, {"name": "maths", "weight": 3, "keys": [{"sha256": sha(KEY)}]})
    keys = Keys.load(file, {"VOLD_API_KEYS": f"maths:{OTHER}, guests:{OTHER}2,"})
    assert keys.authenticate(bearer(KEY)).tenant == keys.authenticate(bearer(OTHER)).tenant
    guests = keys.authenticate(bearer(OTHER + "2")).tenant
    assert (guests.name, guests.weight, guests.admin) == ("guests", 1, False)


@pytest.mark.parametrize("text", ["maths", "maths:short", ":" + KEY, f"bad name:{KEY}", f"maths:{KEY},x"])
def test_an_error_of_the_environment_names_the_variable_and_shows_no_value(text):
    with pytest.raises(KeysError, match=r"VOLD_API_KEYS.*entry") as caught:
        Keys.load(None, {"VOLD_API_KEYS": text})
    assert KEY not in str(caught.value)
    assert "short" not in str(caught.value)


def test_the_file_is_reloaded_when_it_changes(file):
    write(file, {"name": "maths", "keys": [{"sha256": sha(KEY)}]})
    keys = Keys.load(file, {})
    keys.authenticate(bearer(KEY))
    write(file, {"name": "maths", "weight": 5, "keys": [{"sha256": sha(OTHER)}]})
    refusal(keys, bearer(KEY))
    assert keys.authenticate(bearer(OTHER)).tenant.weight == 5


@pytest.mark.parametrize("broken", ["tenants: [", "tenants:\n- name: maths\n  keys:\n  - sha256: SECRET\n", "", None])
def test_a_broken_file_leaves_the_keys_as_they_were(file, broken, caplog):
    write(file, {"name": "maths", "keys": [{"sha256": sha(KEY)}]})
    keys = Keys.load(file, {})
    if broken is None:
        file.unlink()
    else:
        write(file, text=broken.replace("SECRET", OTHER))
    assert keys.authenticate(bearer(KEY)).tenant.name == "maths"
    assert "stay as they were" in caplog.text
    assert str(file) in caplog.text
    assert OTHER not in caplog.text
    caplog.clear()
    keys.authenticate(bearer(KEY))
    assert not caplog.text  # logged once, not for every request
    write(file, {"name": "maths", "keys": [{"sha256": sha(OTHER)}]})
    keys.authenticate(bearer(OTHER))


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"tenants": [{"name": "a", "keys": [{"sha256": KEY}]}]}, ["tenants[0].keys[0].sha256", "vold-teacher key"]),
        ({"tenants": [{"name": "a", "keys": [KEY]}]}, ["tenants[0].keys[0]"]),
        ({"tenants": [{"name": "a", "keys": KEY}]}, ["tenants[0].keys"]),
        ({"tenants": [{"name": "a", "keys": [{"key": KEY}]}]}, ["tenants[0].keys[0]", "sha256, run_id, expires"]),
        ({"tenants": [{"name": "a", "keys": [{KEY: 1}]}]}, ["tenants[0].keys[0]", "unknown field"]),
        ({"tenants": [{"name": "a", "wieght": 2}]}, ["tenants[0].wieght", "did you mean 'weight'?"]),
        ({"tenants": [{"name": "a", "weight": 0}]}, ["tenants[0].weight", "greater than 0", "got 0"]),
        ({"tenants": [{"name": "a", "max_concurrent": -1}]}, ["tenants[0].max_concurrent", "got -1"]),
        ({"tenants": [{"name": "a"}, {"name": "a"}]}, ["tenants[1].name", "'a'", "one entry"]),
        ({"tenants": [{"name": "a b"}]}, ["tenants[0].name", "letters"]),
        ({"tenants": [{"keys": []}]}, ["tenants[0].name", "missing"]),
        ({"tenants": [{"name": "a", "keys": [{"sha256": sha(KEY), "expires": "soon"}]}]}, ["expires", "2027-01-31"]),
        (
            {"tenants": [{"name": n, "keys": [{"sha256": sha(KEY)}]} for n in "ab"]},
            ["tenants[1].keys[0]", "same key as one of 'a'"],
        ),
        ({"teants": []}, ["did you mean 'tenants'?"]),
        ([KEY], ["no mapping"]),
        (None, ["no mapping"]),
    ],
)
def test_errors_name_the_file_the_entry_and_the_remedy_and_no_key(file, content, parts):
    write(file, text=yaml.safe_dump(content))
    with pytest.raises(KeysError) as caught:
        Keys.load(file, {})
    for part in [str(file), *parts]:
        assert part in str(caught.value)
    assert KEY not in str(caught.value)


def test_a_new_key_matches_its_lines_for_the_file(file):
    key, _, lines = describe_new_key("maths", "beta", "2999-01-31").partition("\n")
    write(file, text=lines)
    grant = Keys.load(file, {}).authenticate(bearer(key))
    assert (grant.tenant.name, grant.run_id) == ("maths", "beta")
    assert key not in lines
    assert describe_new_key("maths").partition("\n")[0] != key
