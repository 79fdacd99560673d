"""What the recipes make undisturbed: all that is made later has to be the same bytes."""

from __future__ import annotations

from tests.campaigns.outcome import Bytes, bytes_of, cache_of
from tests.campaigns.recipes import CACHES, RECIPES

from ditcast_client import Client
from ditcast_client.fields import GenerateFields


async def make(client: Client) -> dict[tuple[str, bytes], Bytes]:
    """Generate every recipe under every cache that can come to be in force for it."""
    made: dict[tuple[str, bytes], Bytes] = {}
    for name, recipe in RECIPES.items():
        for cache in (recipe["cache"],) if "cache" in recipe else CACHES.values():
            asked: GenerateFields = {**recipe, "cache": cache}
            result = await client.generate(**asked).result()
            made[name, cache_of(result)] = bytes_of(result)
    return made
