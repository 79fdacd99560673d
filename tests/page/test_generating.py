"""Generations on the page: from the button to picture and receipt, to a cancel, over a reload."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from tests.page.visitor import Visitor

from ditcast.v1.generation_pb2 import DISCONNECT_POLICY_CONTINUE, GENERATION_STATE_CANCELLED
from ditcast_client import BlockingClient
from ditcast_client.fields import GenerateFields

if TYPE_CHECKING:
    from tests.page.conftest import Visit

pytestmark = pytest.mark.mesh

FOR_EVER = 990
LONG = 150
"""Steps enough to do something meanwhile."""


def name_of(visitor: Visitor) -> str:
    """Read the id of the generation from the address."""
    return str(visitor.page.url).rpartition("#")[2]


def test_a_generation_ends_with_its_picture_and_receipt(
    visitor: Visitor, client: BlockingClient
) -> None:
    """The picture has the bytes that every client gets, and the strip is what the cache did."""
    visitor.generate(seed=42, width=64, height=48)
    visitor.wait_status("Done in")
    result = client.watch(name_of(visitor)).result()
    assert visitor.picture_digest() == result.receipt.outputs[0].sha256
    size = visitor.page.eval_on_selector(
        "#outputs img", "image => [image.naturalWidth, image.naturalHeight]"
    )
    assert size == [64, 48]
    report = result.cache
    cached = ["cached" if step in report.cached_steps else "computed" for step in range(1, 21)]
    assert visitor.steps() == cached
    counts = Counter(cached)
    assert 0 < counts["computed"] < counts["cached"]
    assert visitor.text("#legend .computed").split() == ["computed", str(counts["computed"])]
    assert visitor.text("#legend .cached").split() == ["cached", str(counts["cached"])]
    visitor.page.click("#receipt summary")
    receipt = json.loads(visitor.text("#receipt pre"))
    assert (receipt["parameters"]["seed"], receipt["parameters"]["width"]) == ("42", 64)
    assert visitor.page.get_attribute("#receipt a", "href") is not None


def test_cached_steps_are_told_apart_by_more_than_colour(visitor: Visitor) -> None:
    """They are hatched; and the bars stand against the threshold by which it was decided."""
    visitor.generate(seed=42)
    visitor.wait_status("Done in")
    looks = {
        kind: (
            visitor.style(f"#strip .{kind}", "backgroundColor"),
            visitor.style(f"#strip .{kind}", "backgroundImage"),
        )
        for kind in ("computed", "cached")
    }
    assert looks["computed"][0] != looks["cached"][0]
    assert (looks["computed"][1] == "none") != (looks["cached"][1] == "none")
    assert visitor.text("#threshold") == "threshold 0.4"
    top = "element => element.getBoundingClientRect().top"
    threshold = visitor.page.eval_on_selector("#threshold", top)
    below = visitor.page.eval_on_selector_all(
        "#bars .cached",
        "(bars, top) => bars.every(bar => bar.getBoundingClientRect().top >= top)",
        threshold,
    )
    assert below


def test_a_cancel_leaves_at_the_next_step(visitor: Visitor, client: BlockingClient) -> None:
    """A preview was there by then; the page says after how many steps, and is ready again."""
    visitor.generate(num_inference_steps=FOR_EVER)
    visitor.page.wait_for_selector("#outputs img.preview")
    assert visitor.page.get_attribute("#generate", "aria-disabled") == "true"
    visitor.page.click("#cancel")
    assert "cancelled after" in visitor.wait_status("The generation was cancelled")
    assert visitor.page.get_attribute("#generate", "aria-disabled") == "false"
    assert visitor.text("#error") == ""
    states = {each.request_id: each.state for each in client.list_generations()}
    assert states[name_of(visitor)] == GENERATION_STATE_CANCELLED


def test_a_reload_finds_the_generation_again(visitor: Visitor, client: BlockingClient) -> None:
    """All its steps are there, those that were missed as well; it is the same one, to its end."""
    visitor.generate(prompt="a green circle", num_inference_steps=LONG, seed=7)
    visitor.wait_steps(3)
    name = name_of(visitor)
    visitor.page.reload()
    visitor.wait_status("Done in")
    assert name_of(visitor) == name
    assert visitor.field("prompt").input_value() == "a green circle"
    assert visitor.field("num_inference_steps").input_value() == str(LONG)
    assert len(visitor.steps()) == LONG
    assert "" not in visitor.steps()
    receipt = client.watch(name).result().receipt
    assert visitor.picture_digest() == receipt.outputs[0].sha256


def test_the_address_shows_a_generation_to_others(visit: Visit) -> None:
    """As long as it is kept; what is not there is said, and the browser's history goes back."""
    first, second = visit(), visit()
    first.generate(seed=1)
    first.wait_status("Done in")
    second.open(f"#{name_of(first)}")
    second.wait_status("Done in")
    assert second.picture_digest() == first.picture_digest()
    second.page.evaluate("location.hash = 'nobody'")
    second.wait_status("There is no generation")
    second.page.go_back()
    second.wait_status("Done in")


