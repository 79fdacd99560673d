"""The page for everybody: by keyboard, by ear, in light and dark, in narrow windows, unmoved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.page.site import WEB
from tests.page.visitor import Visitor

if TYPE_CHECKING:
    from tests.page.conftest import Visit

pytestmark = pytest.mark.mesh

BRIGHT, DARK = 600, 200
"""Sums of red, green and blue."""
FOCUSED = (
    "(document.activeElement.name || document.activeElement.id || document.activeElement.tagName)"
)


def unfold(visitor: Visitor) -> None:
    """Open everything that can be."""
    visitor.page.eval_on_selector_all("details", "all => all.forEach(each => (each.open = true))")


def tab(visitor: Visitor) -> str:
    """Go on to the next element, which must be seen to have the focus; give what it is."""
    visitor.page.keyboard.press("Tab")
    name: str = visitor.page.evaluate(FOCUSED)
    if name != "BODY":
        style = "getComputedStyle(document.activeElement)"
        assert (
            visitor.page.evaluate(f"{style}.outlineStyle + ' ' + {style}.outlineWidth")
            == "solid 3px"
        ), name
    return name


def test_by_keyboard_alone(visitor: Visitor) -> None:
    """Tab reaches the prompt, the button and, while it runs, the cancel; no focus is lost."""
    assert tab(visitor) == "prompt"
    visitor.page.keyboard.press("Control+A")
    visitor.page.keyboard.type("a small blue square")
    while tab(visitor) != "num_inference_steps":
        pass
    visitor.page.keyboard.press("Control+A")
    visitor.page.keyboard.type("990")
    while tab(visitor) != "generate":
        pass
    visitor.page.keyboard.press("Enter")
    visitor.wait_steps(1)
    assert visitor.page.evaluate(FOCUSED) == "generate"
    assert tab(visitor) == "cancel"
    visitor.page.keyboard.press("Enter")
    visitor.wait_status("The generation was cancelled")
    assert visitor.page.evaluate(FOCUSED) == "cancel"
    visitor.fill(num_inference_steps=4)
    visitor.field("prompt").focus()
    visitor.page.keyboard.press("Control+Enter")
    visitor.wait_status("Done in")


def test_the_focus_is_trapped_nowhere(visitor: Visitor) -> None:
    """With everything unfolded, Tab goes through all of it in the order of the page, and around."""
    visitor.generate(width=64, height=64, num_inference_steps=4)
    visitor.wait_status("Done in")
    unfold(visitor)
    kinds = "a[href], button, input, select, textarea, summary, [tabindex]"
    find = f"Array.from(document.querySelectorAll({kinds!r}))"
    visible = f"window.all = {find}.filter(each => each.checkVisibility())"
    count = visitor.page.evaluate(f"({visible}).length")
    visitor.field("prompt").focus()
    met = []
    for _ in range(count - 1):
        tab(visitor)
        met.append(visitor.page.evaluate("all.indexOf(document.activeElement)"))
    assert met == list(range(1, count))
    if tab(visitor) == "BODY":
        tab(visitor)
    assert visitor.page.evaluate(FOCUSED) == "prompt"


def test_progress_is_told_to_who_listens(visitor: Visitor) -> None:
    """The beginning, each quarter and the end, and not every step; the bar has its numbers."""
    visitor.page.evaluate(
        """() => {
          const said = (window.said = []);
          const region = document.querySelector("#announcement");
          const observer = new MutationObserver(() => said.push(region.textContent));
          observer.observe(region, { childList: true });
        }"""
    )
    visitor.generate(seed=42)
    visitor.wait_status("Done in")
    said: list[str] = visitor.page.evaluate("said")
    assert [each for each in said if each.startswith("Step")] == [
        f"Step {step} of 20" for step in (5, 10, 15, 20)
    ]
    assert said[-1].startswith("Done in")
    assert visitor.page.get_attribute("#announcement", "role") == "status"
    strip = visitor.page.locator("#strip")
    assert strip.get_attribute("aria-valuenow") == strip.get_attribute("aria-valuemax") == "20"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(visit: Visit, scheme: str) -> None:
    """Contrast, names, roles and all else that it knows, with everything unfolded."""
    visitor = visit(color_scheme=scheme)
    visitor.generate(seed=42, width=17)
    visitor.wait_status("Not accepted")
    expect_accessible(visitor)
    visitor.generate(width=64)
    visitor.wait_status("Done in")
    visitor.page.click("#configuration summary")
    visitor.page.click("#change button[value=try]")
    visitor.page.wait_for_selector("#outcomes:has-text('Nothing changes')")
    unfold(visitor)
    expect_accessible(visitor)


def expect_accessible(visitor: Visitor) -> None:
    """Run axe-core on the page as it stands."""
    visitor.page.evaluate((WEB / "node_modules" / "axe-core" / "axe.min.js").read_text("utf-8"))
    found = visitor.page.evaluate("axe.run()")
    assert [
        (each["id"], [node["html"] for node in each["nodes"]]) for each in found["violations"]
    ] == []


def test_light_and_dark_differ(visit: Visit) -> None:
    """By what the system prefers; the text is dark on light, and light on dark."""
    light, dark = (brightness(visit(color_scheme=scheme)) for scheme in ("light", "dark"))
    assert light["ground"] > BRIGHT
    assert light["text"] < DARK
    assert dark["ground"] < DARK
    assert dark["text"] > BRIGHT


def brightness(visitor: Visitor) -> dict[str, int]:
    """Give the sums of red, green and blue."""
    colours = {
        "ground": visitor.style("body", "backgroundColor"),
        "text": visitor.style("body", "color"),
    }
    return {
        name: sum(int(part) for part in colour.strip("rgb()").split(","))
        for name, colour in colours.items()
    }


def test_nothing_moves_for_who_does_not_want_it(visit: Visit) -> None:
    """For others the next step breathes and the bars grow."""
    for preference, moves in (("reduce", False), ("no-preference", True)):
        visitor = visit(reduced_motion=preference)
        visitor.page.click("#request summary")
        visitor.field("cache").select_option("disabled")
        visitor.generate(num_inference_steps=100)
        visitor.wait_steps(3)
        moving = visitor.page.evaluate("document.getAnimations().length > 0")
        assert (visitor.style("#bars span", "transitionDuration") != "0s") == moves
        visitor.page.click("#cancel")
        visitor.wait_status("The generation was cancelled")
        assert moving == moves


def test_it_fits_its_window(visitor: Visitor) -> None:
    """Nothing is wider than the window: only code scrolls, within itself."""
    visitor.generate(seed=42)
    visitor.wait_status("Done in")
    unfold(visitor)
    for width in (320, 390, 800, 1280):
        visitor.page.set_viewport_size({"width": width, "height": 800})
        assert visitor.page.evaluate("document.documentElement.scrollWidth") <= width
