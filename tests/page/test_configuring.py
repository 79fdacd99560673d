"""The configuration on the page: told in words, tried, changed, never over others' changes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.page.visitor import Visitor

from ditcast.v1.acceleration_pb2 import CacheConfig, Configuration, DBCache
from ditcast_client import BlockingClient

pytestmark = pytest.mark.mesh


@pytest.fixture(autouse=True)
def as_it_was(client: BlockingClient) -> Iterator[None]:
    """Take every change back."""
    before = client.configuration()
    yield
    client.configure(before, update_mask=["*"])


@pytest.fixture
def editor(visitor: Visitor) -> Visitor:
    """Open the editor on the page."""
    visitor.page.click("#configuration summary")
    return visitor


def replace(visitor: Visitor, old: str, new: str) -> None:
    """Edit the JSON."""
    text = visitor.page.input_value("#change textarea")
    assert old in text
    visitor.page.fill("#change textarea", text.replace(old, new))


def press(visitor: Visitor, button: str, expected: str) -> str:
    """Press a button of the editor, and give what it says once the expected stands there."""
    visitor.page.click(f"#change button:text-is('{button}')")
    visitor.page.wait_for_selector(f"#outcomes:has-text('{expected}')")
    return visitor.text("#outcomes")


def test_a_dry_run_tells_each_outcome_and_changes_nothing(
    editor: Visitor, client: BlockingClient
) -> None:
    """What would be, and what could not be, by the names of the contract."""
    revision = client.configuration().revision
    replace(editor, '"residual_diff_threshold": 0.4', '"residual_diff_threshold": 0.2')
    replace(editor, '"fn_compute_blocks": 1', '"fn_compute_blocks": 99')
    said = press(editor, "What would become of it?", "applied live")
    assert "cache.db_cache.residual_diff_threshold" in said
    assert "rejected" in said
    assert client.configuration().revision == revision
    assert editor.text("#revision") == f"revision {revision}"


def test_a_change_is_in_force_for_the_next_generation(
    editor: Visitor, client: BlockingClient
) -> None:
    """The page tells it in words, and plots against the new threshold."""
    replace(editor, '"residual_diff_threshold": 0.4', '"residual_diff_threshold": 0.25')
    press(editor, "Apply", "applied live")
    now = client.configuration()
    assert now.cache.db_cache.residual_diff_threshold == 0.25
    assert editor.text("#revision") == f"revision {now.revision}"
    assert "threshold 0.25" in editor.text("#settings")
    editor.generate(seed=42)
    editor.wait_status("Done in")
    assert editor.text("#threshold") == "threshold 0.25"


def test_what_is_wrong_is_said_and_can_be_begun_anew(editor: Visitor) -> None:
    """Text that is no configuration, and values that cannot be; the current one comes back."""
    before = editor.page.input_value("#change textarea")
    replace(editor, '"cache"', '"cash"')
    press(editor, "Apply", "cash")
    editor.page.click("#change button[type=reset]")
    editor.page.wait_for_function(
        "text => document.querySelector('#change textarea').value === text", arg=before
    )
    replace(editor, '"residual_diff_threshold": 0.4', '"residual_diff_threshold": -1')
    press(editor, "Apply", "cache.db_cache.residual_diff_threshold")


def test_nobodys_change_is_overwritten(editor: Visitor, client: BlockingClient) -> None:
    """A change that builds on an older revision is refused; a generation brings the news."""
    change = Configuration(cache=CacheConfig(db_cache=DBCache(residual_diff_threshold=0.3)))
    now = client.configure(change).configuration
    replace(editor, '"residual_diff_threshold": 0.4', '"residual_diff_threshold": 0.2')
    press(editor, "Apply", "revision")
    assert client.configuration().revision == now.revision
    editor.generate(width=64, height=64, num_inference_steps=4)
    editor.wait_status("Done in")
    editor.wait(f"document.querySelector('#revision').textContent === 'revision {now.revision}'")
    assert "threshold 0.3" in editor.text("#settings")
