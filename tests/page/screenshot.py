"""Takes the picture of the page that the README shows.

Run as `python -m tests.page.screenshot docs/images/page.png`, with the extra `mesh`, npm
and Chromium.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.page.site import site
from tests.page.visitor import Visitor, chromium

WINDOW = {"width": 1120, "height": 820}


def main() -> None:
    """Generate on the page, and write what it looks like then."""
    [target] = sys.argv[1:]
    with (
        tempfile.TemporaryDirectory() as folder,
        chromium() as browser,
        site(Path(folder)) as served,
    ):
        visitor = Visitor(browser, served.url, viewport=WINDOW, reduced_motion="reduce")
        visitor.generate(seed=42, num_inference_steps=50)
        visitor.wait_status("Done in")
        visitor.page.screenshot(path=target, full_page=True)
        visitor.close()


if __name__ == "__main__":
    main()
