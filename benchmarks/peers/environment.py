"""The environment of cache-dit's own HTTP server, which needs another cache-dit than ours.

All but cache-dit itself comes from the environment that the benchmark runs in: both sides then have
the same torch and diffusers, and the one download is small.
"""

from __future__ import annotations

import asyncio
import sys
import sysconfig
from pathlib import Path

from benchmarks.processes import ProcessFailed

VERSION = "1.3.4"
"""The last line of cache-dit with `cache_dit.serve`."""

_FOLDER = Path(__file__).parents[2] / "build" / "peers" / f"cache-dit-{VERSION}"


async def python_of_cache_dit_serve() -> Path:
    """Give the Python of that environment; makes it the first time.

    Raises:
        ProcessFailed: it cannot be made, for instance for want of a package index.
    """
    python = _FOLDER / "bin" / "python"
    done = _FOLDER / "done"
    if not done.exists():
        await _call(sys.executable, "-m", "venv", "--clear", str(_FOLDER))
        _share_packages()
        package = f"cache-dit=={VERSION}"
        await _call(str(python), "-m", "pip", "install", "--quiet", "--no-deps", package)
        done.touch()
    return python


def _share_packages() -> None:
    """Let it find our packages after its own, so that its cache-dit comes first."""
    theirs = sysconfig.get_path("purelib", vars={"base": str(_FOLDER)})
    ours = sysconfig.get_path("purelib")
    Path(theirs, "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n", "utf-8")


async def _call(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    if process.returncode:
        raise ProcessFailed(f"{' '.join(command)}: {said.decode(errors='replace')[-2000:]}")
