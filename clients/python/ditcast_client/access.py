"""What goes along with each call: who the client is, its trace, and the way to a generation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import grpc

from ditcast_client import tracing
from ditcast_client.routes import Routes

Token = str | Callable[[], str]
"""A token, or what gives it anew for each call."""

_KEY: Final = "authorization"

_Call = TypeVar("_Call", bound=grpc.aio.Call)


class TokenFile:
    """Gives the token in a file, as it is at each call: those who rotate it tell nobody."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self) -> str:
        """Read the token; white space around it does not count.

        Raises:
            OSError: The file cannot be read.
        """
        return self._path.read_text("utf-8").strip()


def tls(
    ca: Path | None = None, certificate: Path | None = None, key: Path | None = None
) -> grpc.ChannelCredentials:
    """Give the credentials for TLS, from files in PEM.

    Args:
        ca: Whom to believe about servers; None: whom gRPC believes by itself.
        certificate: The client's chain, for servers that ask for one.
        key: The key of that certificate.

    Raises:
        OSError: A file cannot be read.
    """
    return grpc.ssl_channel_credentials(
        ca.read_bytes() if ca else None,
        key.read_bytes() if key else None,
        certificate.read_bytes() if certificate else None,
    )


def accompany(stub: object, token: Token | None, routes: Routes) -> None:
    """Have each call of a stub carry the token and the route, if any, and the program's trace.

    Not by interceptors: gRPC's wrap each call in one of another kind, and a token that came with
    the channel's credentials would not go where there is no TLS, such as beside a mesh's proxy.
    """
    for name, call in tuple(vars(stub).items()):
        setattr(stub, name, _accompanied(name, call, token, routes))


def _accompanied(
    name: str, call: Callable[..., _Call], token: Token | None, routes: Routes
) -> Callable[..., _Call]:
    def made(request: object, **options: object) -> _Call:
        metadata = routes.metadata(request)
        if token is not None:
            metadata += ((_KEY, f"Bearer {token() if callable(token) else token}"),)
        span = tracing.begin(name)
        if span is None:
            return call(request, metadata=metadata, **options)
        begun = call(request, metadata=metadata + span.metadata, **options)
        span.end_with(begun)
        return begun

    return made
