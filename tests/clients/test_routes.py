"""Behind a proxy before several servers, calls about a generation say which of them has it."""

from __future__ import annotations

from tests.clients.conftest import Scripted
from tests.clients.proxy import proxy_to
from tests.clients.scripted import UntilCancelled, queued, started, success

from ditcast_client import Client
from ditcast_client.routes import Routes


async def test_the_route_comes_back_with_every_call_about_its_generation(server: Scripted) -> None:
    """When the connection broke, and when it is watched or cancelled by its id."""
    server.service.script, server.service.route = success(b"picture"), "server-1"
    async with proxy_to(server.address) as proxy, Client(proxy.address) as client:
        async for event in client.generate(prompt="a", request_id="mine"):
            if event.sequence == 2:
                proxy.cut()
        server.service.route = "server-2"  # It was asked again, and another one has it now.
        async for _ in client.watch("mine"):
            pass
        await client.cancel("mine")
    assert server.service.routes[0] is None
    assert set(server.service.routes[1:-1]) == {"server-1"}
    assert server.service.routes[-1] == "server-2"


async def test_another_generation_goes_where_the_proxy_likes(
    client: Client, server: Scripted
) -> None:
    """A route belongs to one generation; and where there is no proxy there is none."""
    server.service.script = [queued(), started(), UntilCancelled()]
    for route in ("server-1", None, "server-2"):
        server.service.route = route
        async with client.generate(prompt="a") as generation:
            await anext(aiter(generation))
    came = server.service.routes
    assert came == [None, "server-1", None, None, None, "server-2"]


def test_routes_do_not_pile_up() -> None:
    """A client that lives for years forgets the oldest."""
    routes = Routes()
    for number in range(5000):
        routes.learn(str(number), (("ditcast-route", "server-1"),))
    assert len(routes._known) == 4096
    assert "4999" in routes._known
    assert "0" not in routes._known
