"""What a pool of workers is made with: their number, and the limits of an item and of a worker."""

from dataclasses import dataclass

from vold_verifier.engine.forkclient import ForkServerOptions
from vold_verifier.settings import VerifierSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions:
    """cpu_seconds: soft limit for one item. wall_seconds: hard limit for one item. memory_bytes: address space of one
    worker. recycle_after: items after which a worker is replaced. max_queued: items in all queues, of which each
    tenant has its part. enable: verifiers that are off by default. sandbox: the workers are confined, and serve the
    verifiers of pool "sandbox" only. stall_seconds: time for the fork server to start or to end a worker; then it is
    replaced.
    """

    workers: int
    cpu_seconds: float = 1.0
    wall_seconds: float = 10.0
    memory_bytes: int = 512 << 20
    recycle_after: int = 2000
    max_queued: int = 65536
    plugins: tuple[str, ...] = ()
    enable: tuple[str, ...] = ()
    sandbox: bool = False
    stall_seconds: float = 30.0

    def of_fork_server(self) -> ForkServerOptions:
        return ForkServerOptions(
            pool="sandbox" if self.sandbox else "main",
            plugins=self.plugins,
            enable=self.enable,
            cpu_seconds=self.cpu_seconds,
            memory_bytes=self.memory_bytes,
        )


def main_options(settings: VerifierSettings) -> PoolOptions:
    """The options of a server's main pool."""
    return PoolOptions(
        workers=settings.workers,
        cpu_seconds=settings.time_limit,
        wall_seconds=settings.wall_limit,
        memory_bytes=settings.worker_memory_bytes,
        recycle_after=settings.recycle_after,
        max_queued=settings.max_queued_items,
        plugins=settings.plugins,
        enable=settings.enable,
    )