def occupy(client: BlockingClient, prompt: str) -> str:
    """Begin a generation that goes on by itself, and give its id."""
    asked = GenerateFields(
        prompt=prompt,
        num_inference_steps=FOR_EVER,
        on_disconnect=DISCONNECT_POLICY_CONTINUE,
    )
    with client.generate(**asked) as generation:
        next(iter(generation))
    return generation.request_id


def test_the_place_in_the_queue_is_shown(visitor: Visitor, client: BlockingClient) -> None:
    """It moves up while others end, and begins once they have."""
    running, waiting = occupy(client, "a"), occupy(client, "b")
    visitor.generate(seed=3)
    visitor.wait_status("In the queue, 1 before it")
    client.cancel(waiting)
    visitor.wait_status("Next in the queue")
    client.cancel(running)
    visitor.wait_status("Done in")


def test_several_pictures_of_one_generation(visitor: Visitor) -> None:
    """Each can be saved under a name of its own."""
    visitor.page.click("#request summary")
    visitor.generate(num_images=2, width=64, height=64)
    visitor.wait_status("Done in")
    saves = visitor.page.eval_on_selector_all("#outputs a", "all => all.map(each => each.download)")
    assert saves == [f"{name_of(visitor)}-{index}.png" for index in range(2)]


def test_caching_off_for_one_generation(visitor: Visitor) -> None:
    """Every step is computed, and there is nothing to plot."""
    visitor.page.click("#request summary")
    visitor.field("cache").select_option("disabled")
    visitor.generate(width=64, height=64, num_inference_steps=6)
    visitor.wait_status("Done in")
    assert visitor.steps() == ["computed"] * 6
    assert not visitor.page.is_visible("#plot")


def test_what_is_wrong_is_said_at_its_field(visitor: Visitor) -> None:
    """All at once, the first in focus, where it was folded away too; and gone once right."""
    visitor.page.click("#request summary")
    visitor.fill(num_images=99)
    visitor.page.click("#request summary")
    visitor.generate(width=17, height=64)
    visitor.wait_status("Not accepted")
    assert "multiple of 16" in visitor.text("label:has([name=width])")
    assert visitor.page.evaluate("document.activeElement.name") == "width"
    assert "99" in visitor.text("label:has([name=num_images])")
    described = visitor.field("width").get_attribute("aria-describedby")
    assert "multiple of 16" in visitor.text(f"[id='{described}']")
    visitor.fill(num_images="")
    visitor.generate(width=64)
    visitor.wait_status("Done in")
    assert visitor.page.locator("[aria-invalid]").count() == 0


@pytest.mark.parametrize(("name", "value"), [("seed", "abc"), ("num_inference_steps", "1.5")])
def test_what_no_request_can_hold_is_never_sent(visitor: Visitor, name: str, value: str) -> None:
    """It is not dropped in silence either."""
    visitor.generate(**{name: value})
    assert "whole number" in visitor.text(f"label:has([name={name}])")
    assert visitor.text("#status") == "Nothing yet."
