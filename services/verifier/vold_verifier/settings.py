"""The verifier server's settings."""

import os

from pydantic import Field
from vold_service.settings import MIB, ServerSettings


class VerifierSettings(ServerSettings):
    """Each is also an environment variable: VOLD_ and the name in capitals."""

    http: str | None = Field(default="127.0.0.1:8010", description="HOST:PORT of the HTTP face; port 0 picks one")
    grpc: str | None = Field(default="127.0.0.1:50061", description="HOST:PORT or unix:PATH of the gRPC face")
    workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, le=1024, description="worker processes")
    time_limit: float = Field(default=1.0, gt=0, le=600, description="CPU seconds for one item")
    hard_time_limit: float | None = Field(
        default=None,
        gt=0,
        description="wall seconds for one item, for what waits instead of computing; 10 times time_limit by default",
    )
    worker_memory_bytes: int = Field(default=512 * MIB, ge=192 * MIB, description="address space of one worker")
    recycle_after: int = Field(default=2000, ge=1, description="items after which a worker is replaced")
    max_items: int = Field(default=4096, ge=1, description="items in one Verify request")
    max_queued_items: int = Field(
        default=65536, ge=1, description="items waiting in all, before callers are told to come back"
    )
    max_stream_items: int = Field(default=256, ge=1, description="items of one stream waiting or in a worker at a time")
    cache_bytes: int = Field(
        default=64 * MIB, ge=0, description="memory for verdicts that may be asked for again; 0 keeps none"
    )
    max_completion_chars: int = Field(default=256 * 1024, ge=1, description="longest completion or prompt")
    max_reference_chars: int = Field(default=64 * 1024, ge=1, description="longest reference")
    plugins: tuple[str, ...] = Field(default=(), description="modules whose VERIFIERS are served too")

    @property
    def wall_limit(self) -> float:
        return self.hard_time_limit if self.hard_time_limit is not None else 10 * self.time_limit
