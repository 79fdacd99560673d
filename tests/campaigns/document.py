"""Keeps what campaigns showed, and writes it into `benchmarks/RELIABILITY.md`.

`python -m tests.campaigns.document` writes all parts anew from what is kept. A part stands between
two comments that name it; the text around them is written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from tests.campaigns import chaos_report, load_report, steadiness_report

ROOT: Final = Path(__file__).parents[2]
PATH: Final = ROOT / "benchmarks" / "RELIABILITY.md"
KEPT: Final = ROOT / "benchmarks" / "results" / "reliability"
NOTHING: Final = "Not run yet."

_Report = TypeVar("_Report")


def store(name: str, report: object) -> None:
    """Keep a report, in place of an earlier one of its name, and write the document anew."""
    KEPT.mkdir(parents=True, exist_ok=True)
    encoded = msgspec.json.format(msgspec.json.encode(report), indent=2)
    (KEPT / f"{name}.json").write_bytes(encoded + b"\n")
    PATH.write_text(render(PATH.read_text("utf-8")), "utf-8")


def kept(prefix: str, kind: type[_Report]) -> list[_Report]:
    """Give the reports that are kept, by their names."""
    files = sorted(KEPT.glob(f"{prefix}*.json"))
    return [msgspec.json.decode(file.read_bytes(), type=kind) for file in files]


def render(text: str) -> str:
    """Give the document with its parts written anew."""
    for name, part in PARTS.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        between = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        new = f"{begin}\n\n{part().strip()}\n\n{end}"
        text, found = between.subn(lambda _, new=new: new, text)  # type: ignore[misc]
        if found != 1:
            raise ValueError(f"{PATH.name} has the part {name} {found} times")
    return text


def _part(
    prefix: str, kind: type[_Report], markdown: Callable[[Sequence[_Report]], str]
) -> Callable[[], str]:
    """Give what writes a part out of the reports that are kept under a prefix."""

    def write() -> str:
        reports = kept(prefix, kind)
        return markdown(reports) if reports else NOTHING

    return write


PARTS: Final[Mapping[str, Callable[[], str]]] = {
    "chaos": _part("chaos", chaos_report.Report, chaos_report.markdown),
    "steadiness": _part("steadiness", steadiness_report.Report, steadiness_report.markdown),
    "load": _part("load", load_report.Report, load_report.markdown),
}
"""What writes each part."""

if __name__ == "__main__":
    PATH.write_text(render(PATH.read_text("utf-8")), "utf-8")
