"""Writes docs/OPTIONS.md: every option of the settings, and what is known of it.

Run as `python -m tests.options.table` to write the file anew; a test holds it up to date.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
from tests.options.proofs import HANDED, PROVEN, REFUSED, ROOT

from ditcast_runtime.settings import (
    CACHE_DIT_ATTENTION,
    DIFFUSERS_ATTENTION,
    DMD,
    MASK_POLICIES,
    DBCache,
    DBPrune,
    FoCa,
    ParallelismSettings,
    QuantizeSettings,
    SvdqKwargs,
    TaylorSeer,
)
from ditcast_runtime.settings.quantize import QUANT_TYPES as TORCHAO_TYPES

PATH = ROOT / "docs" / "OPTIONS.md"
MODULES = (
    "attention",
    "calibrators",
    "parallelism",
    "passed_on",
    "prune",
    "refusals",
    "steps",
    "two_transformers",
)

ATTENTION = tuple(sorted({*CACHE_DIT_ATTENTION, *DIFFUSERS_ATTENTION}))
QUANT_TYPES = (*TORCHAO_TYPES, "svdq_int4_r32_dq", "svdq_nvfp4_r32_dq")
MIXES = ("ulysses x tensor", "ring x tensor", "ulysses x ring", "ulysses x ring x tensor")
EXTRA_MODULES = ("text_encoder", "vae", "controlnet")

PASSED_ON = ("parallelism.ulysses_float8", "attention_backend: ", "quantize.")
"""What needs an accelerator, by how it begins: the only options that may lack a proof."""

HEADER = """# Options of acceleration

Every option of cache-dit {version} that the contract has, under its path in `Configuration`, and
what is known of it:

- *CPU*: a test observes its effect on a CPU. Nothing has been run on a GPU yet.
- *passed on*: it needs an accelerator: it is checked, translated and handed to cache-dit, as a test
  sees; of attention, one sees that it is refused where it does not run.
- *refused*: it can never be had, and the reason is said.

Where a machine or a pipeline cannot do something, the server says so when it starts
(`ditcast serve` ends with 2) or is configured (`INVALID_ARGUMENT` or `FAILED_PRECONDITION`), never
at the first generation; the last column has tests of that. Tests are in `tests/options`.

One setting holds for all transformers and lists of blocks of a pipeline: cache-dit's
`params_modifiers`, which let them differ, are not offered.

Written by `.venv/bin/python -m tests.options.table`; a test fails if it is out of date.
"""

CAN_BE_SET = {
    "cache": "by a file, by `Configure` between two generations, and by each request (`cache`)",
    "parallelism": "by a file and by `Configure` with `allow_reload`: the ranks are loaded anew",
    "attention_backend": "by a file and by `Configure` with `allow_reload`",
    "quantize": "by a file and by `Configure` with `allow_reload`",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One option."""

    path: str
    default: str
    proven: tuple[str, ...]
    handed_over: tuple[str, ...]
    refused: tuple[str, ...]

    @property
    def state(self) -> str:
        """Say what is known of it."""
        if self.proven:
            return "CPU"
        return "passed on" if self.path.startswith(PASSED_ON) else "refused"

    def line(self) -> str:
        """Give it as a row of Markdown."""
        cells = (
            f"`{self.path}`",
            self.default,
            self.state,
            *map(_tests, (self.proven or self.handed_over, self.refused)),
        )
        return f"| {' | '.join(cells)} |"


def rows() -> list[Row]:
    """List every option, with the tests that name it.

    Raises:
        LookupError: an option has no proof and needs one, or a test names none that there is.
    """
    for name in MODULES:
        importlib.import_module(f"tests.options.test_{name}")
    options = dict(_options())
    if strangers := sorted({*PROVEN, *HANDED, *REFUSED} - {*options}):
        raise LookupError(f"tests name options that are none: {strangers}")
    found = [
        Row(path, default, *(tuple(sorted(notes[path])) for notes in (PROVEN, HANDED, REFUSED)))
        for path, default in options.items()
    ]
    unknown = [row.path for row in found if not (row.proven or row.handed_over or row.refused)]
    if unknown:
        raise LookupError(f"no test says what these do: {unknown}")
    return found


def render() -> str:
    """Write the whole file."""
    parts = [HEADER.format(version=importlib.metadata.version("cache-dit"))]
    known = rows()
    for section, where in CAN_BE_SET.items():
        parts += [
            f"\n## `{section}`\n\nSet {where}.\n",
            "| option | default | state | proof | refusals |",
            "|---|---|---|---|---|",
            *(row.line() for row in known if row.path.startswith(section)),
        ]
    return "\n".join(parts) + "\n"


def _options() -> Iterator[tuple[str, str]]:
    """Give every option's path and default, from the settings' own fields."""
    yield "cache.disabled", ""
    for method, name in ((DBCache, "db_cache"), (DBPrune, "db_prune")):
        if method is DBPrune:
            yield "cache.db_prune", ""
        yield from _struct(method, f"cache.{name}")
        yield f"cache.{name}.steps_computation_mask: policies", ", ".join(MASK_POLICIES)
    for calibrator, name in ((TaylorSeer, "taylor_seer"), (DMD, "dmd"), (FoCa, "foca")):
        yield f"cache.{name}", ""
        yield from _struct(calibrator, f"cache.{name}")
    yield from _dataclass(ParallelismSettings, "parallelism")
    yield "parallelism.ulysses_anything: heads padded", ""
    for module in EXTRA_MODULES:
        yield f"parallelism.extra_parallel_modules: {module}", ""
    for mix in MIXES:
        yield f"parallelism: {mix}", ""
    for backend in ATTENTION:
        yield f"attention_backend: {backend}", ""
    yield from _dataclass(QuantizeSettings, "quantize")
    for kind in QUANT_TYPES:
        yield f"quantize.quant_type: {kind}", ""
    yield from _dataclass(SvdqKwargs, "quantize.svdq_kwargs")


def _struct(cls: type[msgspec.Struct], prefix: str) -> Iterator[tuple[str, str]]:
    for field in msgspec.structs.fields(cls):
        yield f"{prefix}.{field.name}", _shown(field.default)


def _dataclass(cls: type, prefix: str) -> Iterator[tuple[str, str]]:
    for field in dataclasses.fields(cls):
        yield f"{prefix}.{field.name}", _shown(field.default)


def _shown(default: object) -> str:
    if default is None or default == ():
        return "unset"
    if isinstance(default, tuple):
        return ", ".join(map(str, default))
    return str(default).lower() if isinstance(default, bool) else str(default)


def _tests(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{Path(name).name}`" for name in names)


if __name__ == "__main__":
    PATH.write_text(render(), "utf-8")
