"""A probe in a real service's process: the CPU time that its event loop's thread spends in one callback, and the bytes
that parsers, tokenizers and serializers of text are handed on that thread. No clock on the wall is read.

`probed` starts a service with it; `python loop_probe.py FILE teacher|verifier ARGUMENT...` is the process. FILE is
mapped by both: what the service writes, the test reads and resets.
"""

import asyncio
import contextlib
import json
import mmap
import os
import runpy
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECORD = struct.Struct("<dQ240s")
"""The longest callback in CPU seconds, the most bytes at a time, and what the callback was."""


@dataclass
class Probe:
    """A service with a probe in it. http, grpc: its addresses."""

    http: str
    grpc: str
    process: Any
    memory: mmap.mmap

    def reset(self) -> None:
        self.memory[: RECORD.size] = bytes(RECORD.size)

    @property
    def longest_callback(self) -> float:
        """CPU seconds since the last reset."""
        return RECORD.unpack(self.memory[: RECORD.size])[0]

    @property
    def most_bytes(self) -> int:
        return RECORD.unpack(self.memory[: RECORD.size])[1]

    @property
    def callback(self) -> str:
        return RECORD.unpack(self.memory[: RECORD.size])[2].rstrip(b"\0").decode("utf-8", "replace")

    @property
    def memory_bytes(self) -> int:
        """The most memory of the service's own process so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) << 10


@contextlib.contextmanager
def probed(folder: Path, service: str, *arguments: str, log: Any = None) -> Iterator[Probe]:
    """`vold-teacher serve` or `vold-verifier serve` on free ports, with a probe. folder: for the record."""
    import programs

    record = folder / "probe"
    record.write_bytes(bytes(RECORD.size))
    command = [sys.executable, __file__, str(record), service, "serve"]
    ports = ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--log-level", "info"]
    process = programs.start([*command, *ports, *arguments], stdout=subprocess.PIPE, stderr=log, text=True)
    with record.open("r+b") as file, mmap.mmap(file.fileno(), RECORD.size) as memory:
        try:
            line = process.stdout.readline()
            assert line, f"{service} ended with {process.wait(10)}"
            ready = json.loads(line)
            yield Probe(ready["http"], ready["grpc"], process, memory)
        finally:
            process.terminate()
            process.wait(30)
            process.stdout.close()


def install(record: str) -> None:
    """Probe this process, whose event loop will run on this thread."""
    with open(record, "r+b") as file:
        memory = mmap.mmap(file.fileno(), RECORD.size)
    loop_thread = threading.get_ident()
    process = os.getpid()
    run = asyncio.Handle._run

    def probed_run(self: asyncio.Handle) -> None:
        began = time.thread_time()
        run(self)
        spent = time.thread_time() - began
        longest, most, _ = RECORD.unpack(memory[: RECORD.size])
        if spent > longest and threading.get_ident() == loop_thread:
            memory[: RECORD.size] = RECORD.pack(spent, most, repr(self).encode()[:240])

    asyncio.Handle._run = probed_run

    def count(size: int) -> None:
        if threading.get_ident() == loop_thread and os.getpid() == process:  # not in a forked helper
            longest, most, callback = RECORD.unpack(memory[: RECORD.size])
            memory[: RECORD.size] = RECORD.pack(longest, max(most, size), callback)

    _count_arguments(json, "loads", lambda text, *_: len(text), count)
    _count_results(json, "dumps", count)
    from pydantic import BaseModel

    validate = BaseModel.model_validate_json.__func__

    def validate_json(cls: type, data: Any, **options: Any) -> Any:
        count(len(data))
        return validate(cls, data, **options)

    BaseModel.model_validate_json = classmethod(validate_json)
    _count_results(BaseModel, "model_dump_json", count)
    with contextlib.suppress(ModuleNotFoundError):
        from transformers import PreTrainedTokenizerBase

        _count_arguments(PreTrainedTokenizerBase, "encode", lambda self, text, *_: len(text), count)
        _count_arguments(
            PreTrainedTokenizerBase,
            "apply_chat_template",
            lambda self, messages, *_: sum(len(message["content"]) for message in messages),
            count,
        )


def _count_arguments(owner: Any, name: str, size: Any, count: Any) -> None:
    original = getattr(owner, name)

    def counted(*arguments: Any, **options: Any) -> Any:
        count(size(*arguments))
        return original(*arguments, **options)

    setattr(owner, name, counted)


def _count_results(owner: Any, name: str, count: Any) -> None:
    original = getattr(owner, name)

    def counted(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        count(len(result))
        return result

    setattr(owner, name, counted)


if __name__ == "__main__":
    record, service = sys.argv[1:3]
    sys.argv = [f"vold-{service}", *sys.argv[3:]]
    install(record)
    runpy.run_module(f"vold_{service}", run_name="__main__", alter_sys=True)
