"""Every kind of pipeline, on one rank and on two: `make test-kinds`."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.distributed.generations import OFF
from tests.distributed.servers import serve
from tests.kinds import table
from tests.kinds.conftest import Models
from tests.kinds.kinds import BY_NAME, KINDS, Kind
from tests.kinds.showing import asked, show

from ditcast_client import InvalidArgument
from ditcast_client.fields import GenerateFields

pytestmark = [pytest.mark.kinds, pytest.mark.timeout(900)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
async def test_the_kind_is_served_as_a_direct_call_makes_it(
    kind: Kind, models: Models, tmp_path: Path
) -> None:
    """Same bytes on one rank, within 1e-3 on two, a third of the steps cached, left at once."""
    table.keep(await show(kind, models, tmp_path, two_ranks=True))


@pytest.mark.parametrize("kind", [BY_NAME["hidream"]], ids=["hidream"])
async def test_a_size_that_the_pipeline_would_change_is_refused(
    kind: Kind, models: Models, tmp_path: Path
) -> None:
    """HiDream makes a picture of its own size of any: that is not what was asked for."""
    server = serve(tmp_path, "--model", str(models.folder(kind)))
    try:
        async with server.client() as client:
            small: GenerateFields = {"width": 64, "height": 64, "num_inference_steps": 2}
            wrong: GenerateFields = {**asked(kind), **small}
            with pytest.raises(InvalidArgument) as refused:
                await client.generate(**wrong).result()
            [violation] = refused.value.field_violations
            assert violation.field == "width"
            assert "128x128" in violation.description
        server.stop()
    finally:
        server.clear_away()


@pytest.mark.parametrize("kind", [BY_NAME["lumina2"]], ids=["lumina2"])
async def test_passes_that_change_within_a_generation_are_not_cached(
    kind: Kind, models: Models, tmp_path: Path
) -> None:
    """Lumina 2 can leave out the second pass from some step on: cache-dit would mix the two."""
    server = serve(tmp_path, "--model", str(models.folder(kind)))
    try:
        async with server.client() as client:
            changing: GenerateFields = {
                **asked(kind),
                "pipeline_kwargs": {**kind.kwargs, "cfg_trunc_ratio": 0.4},
            }
            with pytest.raises(InvalidArgument) as refused:
                await client.generate(**changing).result()
            [violation] = refused.value.field_violations
            assert violation.field == "cache"
            uncached: GenerateFields = {**changing, "cache": OFF}
            await client.generate(**uncached).result()
        server.stop()
    finally:
        server.clear_away()
