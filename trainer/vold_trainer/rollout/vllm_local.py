"""`rollout.url: local:`: a vLLM server on the student, as a child process on a Unix socket, ended with the run."""

import contextlib
import importlib.util
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from vold_proto.distribution import advice

from vold_trainer.child import child
from vold_trainer.config import RolloutConfig
from vold_trainer.errors import UsageError
from vold_trainer.pocket.shipped import resolve_model
from vold_trainer.services.local import own_environment
from vold_trainer.student.models import Student

LOCAL = "local:"
START_SECONDS = 1200.0


@contextlib.contextmanager
def serving_student(student: Student, config: RolloutConfig) -> Iterator[str]:
    """Yields unix:PATH of a server that answers. Raises UsageError where it does not come up, with its last words."""
    if importlib.util.find_spec("vllm") is None:
        elsewhere = "give the URL of a `vllm serve` that runs elsewhere"
        raise UsageError(advice(f"rollout.url {LOCAL!r}", "vllm", "vllm", elsewhere))
    with tempfile.TemporaryDirectory(prefix="vold-") as folder:
        socket, log = Path(folder) / "vllm.sock", Path(folder) / "vllm.log"
        arguments = ["--model", resolve_model(student.path), "--uds", str(socket)]
        arguments += ["--dtype", str(student.model.dtype).removeprefix("torch."), *config.vllm_args]
        # The routes that change weights: this server is on a socket that only this user can open.
        variables = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
        with child("vllm.entrypoints.openai.api_server", arguments, log, own_environment() | variables) as process:
            client = httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://vllm")
            until = time.monotonic() + START_SECONDS
            with client:
                while not _answers(client):
                    if process.poll() is not None or time.monotonic() > until:
                        tail = "\n".join(log.read_text(errors="replace").splitlines()[-12:])
                        raise UsageError(f"rollout.url {LOCAL!r}: vLLM did not come up:\n{tail}")
                    time.sleep(0.5)
            yield f"unix:{socket}"


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.HTTPError:
        return False
