"""Attacks on a service beside an honest tenant: what the tenant waits, and whether the service stays up.

Each attack of benchmarks/attacks.py has a service of its own. The honest tenant sends a small request after another,
first alone, then beside the attack. A probe asks for /healthz all the time, which needs nothing but the event loop: the
longest it waits is the longest time that the loop, or the machine, stood still. Attackers take their share of the same
cores, so read the ratios: both sides of each come from one run.

Verdicts: "holds"; "stalls", if the loop stood still for a second; "refuses", if an honest request failed; "fails", if
the service ended, or answers no honest request for a minute afterwards.

python benchmarks/attack.py [--seconds 10] [--only TEXT]
"""

import argparse
import contextlib
import http.client
import itertools
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import yaml
from attacks import ATTACKS, Attack, Target
from common import POCKET_TEACHER, show
from vold_client import Completion, Item, TeacherClient, VerifierClient, VoldError
from vold_service.keys import digest_of, new_key

STALL_SECONDS = 1.0
RECOVERY_SECONDS = 60.0


@dataclass
class Phase:
    """What the honest tenant and the probe saw. waits, probes: seconds. memory: most bytes of the service's process."""

    waits: list[float] = field(default_factory=list)
    failed: int = 0
    probes: list[float] = field(default_factory=list)
    memory: int = 0


@contextlib.contextmanager
def attacked_service(name: str, keys: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """A service on free ports, and its ready line."""
    options = {"teacher": ["--model", str(POCKET_TEACHER), "--threads", "1"], "verifier": ["--workers", "2"]}[name]
    faces = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--log-level", "error")
    process = subprocess.Popen(
        [sys.executable, "-m", f"vold_{name}", "serve", *faces, "--api-keys", str(keys), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


def honest_calls(service: str, address: str, key: str) -> Generator[Callable[[], object], None, None]:
    """Small requests, all different."""
    rng = np.random.default_rng(0)
    if service == "teacher":
        with TeacherClient(f"grpc://{address}", api_key=key, timeout=60) as teacher:
            while True:
                prompts = [rng.integers(2, 100, 30) for _ in range(2)]
                completions = [Completion(index // 4, rng.integers(2, 100, 40)) for index in range(8)]
                yield lambda prompts=prompts, completions=completions: teacher.score(prompts, completions)
    with VerifierClient(f"grpc://{address}", api_key=key, timeout=60) as verifier:
        for number in itertools.count():
            items = [Item("math", rf"\boxed{{{number}x+{index}}}", f"{index}+{number}x") for index in range(8)]
            yield lambda items=items: check_results(verifier.verify(items))


def check_results(results: object) -> None:
    """Raise VoldError if an item has no verdict: the honest tenant's share of a fault."""
    for result in results:  # type: ignore[attr-defined]
        if result.error is not None:
            raise VoldError(str(result.error))


def watch(process: subprocess.Popen[str], http_address: str, phase: Phase, stop: threading.Event) -> None:
    """Probe the event loop and the memory until `stop`."""
    host, port = http_address.rsplit(":", 1)
    service = psutil.Process(process.pid)
    connection = None
    while not stop.is_set():
        began = time.perf_counter()
        with contextlib.suppress(OSError, http.client.HTTPException):
            if connection is None:
                # Another address than the attackers': theirs may have no connection left.
                connection = http.client.HTTPConnection(host, int(port), timeout=60, source_address=("127.0.0.2", 0))
            try:
                connection.request("GET", "/healthz")
                connection.getresponse().read()
            except (OSError, http.client.HTTPException):
                connection.close()
                connection = None
        phase.probes.append(time.perf_counter() - began)
        with contextlib.suppress(psutil.Error):
            phase.memory = max(phase.memory, service.memory_info().rss)
        time.sleep(0.005)


def measure(
    process: subprocess.Popen[str], http_address: str, calls: Iterator[Callable[[], object]], seconds: float
) -> Phase:
    phase, stop = Phase(), threading.Event()
    watcher = threading.Thread(target=watch, args=(process, http_address, phase, stop))
    watcher.start()
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until and process.poll() is None:
            call = next(calls)
            began = time.perf_counter()
            try:
                call()
                phase.waits.append(time.perf_counter() - began)
            except VoldError:
                phase.failed += 1
            time.sleep(0.02)
    finally:
        stop.set()
        watcher.join()
    return phase


def repeat(attack: Attack, target: Target) -> None:
    while True:
        attack.round(target)


def run(attack: Attack, keys_file: Path, honest_key: str, hostile_key: str, seconds: float) -> list[str]:
    with attacked_service(attack.service, keys_file) as (process, ready):
        target = Target(ready["http"].removeprefix("http://"), ready["grpc"], hostile_key, ready["pid"])
        calls = honest_calls(attack.service, target.grpc, honest_key)
        measure(process, target.http, calls, 1.0)  # what comes first takes longer
        alone = measure(process, target.http, calls, seconds)
        context = multiprocessing.get_context("spawn")
        attackers = [context.Process(target=repeat, args=(attack, target)) for _ in range(attack.processes)]
        for attacker in attackers:
            attacker.start()
        time.sleep(2.0)  # until they have imported what they need
        beside = measure(process, target.http, calls, seconds)
        for attacker in attackers:
            attacker.kill()
            attacker.join()
        recovered = answers(process, calls)
        calls.close()
        return [attack.name, attack.service, *columns(alone, beside), verdict(beside, recovered)]


def answers(process: subprocess.Popen[str], calls: Iterator[Callable[[], object]]) -> bool:
    """Whether an honest request is answered within RECOVERY_SECONDS."""
    until = time.monotonic() + RECOVERY_SECONDS
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(VoldError):
            next(calls)()
            return True
        time.sleep(0.5)
    return False


def columns(alone: Phase, beside: Phase) -> list[str]:
    def milliseconds(values: list[float]) -> str:
        return f"{1000 * statistics.median(values):.0f}, {1000 * max(values):.0f}" if values else "none answered"

    stall, idle = max(beside.probes), max(alone.probes)
    return [
        milliseconds(alone.waits),
        milliseconds(beside.waits),
        f"{1000 * stall:.0f} ms, {stall / idle:.1f}x",
        f"{beside.memory / 2**20:.0f} ({beside.memory / alone.memory:.2f}x)",
    ]


def verdict(beside: Phase, recovered: bool) -> str:
    if not recovered:
        return "fails"
    if beside.failed:
        return f"refuses {beside.failed} of {beside.failed + len(beside.waits)}"
    return "stalls" if max(beside.probes) > STALL_SECONDS else "holds"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="alone, and again beside each attack")
    parser.add_argument("--only", default="", help="attacks whose name has this text")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        keys = {name: new_key() for name in ("honest", "hostile")}
        tenants = [{"name": name, "keys": [{"sha256": digest_of(key).hex()}]} for name, key in keys.items()]
        tenants[1]["max_concurrent"] = 4
        file = Path(folder) / "keys.yaml"
        file.write_text(yaml.safe_dump({"tenants": tenants}))
        for attack in ATTACKS:
            if options.only in attack.name:
                rows.append(run(attack, file, keys["honest"], keys["hostile"], options.seconds))
                print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    show(
        f"An honest tenant beside an attack, {options.seconds:.0f} s each",
        ["attack", "service", "alone: median, worst ms", "beside", "longest stall, to idle", "peak MiB", "verdict"],
        rows,
    )


if __name__ == "__main__":
    main()
