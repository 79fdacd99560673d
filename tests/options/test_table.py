"""docs/OPTIONS.md says of every option what is known of it, and is up to date."""

from __future__ import annotations

from tests.options.table import PASSED_ON, PATH, render, rows


def test_every_option_is_proven_refused_or_needs_an_accelerator() -> None:
    """An option without a proof or a refusal makes `rows` raise; asynchronous Ulysses is proven."""
    known = {row.path: row for row in rows()}
    passed_on = [row for row in known.values() if row.state == "passed on"]
    assert all(row.path.startswith(PASSED_ON) for row in passed_on)
    assert known["parallelism.ulysses_async"].state == "CPU"
    assert len(known) > 150


def test_the_table_in_the_docs_is_up_to_date() -> None:
    """Write it anew with `.venv/bin/python -m tests.options.table`."""
    assert PATH.read_text("utf-8") == render()
