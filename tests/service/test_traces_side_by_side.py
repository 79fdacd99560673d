"""What several generations do on ranks at a time stands in the trace of each."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.runtime.making import generation

from ditcast_runtime.events import RankMemory
from ditcast_runtime.messages import Denoising, Ended, Outcome
from ditcast_service import tracing


def test_two_that_run_at_a_time_have_their_own_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken one after the other, and reported on in turns."""
    spans = InMemorySpanExporter()
    monkeypatch.setattr(tracing, "OTLPSpanExporter", lambda: spans)
    traces = tracing.Tracing()
    running = [generation(request_id) for request_id in ("one", "other")]
    for each in running:
        traces.accepted(each)
        traces.taken(each)
    for each in running:
        denoising = Denoising(epoch=1, number=1, sigmas=(), prepare_seconds=0.1)
        traces.reported(each, denoising)
    for each in running:
        ended = Ended(
            epoch=1,
            number=1,
            rank=0,
            outcome=Outcome.DONE,
            steps=4,
            memory=RankMemory(rank=0, peak_bytes=1, free_bytes=1),
            denoise_seconds=0.1,
            decode_seconds=0.0,
        )
        traces.reported(each, ended)
        traces.ended(each, None)
    traces.close()
    found = spans.get_finished_spans()
    whole = [span for span in found if span.name == "generation"]
    assert len(whole) == 2
    for span in whole:
        assert span.context is not None
        own = [
            each.name
            for each in found
            if each.parent and each.parent.span_id == span.context.span_id
        ]
        assert own == ["queued", "prepare", "denoise"]
