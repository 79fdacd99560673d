"""Runs a campaign by its command, as anybody would, and shows what it said where it failed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from tests.campaigns.document import ROOT


async def expect_kept(campaign: str, *arguments: str) -> str:
    """Run `python -m tests.campaigns...`; it ends with 0 if every promise was kept."""
    command = ["-m", f"tests.campaigns.{campaign}", *arguments]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=ROOT,
        # With its server, where a time limit ends the test.
        start_new_session=True,
    )
    try:
        said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    text = said.decode("utf-8", "replace")
    assert process.returncode == 0, text
    return text
