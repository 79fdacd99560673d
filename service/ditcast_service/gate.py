"""At the door of each RPC: who calls, whether they may, and as which client they count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import unquote

from ditcast_service.callers import ANYBODY, Caller, Callers, Scope
from ditcast_service.refusals import MissingScope, Unauthenticated

SERVICE = "/ditcast.v1.DiffusionService/"

ANY = frozenset[Scope]()
"""What needs no more than to be somebody who is known."""

NEEDED: Mapping[str, frozenset[Scope]] = {
    "Generate": frozenset({Scope.GENERATE}),
    "WatchGeneration": frozenset({Scope.GENERATE}),
    "CancelGeneration": frozenset({Scope.GENERATE}),
    # It makes generations in its caller's name, and changes nothing.
    "Tune": frozenset({Scope.GENERATE}),
    "ListGenerations": ANY,
    "GetConfiguration": ANY,
    "GetCapabilities": ANY,
    "ListAdapters": ANY,
    "Configure": frozenset({Scope.ADMIN}),
    "LoadAdapter": frozenset({Scope.ADMIN}),
    "UnloadAdapter": frozenset({Scope.ADMIN}),
}
"""By RPC. A test asserts that each stands here."""

OPEN = "/grpc.health.v1.Health/"
"""Probes and load balancers have no credentials."""

_REFLECTION = "/grpc.reflection."
_SCHEME = "bearer "

Metadata = Iterable[tuple[str, str | bytes]]


class Gate:
    """Lets callers in; without a file of them everybody, under the certificate's name if any."""

    def __init__(self, callers: Callers | None) -> None:
        self._callers = callers

    def admit(
        self, method: str, metadata: Metadata, auth_context: Mapping[str, Iterable[bytes]]
    ) -> Caller:
        """Give who calls `method`, by its full name.

        Raises:
            Unauthenticated: no credentials, or wrong ones.
            MissingScope: somebody who is known and may not.
        """
        if method.startswith(OPEN):
            return ANYBODY
        caller = self._identify(metadata, _names(auth_context))
        missing = _needed(method) - caller.scopes
        if missing:
            raise MissingScope(min(missing))
        return caller

    def _identify(self, metadata: Metadata, names: tuple[str, ...]) -> Caller:
        if self._callers is None:
            return Caller(names[0], ANYBODY.scopes) if names else ANYBODY
        given = [value for key, value in metadata if key == "authorization"]
        if len(given) > 1:
            raise Unauthenticated("there is more than one authorization in the metadata")
        caller = self._callers.identify(_token(given[0]) if given else None, names)
        if caller is None:
            raise Unauthenticated(
                "the credentials are not known"
                if given or names
                else "the metadata needs 'authorization: Bearer TOKEN'"
            )
        return caller


def client_of(caller: Caller, peer: str) -> str:
    """Name the client for whom a call counts: who it is where that is known, else its address.

    `peer` is as gRPC has it, `ipv4:10.0.0.7:41234` for instance. All that call through one proxy
    have one address, and so have all on this machine.
    """
    if caller.identity:
        return f"caller:{caller.identity}"
    family, _, rest = peer.partition(":")
    if family not in ("ipv4", "ipv6"):
        return family
    return f"clientip:{unquote(rest).rpartition(':')[0].strip('[]')}"


def _needed(method: str) -> frozenset[Scope]:
    if method.startswith(SERVICE):
        # What is not listed is new: only those who may do anything may do that.
        return NEEDED.get(method.removeprefix(SERVICE), frozenset({Scope.ADMIN}))
    return ANY if method.startswith(_REFLECTION) else frozenset({Scope.ADMIN})


def _token(given: str | bytes) -> str:
    text = given if isinstance(given, str) else given.decode("latin-1")
    if not text[: len(_SCHEME)].lower() == _SCHEME:
        raise Unauthenticated("authorization must be 'Bearer TOKEN'")
    return text[len(_SCHEME) :].strip()


def _names(auth_context: Mapping[str, Iterable[bytes]]) -> tuple[str, ...]:
    """List the names in the client's verified certificate: alternative ones first, then common."""
    keys = ("x509_subject_alternative_name", "x509_common_name")
    return tuple(
        name.decode("utf-8", errors="replace") for key in keys for name in auth_context.get(key, ())
    )
