"""The line of callers that wait for one limit of a tenant.

A refused request has no place in line, so it costs the other requests nothing, whether or not it is sent again. Its
caller gets a place by coming back at the time that it was told and being refused again, because another request was
faster. From then on the tokens that it waits for are kept for it. A caller that has a place and does not come back
loses it `GRACE_SECONDS` after its time.
"""

from collections import OrderedDict
from dataclasses import dataclass

GRACE_SECONDS = 15.0
"""How late a caller may come back: vold_client adds up to 10 s (vold_client.replicas.MAX_BACKOFF) to a retry's time."""

EARLY_SECONDS = 0.01
"""How early a caller may come back. The time is a float32 on the wire."""

MAX_CALLERS = 1024
"""Callers of a tenant with a place in line, and refused callers that may still get one. More are not remembered."""


@dataclass(slots=True)
class _Place:
    size: int
    due: float


class Line:
    """Callers by a key that they keep when they come back. All times are on one clock, in seconds."""

    def __init__(self) -> None:
        self._refused: OrderedDict[int, float] = OrderedDict()
        self._places: dict[int, _Place] = {}

    def ahead(self, key: int | None, now: float) -> tuple[int, int]:
        """(callers, sum of their sizes) that go before this one: those before its place, or all if it has none."""
        for late in [other for other, place in self._places.items() if now > place.due + GRACE_SECONDS]:
            del self._places[late]
        callers = size = 0
        for other, place in self._places.items():
            if other == key:
                break
            callers += 1
            size += place.size
        return callers, size

    def refuse(self, key: int | None, size: int, due: float, now: float, *, returns: bool) -> None:
        """Note that this caller is refused and comes back at `due`. returns: False if it cannot, for its deadline."""
        if key is None:
            return
        told = self._refused.pop(key, None)
        if not returns:
            self._places.pop(key, None)
        elif key in self._places:
            self._places[key].due = due
        elif told is not None and told - EARLY_SECONDS <= now <= told + GRACE_SECONDS and self._has_room():
            self._places[key] = _Place(size, due)
        else:
            # A caller that comes too early must not move the time at which it gets a place.
            self._refused[key] = min(told, due) if told is not None and now < told else due
            if len(self._refused) > MAX_CALLERS:
                self._refused.popitem(last=False)

    def postpone(self, key: int | None, due: float) -> None:
        """Keep the caller's place until `due`: another limit sends it away until then."""
        if key in self._places:
            self._places[key].due = max(self._places[key].due, due)

    def leave(self, key: int | None) -> None:
        """The caller is admitted."""
        if key is not None:
            self._refused.pop(key, None)
            self._places.pop(key, None)

    def _has_room(self) -> bool:
        return len(self._places) < MAX_CALLERS
