"""What is generated, and how often: the same for every part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

REFERENCE_CACHE = Path(__file__).with_name("reference_cache.yaml")
"""The cache settings of the parts that cache."""

PROMPT = "a large red circle left of a small blue square on a yellow background"
NEGATIVE_PROMPT = " "
TRUE_CFG_SCALE = 3.0
SIDE = 128
"""Width and height in pixels."""
STEP_SIDE = 64
"""The same for the cost of a step, which does not depend on it: a shorter step is less noise."""

Tick = Callable[[], None]
"""Called after each measurement, for the progress bar."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How many measurements of each kind."""

    world_sizes: tuple[int, ...] = (1, 2)
    """For the parts that are measured on several."""
    steps: int = 20
    """Denoising steps of a generation."""
    step_pairs: int = 25
    """Pairs of a direct call and an execution, for the cost of a step."""
    fixed: int = 60
    """Generations for the fixed cost."""
    ratio_pairs: int = 20
    """Pairs of a direct call and a served generation, with each cache setting."""
    preview_pairs: int = 20
    """Pairs of a generation with previews and one without."""
    caching_pairs: int = 20
    """Pairs of a long generation with the reference cache and one without."""
    preview_encodings: int = 40
    """Previews that are encoded, of each size."""
    batch_pairs: int = 3
    """Pairs of one call with several prompts and several calls with one, of each kind."""
    batch_steps: tuple[int, ...] = (20, 50)
    """Denoising steps of those."""
    batch_sizes: tuple[int, ...] = (2, 4, 8)
    """Pictures in one such call."""
    first_events: int = 40
    """Generations on an idle server for the time to the first event."""
    cancels: int = 24
    """Cancels, spread over the length of a step."""
    configures: int = 20
    """Live changes of the cache."""
    overlap_chains: int = 12
    """Chains of queued generations of each kind, for the gap between them."""
    overlap_length: int = 6
    """Generations in a chain."""
    losses: int = 3
    """Ranks that are killed, for the time until the service serves again."""
    starts: int = 9
    """Pairs of a start of the service and one of the pipeline alone."""
    growth_rounds: int = 12
    """Times that every place of every curve is measured."""
    growth_reach: int = 0
    """Places of each curve that are left out at its far end."""
    peer_steps: int = 10
    """Steps of the generations that servers are compared by: fewer, as there are many."""
    peer_long: int = 60
    """Steps of one that is left."""
    peer_alone: int = 40
    """Requests that all servers get, one at a time."""
    peer_blocks: int = 3
    """Times that each server is measured at each number of clients."""
    peer_clients: tuple[int, ...] = (1, 4, 8, 32)
    peer_compared: int = 8
    """Clients at which there is a target."""
    peer_more_blocks: int = 20
    """Times that each server is measured at those alone, on top."""
    peer_least: int = 4
    """Pictures that few clients ask for together."""
    peer_leaves: int = 5
    """Clients that leave each server."""


QUICK = Plan(
    world_sizes=(1,),
    steps=4,
    step_pairs=2,
    fixed=3,
    ratio_pairs=2,
    preview_pairs=2,
    caching_pairs=1,
    preview_encodings=2,
    batch_pairs=1,
    batch_steps=(2,),
    batch_sizes=(2,),
    first_events=3,
    cancels=2,
    configures=2,
    overlap_chains=1,
    overlap_length=2,
    losses=1,
    starts=1,
    growth_rounds=1,
    growth_reach=2,
    peer_steps=2,
    peer_long=20,
    peer_alone=1,
    peer_blocks=1,
    peer_more_blocks=0,
    peer_clients=(8,),
    peer_least=2,
    peer_leaves=1,
)
"""Enough to see that everything can be measured, and not to trust any figure."""
