"""What a campaign showed, as a table of calls by RPC and status, and as JSON for the record."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import machine
from tests.campaigns.hostile.campaign import Counts

NAME = "hostile"


def markdown(found: Mapping[str, Counts], requests: int, seed: int) -> str:
    """Give the report of a campaign in which no promise was broken."""
    total = sum(counts.requests for counts in found.values())
    slowest = max(counts.slowest_seconds for counts in found.values())
    shares = ", ".join(f"{counts.requests} to the {name}" for name, counts in found.items())
    lines = textwrap.wrap(
        f"{total} requests ({shares}), one in five with bytes that no client would write: no "
        "INTERNAL, no UNKNOWN, none without an end, no rank lost, every refusal with fields that "
        f"the contract has. The slowest burst of four took {slowest:.1f} s.",
        width=100,
    )
    rows = [
        f"| {method} | {code} | {reason} | {count} |"
        for (method, code, reason), count in sorted(_ends(found).items())
    ]
    return "\n".join(
        (
            f"`python -m tests.campaigns.hostile --requests {requests} --seed {seed}`",
            "",
            *lines,
            "",
            "| RPC | status | reason | calls |",
            "| --- | --- | --- | ---: |",
            *rows,
        )
    )


def store(text: str, found: Mapping[str, Counts], seed: int, folder: Path) -> None:
    """Write the report beside the others."""
    entries = [
        {"rpc": method, "status": code, "reason": reason, "calls": count}
        for (method, code, reason), count in sorted(_ends(found).items())
    ]
    content = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "machine": machine.describe(),
        "versions": machine.versions(),
        "requests": {name: counts.requests for name, counts in found.items()},
        "slowest_burst_seconds": max(counts.slowest_seconds for counts in found.values()),
        "ends": entries,
    }
    (folder / f"{NAME}.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    (folder / f"{NAME}.md").write_text(text + "\n", "utf-8")


def _ends(found: Mapping[str, Counts]) -> Counter[tuple[str, str, str]]:
    return sum((counts.by_end for counts in found.values()), Counter())
