"""The status pages in a real browser, under load from the real client: no errors, no requests to other hosts, and the
server's own numbers.
"""

import asyncio
import threading

import httpx
import pytest
from browser import BINARY, browser
from servers import serving
from teacher_fixtures import save_model, teacher_server
from vold_client import AsyncTeacherClient, Completion, InvalidArgument, Item, TeacherClient, VerifierClient

pytestmark = pytest.mark.skipif(BINARY is None, reason="no Chromium on this machine; install it to open the page")


def number(page, element: str) -> float:
    return float(page.evaluate(f"document.getElementById('{element}').textContent").replace(",", ""))


def sample(text: str, name: str) -> float:
    return sum(
        float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith((name + " ", name + "{"))
    )


NO_CACHE = ("--cache-bytes", "0")
"""Every scored token is then also computed."""


def test_the_teachers_page_shows_what_the_server_counts(tmp_path):
    with (
        teacher_server(
            save_model(tmp_path / "tiny"), "--name", "tiny <b>teacher</b>", "--max-batch-tokens", "512", *NO_CACHE
        ) as server,
        browser(tmp_path / "profile") as page,
    ):
        stop_load = threading.Event()

        async def load() -> None:
            async with AsyncTeacherClient(f"grpc://{server.grpc}", timeout=120) as client:

                async def run(index: int) -> None:
                    while not stop_load.is_set():
                        completions = [Completion(0, [7] * (20 + 3 * row)) for row in range(8)]
                        await client.score([[5, index]], completions)

                await asyncio.gather(*(run(index) for index in range(6)))

        worker = threading.Thread(target=lambda: asyncio.run(load()))
        worker.start()
        try:
            page.open(server.http + "/", width=400, height=900, scheme="dark")
            page.wait_for("document.getElementById('state').textContent === 'ready'")
            page.wait_for("window.shown.history.scored.filter((value) => value > 0).length > 2")
            page.wait_for("document.querySelectorAll('#throughput-plot polyline').length === 2")
            page.wait_for("window.shown.queue.tokens > 0 && window.shown.queue.requests > 0")
            page.wait_for("document.getElementById('throughput').textContent !== '0'")
            assert page.evaluate("document.documentElement.scrollWidth") == 400
        finally:
            stop_load.set()
            worker.join()
        with TeacherClient(server.http) as client:
            sampled = list(client.generate([[5, 6]], max_tokens=5, n=2))
            with pytest.raises(InvalidArgument):
                client.score([[5]], [Completion(0, [7])], top_k=10**6)

        metrics = httpx.get(f"{server.http}/metrics").text
        page.wait_for("Object.keys(window.shown.rejected).length > 0")
        scored, generated = (sample(metrics, f"vold_teacher_{work}_tokens_total") for work in ("scored", "generated"))
        assert number(page, "total-scored") == scored > 0
        assert number(page, "total-generated") == generated == sum(len(generation.ids) for generation in sampled)
        assert number(page, "total-requests") == sample(metrics, "vold_teacher_requests_total")
        assert number(page, "total-batches") == sample(metrics, "vold_teacher_batch_tokens_count")
        assert number(page, "queue-tokens") == number(page, "queue-requests") == 0
        row = page.evaluate("[...document.querySelectorAll('#tenants tbody td')].map((cell) => cell.textContent)")
        requests = sample(metrics, "vold_tenant_requests_total")
        assert row[:4] == ["open", f"{requests:,.0f}", f"{scored + generated:,.0f}", "100 %"]
        assert page.evaluate("document.getElementById('rejected').textContent") == "invalid 1"
        assert page.evaluate("document.querySelector('.teacher h3').textContent") == "tiny <b>teacher</b>"
        info = httpx.get(f"{server.http}/v1/info").json()
        codes = page.evaluate("[...document.querySelectorAll('.teacher code')].map((code) => code.textContent)")
        assert codes == [info["identity"]["weights_fingerprint"], info["identity"]["tokenizer_fingerprint"]]
        assert page.errors == []
        assert {httpx.URL(url).netloc for url in page.requests if not url.startswith("data:")} == {
            httpx.URL(server.http).netloc
        }

        server.process.kill()
        page.wait_for("document.getElementById('state').textContent === 'unreachable'")


def test_the_verifiers_page_shows_what_the_server_counts(tmp_path):
    with serving("verifier", "--workers", "1") as server, browser(tmp_path / "profile") as page:
        page.open(server.http + "/", width=400, height=900)
        with VerifierClient(server.grpc) as client:
            client.verify([Item("exact", "a", "a"), Item("exact", "a", "b"), Item("numeric", "3", "3")])
        page.wait_for("window.shown && window.shown.verifiers.length === 2")
        rows = page.evaluate(
            "[...document.querySelectorAll('#verifiers tbody tr')]"
            ".map((row) => row.cells[0].textContent + row.cells[1].textContent)"
        )
        assert rows == ["exact2", "numeric1"]
        assert page.evaluate("document.getElementById('outcomes').textContent") == "correct 2wrong 1"
        assert page.evaluate("document.getElementById('workers').textContent") == "1 of 1"
        assert page.evaluate("document.documentElement.scrollWidth") == 400
        assert page.errors == []
