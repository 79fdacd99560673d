"""What is left after a campaign: processes, descriptors, threads, memory and files."""

from __future__ import annotations

import asyncio
import gc
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from tests.distributed.servers import Server

SETTLE_SECONDS = 30.0
"""How long ended streams and kept results may take to go, with the `RETENTION` of a campaign."""
RETENTION_SECONDS = 3
MOST_GROWTH = 0.1
"""Of the resident memory of a service; the campaign on steadiness measures it closely."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What a service process holds while nobody uses it."""

    descriptors: int
    threads: int
    children: int
    resident_bytes: int
    folders: int
    """Private folders in the place for temporary files: one of each service that lives."""
    kinds: dict[str, int] = field(default_factory=dict)
    """How many descriptors there are of each: what tells which one was left open."""


def usage(server: Server) -> Usage:
    """Look at a service from outside."""
    process = psutil.Process(server.process.pid)
    return Usage(
        descriptors=process.num_fds(),
        threads=process.num_threads(),
        children=len(process.children(recursive=True)),
        resident_bytes=process.memory_info().rss,
        folders=len(list(server.scratch.glob("ditcast*"))),
        kinds=dict(_kinds(process, server.folder)),
    )


def _kinds(process: psutil.Process, folder: Path) -> Counter[str]:
    """Count descriptors by what they are, without numbers; connections by the address they are at.

    What is in the server's folder is named from there: a stored result says nothing of a machine.

    A rank's channel has no address, a client's connection the service's own.
    """
    ends = {each.fd: f"{each.laddr} {each.raddr}" for each in process.net_connections("all")}
    kinds: Counter[str] = Counter()
    for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except FileNotFoundError:  # Closed meanwhile.
            continue
        place = ends.get(int(descriptor.name), target) if target.startswith("socket:") else target
        place = place.strip().replace(f"{folder}/", "") or "socket without an address"
        kinds[re.sub(r"ditcast-\w+|[0-9]+", "#", place)] += 1
    return kinds


async def settled(server: Server, before: Usage | None = None) -> Usage:
    """Wait until a service that nobody uses holds no more than before, or does not get there."""
    limit = time.monotonic() + SETTLE_SECONDS
    await asyncio.sleep(RETENTION_SECONDS + 1)
    while True:
        # gRPC keeps a connection for as long as any object of a closed channel lives on our side.
        gc.collect()
        now = usage(server)
        if before is None or not grown(before, now) or time.monotonic() > limit:
            return now
        await asyncio.sleep(1)


def grown(before: Usage, after: Usage) -> list[str]:
    """Name what there is more of than before."""
    problems = [
        f"{getattr(after, name)} {name}, before {getattr(before, name)}"
        for name in ("descriptors", "threads", "children", "folders")
        if getattr(after, name) > getattr(before, name)
    ]
    if after.descriptors > before.descriptors:
        more = Counter(after.kinds) - Counter(before.kinds)
        problems[0] += f": {dict(more)}"
    if after.resident_bytes > before.resident_bytes * (1 + MOST_GROWTH):
        megabytes = [round(each.resident_bytes / 2**20) for each in (after, before)]
        problems.append(f"{megabytes[0]} MiB resident, before {megabytes[1]}")
    return problems
