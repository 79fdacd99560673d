"""Which of several servers has a generation, in the words of the proxy before them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

KEY: Final = "ditcast-route"
"""A proxy gives it with the first headers, and brings calls that carry it to the same server."""

_MOST: Final = 4096
"""Routes that are kept. Without one, a proxy has to look for the server, or guess."""


class Routes:
    """The routes to the generations of one client, of each the last that came."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def learn(self, request_id: str, headers: Iterable[tuple[str, str | bytes]]) -> None:
        """Keep the route to a generation, if its headers have one."""
        for key, value in headers:
            if key == KEY and isinstance(value, str):
                self._known.pop(request_id, None)
                self._known[request_id] = value
                if len(self._known) > _MOST:
                    del self._known[next(iter(self._known))]

    def metadata(self, request: object) -> tuple[tuple[str, str], ...]:
        """Give what brings a request to the server of the generation that it names, if any."""
        route = self._known.get(getattr(request, "request_id", ""))
        return () if route is None else ((KEY, route),)
