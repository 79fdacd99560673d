"""The control address as the operator asks for it: who attaches where, and with which secret."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from ditcast_runtime.errors import ConfigError
from ditcast_runtime.hosts.addresses import is_unix
from ditcast_runtime.hosts.attachments import Attachments, Terms
from ditcast_runtime.hosts.handshake import Secret
from ditcast_runtime.settings import Problem
from ditcast_service.tls import TlsFiles, server_context

if TYPE_CHECKING:
    from ditcast_service.config import ServerConfig


def check_control(config: ServerConfig, where: Callable[[str], str]) -> Iterator[Problem]:
    """Find what keeps ranks from attaching, under the settings' places."""
    if config.control_listen and not any(map(is_unix, config.control_listen)):
        reason = "one of them must be unix:/path: rank 0 attaches there, to pass pixels in memory"
        yield Problem(where("control_listen"), reason)
    if config.control_listen and config.control_secret is None:
        yield Problem(where("control_secret"), "it is missing: ranks attach with it alone")
    if config.control_listen and config.groups > 1:
        reason = "ranks that others start make one group: start one service for each"
        yield Problem(where("groups"), reason)
    if config.control_secret is None:
        return
    if not config.control_listen:
        reason = "it is missing: without it, nobody needs --control-secret"
        yield Problem(where("control_listen"), reason)
    try:
        Secret.read(config.control_secret, "control_secret")
    except ConfigError as error:
        for problem in error.problems:
            yield Problem(where(problem.field), problem.reason)


def listen_for_ranks(config: ServerConfig, tls: TlsFiles | None) -> Attachments | None:
    """Open the control address, if there is to be one; inside the running loop.

    Raises:
        ConfigError: it cannot be listened on, or the secret is gone.
    """
    if config.control_secret is None:
        return None
    terms = Terms(
        secret=Secret.read(config.control_secret, "control_secret"),
        world_size=config.world_size,
        handshake_timeout=config.handshake_timeout,
        attach_notice=config.attach_notice,
        alive_timeout=config.alive_timeout,
    )
    # Ranks show no certificates: they know the group's secret.
    context = server_context(replace(tls, client_ca=None)) if tls else None
    return Attachments.listen(config.control_listen, terms, context)
