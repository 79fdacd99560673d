"""What previews cost: the same generations with them and without."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from benchmarks.figures import Figure, Subject
from benchmarks.plan import SIDE, Plan, Tick
from benchmarks.processes import threads_of
from benchmarks.ratio import NotComparable
from benchmarks.requests import Served, generation, serve
from ditcast_client import Client
from ditcast_service.preview_encoding import encode_preview

EVERY = 1
"""Steps between two previews: the most that can be asked for."""

_SKETCH = SIDE // 2
"""Side of what the rank sends, for a picture of this size."""
_LARGE = 1024


@dataclass(frozen=True, slots=True)
class _Pair:
    plain: Served
    shown: Served

    @property
    def previews_seconds(self) -> float:
        """Give what all previews of the generation took on rank 0."""
        return self.shown.result.timings.previews.ToTimedelta().total_seconds()


async def measure(client: Client, plan: Plan, tick: Tick) -> list[Figure]:
    """Run pairs in alternating order; NotComparable if a preview changed the picture."""
    pairs = []
    for number in range(plan.preview_pairs + 1):
        made = [
            generation(client, steps=plan.steps, seed=number, preview_every=n) for n in (0, EVERY)
        ]
        if number % 2:
            shown, plain = await serve(made[1]), await serve(made[0])
        else:
            plain, shown = await serve(made[0]), await serve(made[1])
        if plain.result.outputs != shown.result.outputs:
            raise NotComparable("a generation with previews made another picture")
        # The first pair switches the cache off, and warms the map up.
        if number:
            pairs.append(_Pair(plain, shown))
            tick()
    return _figures(pairs, plan)


def _figures(pairs: list[_Pair], plan: Plan) -> list[Figure]:
    subject = Subject("previews", 1, threads_of(1))
    count = plan.steps // EVERY
    return [
        subject.figure(
            "previews_ratio",
            "With a preview at every step to without",
            "x",
            [pair.shown.seconds / pair.plain.seconds for pair in pairs],
            note="at the client; paired, alternated, same bytes",
        ),
        subject.figure(
            "previews_rank",
            "A preview on rank 0",
            "ms",
            [pair.previews_seconds / count * 1000 for pair in pairs],
            note="`previews` of `Timings`, by preview: latents to colours, and the report",
        ),
        *(
            subject.figure(
                f"previews_encode_{side}",
                f"A preview of {side} pixels in the service",
                "ms",
                _encodings(plan.preview_encodings, side),
                note="scaled up and encoded, in an encoder's thread",
            )
            for side in (SIDE, _LARGE)
        ),
    ]


def _encodings(count: int, side: int) -> list[float]:
    # Noise: nothing takes longer to encode.
    pixels = random.Random(0).randbytes(_SKETCH * _SKETCH * 3)  # noqa: S311 (a picture)
    found = []
    for _ in range(count + 1):
        began = time.perf_counter()
        encode_preview(pixels, (_SKETCH, _SKETCH), (side, side))
        found.append((time.perf_counter() - began) * 1000)
    return found[1:]
