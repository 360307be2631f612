"""The profiles `gateway`, `observability` and `gpu`.

Two of our own teachers stand for stock servers behind the gateway. Prometheus really scrapes. Grafana is not started:
its files are held against each other. vLLM and CUDA are not installed: see what `gpu` says.
"""

import json
import subprocess
import urllib.parse
import urllib.request

import pytest
import yaml
from compose_project import FIGURES, inspect, run, until

pytestmark = pytest.mark.compose


def test_the_gateway_spreads_a_run_over_the_servers_behind_it(services, keys):
    services.up("upstream-1", "upstream-2", "gateway", profile="gateway")
    through = services.train("through-gateway", "steps=3", teacher="gateway", key=keys["blue"]).wait()
    direct = services.train("direct", "steps=3", key=keys["blue"]).wait()
    asked = [json.loads((services.runs / name / "run.json").read_text()) for name in ("through-gateway", "direct")]
    assert asked[0]["teacher"] == asked[1]["teacher"], "who answers is who stands behind the gateway"
    for row, expected in zip(through, direct, strict=True):
        assert row["missing/teacher"] == 0
        for figure in FIGURES:
            assert row[figure] == pytest.approx(expected[figure], rel=1e-3, abs=1e-4), (row["step"], figure)
    for name, tenant in (("upstream-1", "upstream"), ("upstream-2", "upstream"), ("gateway", "blue")):
        assert services.scored(keys[tenant], name) > 0, f"{name} scored nothing"


def dashboard(services) -> dict:
    return json.loads((services.folder / "docs" / "grafana.json").read_text())


def expressions(services) -> list[str]:
    found = [target["expr"] for panel in dashboard(services)["panels"] for target in panel.get("targets", ())]
    assert found
    return found


def test_prometheus_scrapes_the_services_and_every_panel_has_data(services, keys):
    services.up("prometheus", profile="observability")
    (binding,) = inspect(services.container("prometheus"))["NetworkSettings"]["Ports"]["9090/tcp"]
    assert binding["HostIp"] == "127.0.0.1"

    def get(path: str, **query: str) -> dict:
        url = f"http://127.0.0.1:{binding['HostPort']}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=30) as reply:
            return json.load(reply)["data"]

    def reached() -> bool:
        try:
            targets = get("targets")["activeTargets"]
        except OSError:  # it has just started: nobody listens yet, or it answers 503 until its store is open
            return False
        return len(targets) == 2 and all(target["health"] == "up" for target in targets)

    until("both services are scraped", reached)

    def value(expression: str) -> list[float]:
        result = get("query", query=expression.replace("$__rate_interval", "10m"))["result"]
        return [float(row["value"][1]) for row in result]

    # Something to show: a run, and a caller who is refused, while Prometheus looks.
    services.train("seen", "steps=6", key=keys["red"]).wait()
    with pytest.raises(subprocess.CalledProcessError) as refused:
        services.scored("a-key-that-nobody-has")
    assert "401" in refused.value.stderr
    for expression in expressions(services):
        until(
            f"a panel has data: {expression}",
            lambda expression=expression: (found := value(expression)) and all(number == number for number in found),
        )
    assert value("sum(rate(vold_teacher_scored_tokens_total[$__rate_interval]))")[0] > 0


def test_grafanas_files_agree_with_each_other(services):
    """Grafana itself is not started here."""
    grafana = services.config("observability")["grafana"]
    mounts = dict(volume.split(":")[1::-1] for volume in grafana["volumes"] if isinstance(volume, str))
    if not mounts:
        mounts = {volume["target"]: volume["source"] for volume in grafana["volumes"]}
    grafana_files = services.folder / "docker" / "grafana"
    (provider,) = yaml.safe_load((grafana_files / "dashboards/vold.yml").read_text())["providers"]
    assert provider["type"] == "file"
    shown = [source for target, source in mounts.items() if target.startswith(provider["options"]["path"] + "/")]
    assert [source.rpartition("/")[2] for source in shown] == ["grafana.json"]
    for kind in ("dashboards", "datasources"):
        assert mounts[f"/etc/grafana/provisioning/{kind}"].endswith(f"docker/grafana/{kind}")
    (source,) = yaml.safe_load((grafana_files / "datasources/prometheus.yml").read_text())["datasources"]
    (variable,) = dashboard(services)["templating"]["list"]
    assert source["type"] == variable["query"] == "prometheus"
    assert source["isDefault"]
    assert source["url"] == "http://prometheus:9090"
    assert all(panel["datasource"]["uid"] == f"${{{variable['name']}}}" for panel in dashboard(services)["panels"])
    scraped = yaml.safe_load((services.folder / "docker/prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == scraped["global"]["scrape_interval"]


def test_gpu_images_differ_by_build_arguments_alone(services):
    """What can be built without gigabytes of CUDA: each Dockerfile up to where packages come in."""
    config = services.config("gpu")
    for name, argument in (("teacher", {"SET": "vllm"}), ("trainer", {"CUDA": "always"})):
        cpu, gpu = config[name]["build"], config[f"{name}-gpu"]["build"]
        assert gpu["dockerfile"] == cpu["dockerfile"]
        assert gpu["args"] == {**cpu["args"], **argument}
        (device,) = config[f"{name}-gpu"]["deploy"]["resources"]["reservations"]["devices"]
        assert device["driver"] == "nvidia"
        assert device["capabilities"] == ["gpu"]
        given = [f"--build-arg={key}={value}" for key, value in argument.items()]
        built = run(
            ["docker", "build", "--network=host", "--target=builder", *given, f"--file={gpu['dockerfile']}", "."],
            cwd=services.folder,
        )
        assert built.returncode == 0, built.stdout
    assert config["teacher-gpu"]["command"][:2] == ["--backend", "vllm"]
