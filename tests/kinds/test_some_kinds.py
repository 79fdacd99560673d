"""The kinds that differ most: a picture in, joined lists, two transformers, no callback, a UNet."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.kinds.conftest import Models
from tests.kinds.kinds import BY_NAME, KINDS, Kind
from tests.kinds.showing import show
from tests.kinds.table import PATH, title

SOME = ("qwen_image_edit", "flux", "wan_2_2", "pixart_sigma", "stable_diffusion_xl")
SHARED = "flux"
"""The one that two ranks share as well."""


@pytest.mark.parametrize("kind", [BY_NAME[name] for name in SOME], ids=lambda kind: kind.name)
async def test_the_kind_is_served_as_a_direct_call_makes_it(
    kind: Kind, models: Models, tmp_path: Path
) -> None:
    """Same bytes on one rank, within 1e-3 on two, a third of the steps cached, left at once."""
    await show(kind, models, tmp_path, two_ranks=kind.name == SHARED)


def test_the_table_in_the_docs_has_every_kind() -> None:
    """Write it anew with `make test-kinds`, which shows what it says."""
    written = PATH.read_text("utf-8")
    missing = [kind.name for kind in KINDS if f"| {title(kind)} |" not in written]
    assert missing == []
