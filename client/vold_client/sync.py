"""The sync clients: the async clients, run on the client loop (loop.py)."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from vold_client.base import AsyncClient
from vold_client.errors import VoldError
from vold_client.generation import Messages
from vold_client.keys import KeySource
from vold_client.loop import client_loop, open_iterators
from vold_client.packing import Budget
from vold_client.replicas import Throttled
from vold_client.teacher import AsyncTeacherClient
from vold_client.tls import Tls
from vold_client.types import (
    Completion,
    Generation,
    Identity,
    Ids,
    Item,
    Quota,
    ReplyDType,
    ScoreRequest,
    ScoreResult,
    TeacherInfo,
    TokenizerFile,
    Usage,
    Verdict,
    VerifierInfo,
)
from vold_client.verifier import AsyncVerifierClient, ItemBudget

C = TypeVar("C", bound=AsyncClient)
T = TypeVar("T")

_END: Any = object()


class SyncClient(Generic[C]):
    """Usable from any thread except that of a running event loop, which a call would block."""

    def __init__(self, client: C) -> None:
        self._client = client
        self._loop = client_loop()

    @property
    def urls(self) -> list[str]:
        return self._client.urls

    def ready(
        self, timeout: float = 60.0, *, every: bool = True, waiting: Callable[[VoldError], None] | None = None
    ) -> None:
        """See AsyncClient.ready."""
        self._run(self._client.ready(timeout, every=every, waiting=waiting))

    def quota(self, *, timeout: float | None = None) -> Quota:
        """See AsyncClient.quota."""
        return self._run(self._client.quota(timeout=timeout))

    def close(self) -> None:
        """Close the connections. The client cannot be used again."""
        if not self._loop.is_closed():  # closed if the interpreter is exiting, with its connections
            self._run(self._client.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # after Ctrl-C the call must not continue in the background
            raise

    def _iterate(self, items: AsyncGenerator[T, None]) -> Iterator[T]:
        async def next_item() -> T:
            return await anext(items, _END)

        async def close() -> None:
            await items.aclose()

        open_iterators.add(items)
        try:
            while (item := self._run(next_item())) is not _END:
                yield item
        finally:
            open_iterators.discard(items)
            if not self._loop.is_closed():  # closed if the interpreter is exiting, with its iterators
                self._run(close())


class TeacherClient(SyncClient[AsyncTeacherClient]):
    """AsyncTeacherClient for code without an event loop: the same arguments, methods and errors."""

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        timeout: float = 60.0,
        retries: int = 4,
        api_key: KeySource = None,
        tls: Tls | None = None,
        run_id: str = "",
        model: str = "",
        max_in_flight: int = 32,
        budget: Budget | None = None,
        throttled: Throttled | None = None,
    ) -> None:
        super().__init__(
            AsyncTeacherClient(
                urls,
                timeout=timeout,
                retries=retries,
                api_key=api_key,
                tls=tls,
                run_id=run_id,
                model=model,
                max_in_flight=max_in_flight,
                budget=budget,
                throttled=throttled,
            )
        )

    def info(self, model: str = "", *, timeout: float | None = None) -> TeacherInfo:
        """See AsyncTeacherClient.info."""
        return self._run(self._client.info(model, timeout=timeout))

    def tokenizer(self, model: str = "", *, timeout: float | None = None) -> TokenizerFile:
        """See AsyncTeacherClient.tokenizer."""
        return self._run(self._client.tokenizer(model, timeout=timeout))

    def usage(self, tenant: str = "", *, timeout: float | None = None) -> list[Usage]:
        """See AsyncTeacherClient.usage."""
        return self._run(self._client.usage(tenant, timeout=timeout))

    def score(
        self,
        prompts: Sequence[Ids],
        completions: Sequence[Completion],
        *,
        top_k: int = 0,
        entropy: bool = False,
        temperature: float = 1.0,
        dtype: ReplyDType = "f32",
        hidden_states: bool = False,
        ranks: bool = False,
        expect: Identity | str | None = None,
        priority: int = 0,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> ScoreResult:
        """See AsyncTeacherClient.score."""
        return self._run(
            self._client.score(
                prompts,
                completions,
                top_k=top_k,
                entropy=entropy,
                temperature=temperature,
                dtype=dtype,
                hidden_states=hidden_states,
                ranks=ranks,
                expect=expect,
                priority=priority,
                timeout=timeout,
                request_id=request_id,
            )
        )

    def score_stream(self, requests: Iterable[ScoreRequest]) -> Iterator[ScoreResult]:
        """See AsyncTeacherClient.score_stream."""
        return self._iterate(self._client.score_stream(requests))

    def generate(
        self,
        prompts: Sequence[Ids | Messages],
        *,
        n: int = 1,
        max_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        seeds: Sequence[int] | None = None,
        stop_ids: Sequence[int] = (),
        min_p: float = 0.0,
        stop: Sequence[str] = (),
        chat_template_kwargs: Mapping[str, Any] | None = None,
        priority: int = 0,
        timeout: float | None = None,
    ) -> Iterator[Generation]:
        """See AsyncTeacherClient.generate."""
        return self._iterate(
            self._client.generate(
                prompts,
                n=n,
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                seed=seed,
                seeds=seeds,
                stop_ids=stop_ids,
                min_p=min_p,
                stop=stop,
                chat_template_kwargs=chat_template_kwargs,
                priority=priority,
                timeout=timeout,
            )
        )


class VerifierClient(SyncClient[AsyncVerifierClient]):
    """AsyncVerifierClient for code without an event loop: the same arguments, methods and errors."""

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        timeout: float = 60.0,
        retries: int = 4,
        api_key: KeySource = None,
        tls: Tls | None = None,
        run_id: str = "",
        max_in_flight: int = 256,
        budget: ItemBudget | None = None,
        throttled: Throttled | None = None,
    ) -> None:
        super().__init__(
            AsyncVerifierClient(
                urls,
                timeout=timeout,
                retries=retries,
                api_key=api_key,
                tls=tls,
                run_id=run_id,
                max_in_flight=max_in_flight,
                budget=budget,
                throttled=throttled,
            )
        )

    def list_verifiers(self, *, timeout: float | None = None) -> list[VerifierInfo]:
        """See AsyncVerifierClient.list_verifiers."""
        return self._run(self._client.list_verifiers(timeout=timeout))

    def verify(self, items: Sequence[Item], *, timeout: float | None = None) -> list[Verdict]:
        """See AsyncVerifierClient.verify."""
        return self._run(self._client.verify(items, timeout=timeout))

    def verify_stream(self, items: Iterable[Item], *, timeout: float | None = None) -> Iterator[Verdict]:
        """See AsyncVerifierClient.verify_stream."""
        return self._iterate(self._client.verify_stream(items, timeout=timeout))
