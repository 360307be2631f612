"""Lets the event loop serve other callers in the middle of long work for one request."""

import asyncio
import time

TURN_SECONDS = 0.005
"""How long a task works before it lets the event loop go on."""


class Turn:
    """A task's turn on the event loop. Call `pause` between small steps of long work."""

    __slots__ = ("_ends",)

    def __init__(self) -> None:
        self._ends = time.monotonic() + TURN_SECONDS

    @property
    def is_over(self) -> bool:
        """Whether `pause` would let the loop go on: to ask costs less than to call it."""
        return time.monotonic() >= self._ends

    async def pause(self) -> None:
        """Let the loop go on if the turn is over."""
        if time.monotonic() >= self._ends:
            await asyncio.sleep(0)
            self._ends = time.monotonic() + TURN_SECONDS
