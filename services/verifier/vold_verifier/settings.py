"""The verifier server's settings."""

import os
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, field_validator, model_validator
from vold_service.keys import outgoing_key
from vold_service.settings import MIB, ServerSettings


class VerifierSettings(ServerSettings):
    """Each field is also an environment variable: VOLD_ and its name in capitals."""

    http: str | None = Field(default="127.0.0.1:8010", description="HOST:PORT of the HTTP face; port 0: a free port")
    grpc: str | None = Field(default="127.0.0.1:50061", description="HOST:PORT or unix:PATH of the gRPC face")
    workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, le=1024, description="worker processes")
    time_limit: float = Field(default=1.0, gt=0, le=600, description="CPU seconds for one item")
    hard_time_limit: float | None = Field(
        default=None,
        gt=0,
        description="wall-clock seconds for one item, for a verifier that waits; 10 times time_limit by default",
    )
    worker_memory_bytes: int = Field(default=512 * MIB, ge=192 * MIB, description="address space of one worker")
    recycle_after: int = Field(default=2000, ge=1, description="items after which a worker is replaced")
    max_items: int = Field(default=4096, ge=1, description="items in one Verify request")
    max_queued_items: int = Field(
        default=65536, ge=1, description="items waiting in all queues; above it, callers are told to retry later"
    )
    max_stream_items: int = Field(default=256, ge=1, description="items of one stream waiting or in a worker at a time")
    cache_bytes: int = Field(default=64 * MIB, ge=0, description="memory for cached verdicts; 0 turns the cache off")
    max_completion_chars: int = Field(default=256 * 1024, ge=1, description="longest completion or prompt")
    max_reference_chars: int = Field(default=64 * 1024, ge=1, description="longest reference")
    max_parameters_bytes: int = Field(default=4 * MIB, ge=1024, description="largest parameters of one item")
    enable: tuple[str, ...] = Field(default=(), description="verifiers that are off by default: code")
    allow_weak_sandbox: bool = Field(
        default=False, description="serve `code` where its programs can read the files that the service can read"
    )
    sandbox_workers: int | None = Field(
        default=None, ge=1, le=1024, description="sandboxed worker processes; as many as workers by default"
    )
    sandbox_memory_bytes: int = Field(
        default=1024 * MIB, ge=256 * MIB, description="address space of one sandboxed worker, and of one program"
    )
    code_wall_limit: float = Field(
        default=60.0, gt=0, le=3600, description="wall-clock seconds for all tests of one item of `code`"
    )
    judge_url: str | None = Field(
        default=None,
        pattern="^https?://",
        description="an OpenAI-compatible API, such as http://localhost:9000/v1; it turns the verifier `judge` on",
    )
    judge_model: str = Field(default="", description="the judge's model")
    judge_key: SecretStr | None = Field(default=None, description="the API's key; from the environment only")
    judge_rubric: Path | None = Field(default=None, description="file with the rubric of items without one")
    judge_timeout: float = Field(default=60.0, gt=0, le=3600, description="seconds for one request to the judge")
    judge_retries: int = Field(default=2, ge=0, le=10, description="further requests after a failed one")
    judge_in_flight: int = Field(default=32, ge=1, description="concurrent requests to the judge")
    plugins: tuple[str, ...] = Field(default=(), description="modules whose VERIFIERS are served too")

    @field_validator("judge_key")
    @classmethod
    def _one_word(cls, value: SecretStr | None) -> SecretStr | None:
        key = outgoing_key(value.get_secret_value(), "the environment variable VOLD_JUDGE_KEY") if value else ""
        return SecretStr(key) if key else None

    @model_validator(mode="after")
    def _check_judge(self) -> Self:
        if self.judge_url and not self.judge_model:
            raise ValueError("judge_url is set and judge_model is not: name the judge's model")
        if self.judge_rubric is not None and not self.judge_rubric.is_file():
            raise ValueError(f"judge_rubric {self.judge_rubric} is not a file: name a file with the rubric's text")
        return self

    @property
    def wall_limit(self) -> float:
        return self.hard_time_limit if self.hard_time_limit is not None else 10 * self.time_limit
