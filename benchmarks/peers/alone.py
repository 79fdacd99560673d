"""One request at a time: what each side takes, beside the pipeline called directly."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.peers import throughput
from benchmarks.peers.pictures import digest, distance
from benchmarks.peers.sides import CACHE, TRUE_CFG_SCALE, Asking, Side, request
from benchmarks.plan import NEGATIVE_PROMPT, SIDE, Plan, Tick
from benchmarks.processes import DirectPipeline, DirectRequest
from benchmarks.ratio import NotComparable


@dataclass(frozen=True, slots=True)
class Alone:
    """One request, answered by all sides one after the other."""

    direct_seconds: float
    seconds: dict[str, float]
    """Of each side."""
    differences: dict[str, float]
    """PSNR of each side's picture to ditcast's, infinite where they are the same."""


async def measure_alone(
    pipeline: DirectPipeline, sides: Sequence[Side], plan: Plan, tick: Tick
) -> list[Alone]:
    """Ask all for the same picture, each time beginning with another of them."""
    rounds = []
    async with contextlib.AsyncExitStack() as stack:
        clients = {side.name: await stack.enter_async_context(side.connect()) for side in sides}
        for number in range(plan.peer_alone + 1):
            found = await _round(pipeline, sides, clients, plan, number)
            # The first opens connections, and switches the cache on.
            if number:
                rounds.append(found)
                tick()
    return rounds


async def _round(
    pipeline: DirectPipeline,
    sides: Sequence[Side],
    clients: dict[str, Asking],
    plan: Plan,
    number: int,
) -> Alone:
    prompt, seed = throughput.prompt(number), number
    names = ["", *clients]
    seconds: dict[str, float] = {}
    pictures: dict[str, bytes] = {}
    direct = None
    for name in names[number % len(names) :] + names[: number % len(names)]:
        if name:
            began = time.perf_counter()
            pictures[name] = await clients[name].ask(request(prompt, seed, plan.peer_steps))
            seconds[name] = time.perf_counter() - began
        else:
            direct = await pipeline.call(direct_request((prompt,), (seed,), plan))
    assert direct is not None  # noqa: S101 - it is one of the names
    for side in sides:
        if side.same_bits and (digest(pictures[side.name]),) != direct.sha256:
            raise NotComparable(f"{side.title} made another picture than the direct call")
    own = pictures[sides[0].name]
    differences = {name: distance(picture, own) for name, picture in pictures.items()}
    return Alone(direct.seconds, seconds, differences)


def direct_request(prompts: tuple[str, ...], seeds: tuple[int, ...], plan: Plan) -> DirectRequest:
    """Make a request of the pipeline itself: the same pictures in one call."""
    return DirectRequest(
        prompts=prompts,
        seeds=seeds,
        negative_prompt=NEGATIVE_PROMPT,
        true_cfg_scale=TRUE_CFG_SCALE,
        side=SIDE,
        steps=plan.peer_steps,
        cache=str(CACHE),
    )
