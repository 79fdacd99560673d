"""`ditcast serve`: reads the configuration and lives until it is told to stop.

Exit codes: 0 stopped as asked, 1 the engine gave up or a second signal came, 2 the configuration
cannot be served or the server's libraries are not installed.
"""

from __future__ import annotations

import asyncio
import os
import sys
from importlib.util import find_spec

_NEEDED = (
    "av",
    "cache_dit",
    "diffusers",
    "grpc_channelz",
    "grpc_health",
    "grpc_reflection",
    "msgspec",
    "peft",
    "PIL",
    "prometheus_client",
    "psutil",
    "structlog",
    "torch",
    "transformers",
    "yaml",
)
"""What the extra brings, looked for without importing it: torch alone takes seconds."""


def command(argv: list[str]) -> int:
    """Run the server with the arguments after `serve`; give the process's exit code."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        return _refuse(
            "ditcast serve needs the server's libraries, and "
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed.\n"
            "Install them with: pip install 'ditcast[server]'"
        )
    # Only now: these need the libraries that were just looked for.
    from ditcast_runtime.environment import uncollected_imports  # noqa: PLC0415

    with uncollected_imports():
        from ditcast_runtime.errors import ConfigError  # noqa: PLC0415
        from ditcast_service import checks, config, lifecycle  # noqa: PLC0415

    try:
        settings = config.load(argv, os.environ)
    except ConfigError as error:
        return _refuse(f"ditcast serve cannot start:\n{checks.describe(error.problems)}")
    return asyncio.run(lifecycle.live(settings))


def _refuse(message: str) -> int:
    print(message, file=sys.stderr)  # noqa: T201
    return 2


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
