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
    preview_encodings: int = 40
    """Previews that are encoded, of each size."""
    first_events: int = 40
    """Generations on an idle server for the time to the first event."""
    cancels: int = 24
    """Cancels, spread over the length of a step."""
    configures: int = 20
    """Live changes of the cache."""
    gaps: int = 30
    """Pairs of queued generations, for the gap between them."""
    losses: int = 3
    """Ranks that are killed, for the time until the service serves again."""


QUICK = Plan(
    world_sizes=(1,),
    steps=4,
    step_pairs=2,
    fixed=3,
    ratio_pairs=2,
    preview_pairs=2,
    preview_encodings=2,
    first_events=3,
    cancels=2,
    configures=2,
    gaps=2,
    losses=1,
)
"""Enough to see that everything can be measured, and not to trust any figure."""
