"""The figures after a generation: every stage, pass and rank, with warm-up excluded."""

from __future__ import annotations

from datetime import timedelta

from ditcast.v1.generation_pb2 import (
    CacheReport,
    RankMemory,
    Receipt,
    Started,
    Timings,
    TransformerCacheReport,
)
from ditcast_client.figures import rows
from ditcast_client.result import Result


def result(transformers: list[TransformerCacheReport], **seconds: float) -> Result:
    """Make a result that took so long."""
    timings = Timings()
    for name, value in seconds.items():
        getattr(timings, name).FromTimedelta(timedelta(seconds=value))
    return Result(
        request_id="id",
        started=Started(),
        outputs=(),
        receipt=Receipt(),
        timings=timings,
        cache=CacheReport(transformers=transformers),
        memory=[RankMemory(rank=rank, peak_bytes=1 << 20, free_bytes=1 << 30) for rank in (0, 1)],
    )


def test_each_pass_of_each_transformer_is_counted_apart() -> None:
    """With several transformers each is named, and so is the pass without the prompt."""
    first = TransformerCacheReport(
        name="transformer", computed_steps=[1, 2], cached_steps=[3], cfg_computed_steps=[1, 2, 3]
    )
    second = TransformerCacheReport(name="transformer_2", computed_steps=[4], pruned_steps=[5])
    assert list(rows(result([first, second])))[:3] == [
        ("steps", "transformer: 3: 2 computed, 1 cached"),
        ("", "transformer: without the prompt: 3: 3 computed, 0 cached"),
        ("", "transformer_2: 2: 1 computed, 0 cached, 1 pruned"),
    ]
    assert next(rows(result([first])))[1] == "3: 2 computed, 1 cached"


def test_the_time_is_told_with_and_without_the_starts_of_ranks() -> None:
    """Loading and warming up are taken off where a generation waited for them."""
    waited = dict(rows(result([], total=10, load=5, warm_up=2, queued=0.1)))
    assert waited["time"] == "10 s; 3 s with loading 5 s and warm-up 2 s excluded"
    assert dict(rows(result([], total=3)))["time"] == "3 s, with warm-up excluded"


def test_stages_have_what_they_are_made_of() -> None:
    """The prompt within the preparation, the median step and the previews within denoising."""
    made = result([], prepare=1, encode_prompt=0.5, denoise=4, step_median=0.25, previews=0.01)
    stages = next(text for label, text in rows(made) if "prepare" in text)
    assert "prepare 1 s (prompt 500 ms)" in stages
    assert "denoise 4 s (a step 250 ms, previews 10 ms)" in stages


def test_every_rank_tells_its_memory() -> None:
    """Peak and what is left, a line each."""
    lines = [text for label, text in rows(result([])) if label == "memory"]
    assert lines == [f"rank {rank}: 1.0 MiB at most, 1.0 GiB free" for rank in (0, 1)]
