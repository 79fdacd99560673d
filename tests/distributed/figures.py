"""Scrapes a server's figures as Prometheus does, and reads them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families
from tests.distributed.servers import WAIT_SECONDS, Server

Figures = dict[str, float]
"""Each sample by its name and labels, spelled `name{label=value,...}`."""


async def text(server: Server) -> str:
    """Fetch the exposition."""
    address = (await server.logged(event="metrics"))["address"]

    def fetch() -> str:
        with urlopen(f"http://{address}/metrics", timeout=WAIT_SECONDS) as answer:
            body: bytes = answer.read()
        return body.decode()

    return await asyncio.to_thread(fetch)


async def scrape(server: Server) -> Figures:
    """Fetch and read all samples."""
    found: Figures = defaultdict(float)
    for family in text_string_to_metric_families(await text(server)):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            name = f"{sample.name}{{{labels}}}" if labels else sample.name
            found[name] = sample.value
    return found


async def grown(server: Server, before: Figures, name: str, least: float) -> Figures:
    """Wait until a sample has grown by so much: what counts an end comes just after the end."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            now = await scrape(server)
            if now[name] - before[name] >= least:
                return now
            await asyncio.sleep(0.05)
