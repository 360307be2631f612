"""A verifier's tenant that may have one request under way, and a stream that takes its place for as long as needed."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import yaml
from known_keys import known_key
from vold_proto.v1 import verifier_pb2, verifier_pb2_grpc
from vold_service.keys import digest_of

KEY, OTHER_KEY = known_key("run"), known_key("another")


def write_keys(file: Path, *keys: str, max_concurrent: int | None = 1, process=None) -> None:
    """Write the keys of a tenant with one request at a time. process: of the service, which reads the file at once."""
    tenant = {
        "name": "run",
        "max_concurrent": max_concurrent,
        "keys": [{"sha256": digest_of(key).hex()} for key in keys],
    }
    fresh = file.with_suffix(".new")
    fresh.write_text(yaml.safe_dump({"tenants": [tenant]}))
    os.replace(fresh, file)
    if process is not None:
        process.send_signal(signal.SIGHUP)


class Hold:
    """A stream to the verifier at a grpc:// URL that stays open after its first item, from `begin` to `end`."""

    def __init__(self, url: str) -> None:
        self._channel = grpc.insecure_channel(url.removeprefix("grpc://"))
        self._ended = threading.Event()

    def begin(self) -> None:
        self._ended.clear()
        stub = verifier_pb2_grpc.VerifierServiceStub(self._channel)
        self._call = stub.VerifyStream(self._items(), metadata=[("authorization", f"Bearer {KEY}")])
        next(self._call)

    def _items(self) -> Iterator[verifier_pb2.VerifyItem]:
        yield verifier_pb2.VerifyItem(verifier="exact", completion="7", reference="7")
        self._ended.wait(60)

    def end(self) -> None:
        self._ended.set()
        self._call.cancel()

    def __enter__(self) -> "Hold":
        self.begin()
        return self

    def __exit__(self, *error: object) -> None:
        self.end()
