"""A generation through the service against the same pipeline called directly."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

from PIL import Image

from benchmarks.figures import Figure, Subject
from benchmarks.plan import (
    NEGATIVE_PROMPT,
    PROMPT,
    REFERENCE_CACHE,
    SIDE,
    TRUE_CFG_SCALE,
    Plan,
    Tick,
)
from benchmarks.processes import DirectAnswer, DirectPipeline, DirectRequest
from benchmarks.requests import Served, generation, serve
from ditcast_client import Client, Result


class NotComparable(Exception):
    """Both sides did not do the same work."""


@dataclass(frozen=True, slots=True)
class _Pair:
    served: Served
    direct: DirectAnswer


async def measure(client: Client, pipeline: DirectPipeline, plan: Plan, tick: Tick) -> list[Figure]:
    """Compare with no cache and with the reference one; NotComparable if pictures differ."""
    figures = []
    for cached in (False, True):
        pairs = await _pairs(client, pipeline, plan, tick, cached=cached)
        figures += _figures(pairs, cached=cached)
    return figures


async def _pairs(
    client: Client, pipeline: DirectPipeline, plan: Plan, tick: Tick, *, cached: bool
) -> list[_Pair]:
    pairs = []
    for number in range(plan.ratio_pairs + 1):
        request = DirectRequest(
            prompts=(PROMPT,),
            seeds=(number,),
            negative_prompt=NEGATIVE_PROMPT,
            true_cfg_scale=TRUE_CFG_SCALE,
            side=SIDE,
            steps=plan.steps,
            cache=str(REFERENCE_CACHE) if cached else "",
        )
        made = generation(client, steps=plan.steps, seed=number, cached=cached)
        if number % 2:
            pair = _Pair(direct=await pipeline.call(request), served=await serve(made))
        else:
            pair = _Pair(await serve(made), await pipeline.call(request))
        _compare(pair)
        # The first pair switches the cache on both sides.
        if number:
            pairs.append(pair)
            tick()
    return pairs


def _compare(pair: _Pair) -> None:
    """Make sure that both made the same picture with the same threads."""
    receipt = pair.served.result.receipt
    if receipt.threads_per_rank != pair.direct.threads:
        raise NotComparable(f"{receipt.threads_per_rank} threads against {pair.direct.threads}")
    if (_pixels_digest(pair.served.result),) != pair.direct.sha256:
        raise NotComparable("the pictures differ")


def _pixels_digest(result: Result) -> str:
    with Image.open(io.BytesIO(result.outputs[0].data)) as picture:
        return hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest()


def _figures(pairs: list[_Pair], *, cached: bool) -> list[Figure]:
    suffix = "reference_cache" if cached else "no_cache"
    words = "reference cache" if cached else "no cache"
    subject = Subject("ratio", 1, pairs[0].direct.threads)
    return [
        subject.figure(
            f"ratio_{suffix}",
            f"Served to direct, {words}",
            "x",
            [pair.served.seconds / pair.direct.seconds for pair in pairs],
            note="paired, alternated, same pixels; served ends with a checked PNG, direct without",
        ),
        subject.figure(
            f"ratio_added_{suffix}",
            f"Served less direct, {words}",
            "ms",
            [(pair.served.seconds - pair.direct.seconds) * 1000 for pair in pairs],
            note="the same pairs",
        ),
        subject.figure(
            f"ratio_direct_{suffix}",
            f"Direct, {words}",
            "ms",
            [pair.direct.seconds * 1000 for pair in pairs],
            note="the pipeline's own time",
        ),
    ]
