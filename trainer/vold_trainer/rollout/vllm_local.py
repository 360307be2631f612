"""`rollout.url: local:`: a vLLM server for the student, a child process on a Unix socket that ends with the run."""

import contextlib
import importlib.util
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from vold_proto.distribution import missing_extra_message

from vold_trainer.child import child_process
from vold_trainer.config import RolloutConfig
from vold_trainer.errors import UsageError
from vold_trainer.pocket.shipped import resolve_model
from vold_trainer.services.local import local_service_environment
from vold_trainer.services.readiness import Waiting
from vold_trainer.student.models import Student

LOCAL = "local:"
START_SECONDS = 1200.0


@contextlib.contextmanager
def serve_student(student: Student, config: RolloutConfig) -> Iterator[str]:
    """Yield unix:PATH of a server that is ready. Raises UsageError with its last log lines if it does not start."""
    if importlib.util.find_spec("vllm") is None:
        remedy = "give the URL of a `vllm serve` that runs elsewhere"
        raise UsageError(missing_extra_message(f"rollout.url {LOCAL!r}", "vllm", "vllm", remedy))
    with tempfile.TemporaryDirectory(prefix="vold-") as folder:
        socket, log = Path(folder) / "vllm.sock", Path(folder) / "vllm.log"
        model = resolve_model(student.path)
        if student.new_tokens:  # which the student's own folder has not
            model = str(Path(folder) / "student")
            student.save(Path(model))
        arguments = ["--model", model, "--uds", str(socket)]
        arguments += ["--dtype", str(student.model.dtype).removeprefix("torch."), *config.vllm_args]
        # Dev mode has the routes that change weights. Only this user can open the socket.
        variables = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
        environment = local_service_environment() | variables
        with child_process("vllm.entrypoints.openai.api_server", arguments, log, environment) as process:
            client = httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://vllm")
            deadline = time.monotonic() + START_SECONDS
            waiting = Waiting(f"rollout.url {LOCAL!r} to start", START_SECONDS)
            with client, contextlib.closing(waiting):
                while not _is_ready(client):
                    waiting.show()
                    if process.poll() is not None or time.monotonic() > deadline:
                        tail = "\n".join(log.read_text(errors="replace").splitlines()[-12:])
                        raise UsageError(f"rollout.url {LOCAL!r}: vLLM did not start:\n{tail}")
                    time.sleep(0.5)
                waiting.announce_ready()
            yield f"unix:{socket}"


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.HTTPError:
        return False
