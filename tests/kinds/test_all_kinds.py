"""Every kind of pipeline, on one rank and on two: `make test-kinds`."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.kinds import table
from tests.kinds.conftest import Models
from tests.kinds.kinds import KINDS, Kind
from tests.kinds.showing import show

pytestmark = [pytest.mark.kinds, pytest.mark.timeout(900)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
async def test_the_kind_is_served_as_a_direct_call_makes_it(
    kind: Kind, models: Models, tmp_path: Path
) -> None:
    """Same bytes on one rank, within 1e-3 on two, a third of the steps cached, left at once."""
    table.keep(await show(kind, models, tmp_path, two_ranks=True))
