"""Writes docs/PIPELINES.md: what was shown of each kind of pipeline."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

import msgspec
from tests.kinds.kinds import KINDS, STEPS, Kind
from tests.kinds.showing import Row

ROOT = Path(__file__).parents[2]
PATH = ROOT / "docs" / "PIPELINES.md"
KEPT = ROOT / "out" / "kinds"
"""What was shown of each kind when it was last asked."""

HEADER = """# Kinds of pipelines

Each kind is a small pipeline of its architecture with random weights, made on the spot, served and
generated over gRPC on CPUs, {steps} steps with cache-dit's cache in force
(diffusers {diffusers}, cache-dit {cache_dit}, transformers {transformers}, torch {torch}):

- *1 rank*: the output has the same bytes as a direct call of the pipeline in process, with the same
  settings and as many threads, again after a cancel too.
- *2 ranks*: largest difference of the final latents to one rank, under Ulysses; or why two ranks
  are refused when the server starts.
- *Cached*: steps of {steps} that the cache saved; *passes*: runs of the transformer in each step.
- *Left at*: the last step that was told of a generation that was cancelled when the client read of
  its third; where a step takes a millisecond, some go by while the cancel is on its way.

Nothing in the server names a kind: what is special about one comes from its signature, its
configuration, cache-dit's registry, and calls of the pipeline that are watched while it loads.
Those marked with * were added to see whether a kind works that nobody had in mind.

Written by `make test-kinds`; `tests/kinds` has the pipelines and what is asked of each.
"""

COLUMNS = (
    "Pipeline",
    "1 rank",
    "2 ranks",
    "Cached",
    "Passes",
    "Lists of blocks",
    "Left at",
    "Sides, frames",
    "Pictures in",
    "Out",
)


def keep(row: Row) -> None:
    """Keep what was shown, and write the file anew once that is so of every kind."""
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / row.kind).write_bytes(msgspec.json.encode(row))
    write()


def write() -> None:
    """Write the file anew if something was shown of every kind."""
    if all((KEPT / kind.name).is_file() for kind in KINDS):
        kept = (KEPT / kind.name for kind in KINDS)
        PATH.write_text(
            render([msgspec.json.decode(file.read_bytes(), type=Row) for file in kept]), "utf-8"
        )


def render(rows: Sequence[Row]) -> str:
    """Give the whole file, its rows in the order of the kinds."""
    versions = {
        name.replace("-", "_"): importlib.metadata.version(name).partition("+")[0]
        for name in ("diffusers", "cache-dit", "transformers", "torch")
    }
    by_name = {row.kind: row for row in rows}
    lines = [_line(COLUMNS), _line(["---"] * len(COLUMNS))]
    lines += [_line(_cells(kind, by_name[kind.name])) for kind in KINDS]
    notes = [f"- {title(kind)}: {kind.note}" for kind in KINDS if kind.note]
    head = HEADER.format(steps=STEPS, **versions)
    return "\n".join([head, *lines, "", *notes, ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def title(kind: Kind) -> str:
    """Name a kind so that no two rows have the same name."""
    same = [other for other in KINDS if other.pipeline == kind.pipeline]
    name = f"`{kind.pipeline}`" + (f" ({kind.name})" if len(same) > 1 else "")
    return name if kind.listed else f"{name} *"


def _cells(kind: Kind, row: Row) -> list[str]:
    step = f", {row.num_frames_step}k + 1" if kind.num_frames else ""
    return [
        title(kind),
        "same bytes",
        kind.two_ranks or (f"{row.two_ranks:.0e}" if row.two_ranks else "0"),
        f"{row.cached} of {STEPS}" if kind.cached else "not cached: a warning says so",
        str(kind.passes),
        ", ".join(row.blocks) or "none",
        "cannot be" if row.left_at is None else str(row.left_at),
        f"{row.unit}{step}",
        ", ".join(row.inputs) or "none",
        "video" if kind.num_frames else "picture",
    ]
