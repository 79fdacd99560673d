"""The campaigns would see it if a promise were broken."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest
from tests.campaigns import document
from tests.campaigns.flatness import line
from tests.campaigns.load_report import Report, delays
from tests.campaigns.outcome import (
    COMPLETED,
    ENDS,
    Followed,
    bytes_of,
    cache_of,
    differs,
    unclear,
)
from tests.campaigns.remains import Usage, grown

from ditcast.v1.generation_pb2 import (
    CacheReport,
    GenerationEvent,
    Heartbeat,
    Receipt,
    Restarted,
    Started,
    StepCompleted,
    Timings,
)
from ditcast_client.outputs import Output
from ditcast_client.result import Result


def followed(*sequences: int) -> Followed:
    """Take steps with these sequences; 0 is the client's own `restarted`."""
    made = Followed()
    for number in sequences:
        kind = {"step_completed": StepCompleted()} if number else {"restarted": Restarted()}
        made.take(GenerationEvent(sequence=number, **kind))
        made.take(GenerationEvent(sequence=number, heartbeat=Heartbeat()))
    return made


def test_gaps_are_seen() -> None:
    """A missing event, and one that comes twice; a new service counts from 1 again."""
    assert followed(1, 2, 3).problem == followed(1, 2, 0, 1, 2).problem == ""
    assert followed(1, 2, 0, 1, 2).resent == 1
    for wrong in ((2,), (1, 3), (1, 1), (1, 2, 0, 3)):
        assert followed(*wrong).problem


def test_statuses_that_say_nothing_are_seen() -> None:
    """A broken transport counts only where the service was lost; INTERNAL only where asked for."""
    assert unclear(COMPLETED, ENDS, service_lost=False) == ""
    assert unclear("UNAVAILABLE RANKS_LOST", ENDS, service_lost=False) == ""
    assert unclear("UNAVAILABLE", ENDS, service_lost=True) == ""
    assert unclear("UNAVAILABLE", ENDS, service_lost=False)
    assert unclear("INTERNAL PIPELINE_FAILED", ENDS, service_lost=True)


def result(data: bytes, steps: int = 8) -> Result:
    """Give the result of one output, made with a cache."""
    receipt = Receipt()
    receipt.parameters.cache.db_cache.max_warmup_steps = steps
    return Result(
        request_id="a",
        started=Started(),
        outputs=(Output(output_index=0, media_type="image/png", data=data),),
        receipt=receipt,
        timings=Timings(),
        cache=CacheReport(),
        memory=(),
    )


def test_other_bytes_are_seen() -> None:
    """One byte is enough, and so is a cache, or a recipe, that was never asked for."""
    undisturbed = result(b"abc")
    known = {("plain", cache_of(undisturbed)): bytes_of(undisturbed)}
    assert differs(known, "plain", result(b"abc")) == ""
    assert differs(known, "plain", result(b"abd"))
    assert differs(known, "plain", result(b"abc", steps=2))
    assert differs(known, "two", result(b"abc"))


def test_what_is_left_is_seen() -> None:
    """One more of anything, and a tenth more memory."""
    before = Usage(descriptors=14, threads=12, children=2, resident_bytes=2**27, folders=1)
    assert grown(before, before) == []
    for name in ("descriptors", "threads", "children", "folders"):
        more = dataclasses.replace(before, **{name: getattr(before, name) + 1})
        assert len(grown(before, more)) == 1
    assert grown(before, dataclasses.replace(before, resident_bytes=2**27 * 12 // 10))


def test_growth_is_told_from_noise() -> None:
    """A leak of 1 % hidden in noise as large is found; noise that wanders around a mean is none."""
    dice = random.Random(1)  # noqa: S311 (a test repeats itself)
    places = [float(place) for place in range(2000)]
    noise = [500 + dice.gauss(0, 5) for _ in places]
    assert line(places, noise).verdict == "flat"
    leaking = line(
        places, [each + 5 * place / 2000 for place, each in zip(places, noise, strict=True)]
    )
    assert leaking.low > 0
    assert leaking.verdict == "grows"
    assert leaking.growth == pytest.approx(0.01, abs=0.003)
    steep = line(places, [100.0 + place for place in places])
    assert steep.slope == pytest.approx(1000)
    assert steep.verdict == "grows"
    assert line(places, [12.0] * 2000).verdict == "flat"
    assert line(places, [2000.0 - place for place in places]).verdict == "falls"


def test_delays_are_summed_up() -> None:
    """In milliseconds, by percentiles."""
    found = delays([number / 1000 for number in range(101)])
    assert (found.count, found.median, found.maximum) == (101, 50.0, 100.0)
    assert (found.ninety, found.ninety_nine) == pytest.approx((90.0, 99.0))


def test_the_document_is_what_is_kept() -> None:
    """`python -m tests.campaigns.document` writes it anew."""
    text = document.PATH.read_text("utf-8")
    assert document.render(text) == text
    assert all(f"<!-- {name} -->" in text for name in document.PARTS)


def test_what_is_kept_is_written_into_the_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--store` keeps JSON, which is read back, and replaces the part that it belongs to."""
    monkeypatch.setattr(document, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(document, "PATH", tmp_path / "RELIABILITY.md")
    parts = "\n".join(f"<!-- {name} -->old<!-- end of {name} -->" for name in document.PARTS)
    document.PATH.write_text(f"# Title\n{parts}\nThe end.", "utf-8")
    found = delays([0.001, 0.002])
    report = Report(date="2026", generations=20, streams=200, own=found, shared=found, problems=[])
    document.store("load", report)
    assert document.kept("load", Report) == [report]
    text = document.PATH.read_text("utf-8")
    assert "| 20 generations, a stream each | 2 | 1.5 |" in text
    assert text.count(document.NOTHING) == len(document.PARTS) - 1
    assert text.startswith("# Title")
    assert text.endswith("The end.")
    assert "old" not in text


def test_a_document_without_a_part_is_an_error() -> None:
    """Figures must not vanish in silence."""
    with pytest.raises(ValueError, match="chaos 0 times"):
        document.render("nothing")
