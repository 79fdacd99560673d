"""One page behind one Envoy before one server, for all tests of the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from tests.page.site import Missing, Site, site
from tests.page.visitor import Visitor, chromium, installed

from ditcast_client import BlockingClient

if TYPE_CHECKING:  # Where it is not installed, these tests are skipped.
    from playwright.sync_api import Browser


class Visit(Protocol):
    """Opens the page in a window of its own."""

    def __call__(self, **window: Any) -> Visitor:  # noqa: ANN401 (as Playwright takes it)
        """Open it, with what Playwright knows of windows."""


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Serve the page, if there is a browser for it."""
    try:
        installed()
        with site(tmp_path_factory.mktemp("page")) as served:
            yield served
    except Missing as reason:
        pytest.skip(str(reason))


# Of the module, not the session: while it is there, its loop runs, and asynchronous tests cannot.
@pytest.fixture(scope="module")
def browser(shared: Site) -> Iterator[Browser]:
    """Run the browser."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser: Browser, shared: Site) -> Iterator[Visit]:
    """Let a test open windows; none may have had anything to complain of."""
    visitors: list[Visitor] = []

    def opened(**window: Any) -> Visitor:  # noqa: ANN401 (as above)
        visitors.append(Visitor(browser, shared.url, **window))
        return visitors[-1]

    yield opened
    for visitor in visitors:
        visitor.close()


@pytest.fixture
def visitor(visit: Visit) -> Visitor:
    """Open the page in a window."""
    return visit()


@pytest.fixture
def client(shared: Site) -> Iterator[BlockingClient]:
    """Connect to the server without the page; whatever still runs is ended afterwards."""
    with BlockingClient(shared.server) as client:
        yield client
        for summary in client.list_generations():
            client.cancel(summary.request_id)
