"""A teacher's engine around a backend, without a server."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vold_teacher.engine.engine import Engine, EngineLimits


def run_engine(
    backend: Any,
    work: Callable[[Engine], Awaitable[Any]],
    *,
    batch_tokens: int = 4000,
    cache: Any = None,
    on_computed: Callable[..., None] = lambda call, positions: None,
) -> Any:
    """What `work` of a started engine returns."""

    async def main() -> Any:
        engine = Engine(backend, EngineLimits(batch_tokens, 1 << 20), ThreadPoolExecutor(1), cache, on_computed)
        engine.start()
        try:
            return await asyncio.wait_for(work(engine), 120)
        finally:
            await engine.stop()

    return asyncio.run(main())
