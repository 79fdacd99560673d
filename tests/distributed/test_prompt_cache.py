"""A prompt that comes again is not encoded again, and no byte changes: on one rank and on two."""

from __future__ import annotations

from tests.distributed.generations import small
from tests.distributed.servers import Server

from ditcast_client import Client


async def _made(client: Client, server: Server, prompt: str) -> tuple[bytes, int, int]:
    """Give the pixels, and how many texts were encoded and reused."""
    generation = client.generate(**small(prompt=prompt, negative_prompt="blue"))
    result = await generation.result()
    entry = await server.ended(result.request_id)
    [output] = result.outputs
    return output.data, entry["prompts_encoded"], entry["prompts_reused"]


async def test_a_prompt_that_comes_again_is_not_encoded_again(
    one: Client, two: Client, server_one: Server, server_two: Server
) -> None:
    """The second time both texts are there already; another prompt shares the negative one."""
    for client, server in ((one, server_one), (two, server_two)):
        first, encoded, reused = await _made(client, server, "a prompt that no other test has")
        assert (encoded, reused) in {(2, 0), (1, 1)}, "another test may have had the negative one"
        again = await _made(client, server, "a prompt that no other test has")
        assert again == (first, 0, 2)
        other = await _made(client, server, "another that no other test has")
        assert other[1:] == (1, 1)
        assert other[0] != first
