"""Configure on real ranks: on all of them or none, between generations, live or by new ranks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc.error_details_pb2 import PreconditionFailure
from tests.distributed.generations import MASK, MASKED, OFF, ending, fields, picture, stub_of
from tests.distributed.servers import Server, serve

from ditcast.v1.acceleration_pb2 import (
    CacheConfig,
    Configuration,
    DBCache,
    ParallelismConfig,
    QuantizeConfig,
)
from ditcast.v1.diffusion_service_pb2 import (
    ConfigureRequest,
    ConfigureResponse,
    GetConfigurationRequest,
)
from ditcast_client import Client

if TYPE_CHECKING:  # It is there for type checkers alone.
    from ditcast.v1.diffusion_service_pb2_grpc import DiffusionServiceAsyncStub

REFUSED_BY_RANK_ONE = 0.987654
"""As in `faults`."""


@pytest.fixture(scope="module")
def faulty(folder: Path) -> Iterator[Server]:
    """Serve on two ranks, of which one can be made to refuse settings."""
    limits = ("--vote-timeout", "2", "--alive-timeout", "6", "--crash-loop-losses", "50")
    server = serve(folder, "--world-size", "2", *limits, faults=True)
    yield server
    server.stop()


async def configure(
    server: Server, configuration: Configuration, *mask: str, **options: object
) -> ConfigureResponse:
    """Send one Configure."""
    request = ConfigureRequest(
        configuration=configuration,
        update_mask=FieldMask(paths=mask),
        **options,  # type: ignore[arg-type]
    )
    async with stub_of(server.address) as stub:
        return await stub.Configure(request, timeout=60)


async def current(stub: DiffusionServiceAsyncStub) -> Configuration:
    """Give what is in force."""
    return (await stub.GetConfiguration(GetConfigurationRequest())).configuration


async def default_decisions(client: Client) -> tuple[int, ...]:
    """Run a generation that brings no cache of its own; give the steps that it cached."""
    result = await client.generate(**fields(num_inference_steps=len(MASK))).result()
    return tuple(result.cache.cached_steps)


async def test_a_live_change_holds_on_all_ranks_and_without_new_ones(faulty: Server) -> None:
    """The ranks stay, and the bytes are those of a request that brought these settings itself."""
    async with faulty.client() as client:
        asked = await picture(client, cache=MASKED)
        before = [rank.pid for rank in faulty.ranks()]
        response = await configure(faulty, Configuration(cache=MASKED))
        cached = tuple(step for step, computed in enumerate(MASK, start=1) if not computed)
        assert await default_decisions(client) == cached
        assert await picture(client) == asked
        result = await client.generate(**fields()).result()
        assert result.receipt.configuration_revision == response.configuration.revision
        await configure(faulty, Configuration(cache=OFF))
        assert await default_decisions(client) == ()
    assert [rank.pid for rank in faulty.ranks()] == before


async def test_what_one_rank_refuses_is_in_force_on_none(faulty: Server) -> None:
    """Two-phase: the veto of rank 1 leaves the old settings, verified by the same bytes."""
    refused = CacheConfig(
        db_cache=DBCache(fn_compute_blocks=1, residual_diff_threshold=REFUSED_BY_RANK_ONE)
    )
    async with faulty.client() as client, stub_of(faulty.address) as stub:
        before, revision = await picture(client), (await current(stub)).revision
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await configure(faulty, Configuration(cache=refused))
        assert ending(error.value).code is grpc.StatusCode.FAILED_PRECONDITION
        assert (await current(stub)).revision == revision
        assert await picture(client) == before


async def test_a_change_while_five_are_queued_waits_for_the_one_that_runs(faulty: Server) -> None:
    """The running one keeps its revision; the queued ones take the new one when they start."""
    async with faulty.client() as client:
        running = client.generate(**fields(num_inference_steps=20))
        seen = aiter(running)
        async for event in seen:
            if event.WhichOneof("kind") == "step_completed":
                break
        queued = [client.generate(**fields(seed=seed)) for seed in range(5)]
        waiting = [asyncio.ensure_future(each.result()) for each in queued]
        await asyncio.sleep(0)
        response = await configure(faulty, Configuration(cache=MASKED))
        new = response.configuration.revision
        async for _ in seen:
            pass
        first = (await running.result()).receipt.configuration_revision
        assert first == new - 1
        others = [
            result.receipt.configuration_revision for result in await asyncio.gather(*waiting)
        ]
        assert set(others) == {new}
        await configure(faulty, Configuration(cache=OFF))


async def test_of_two_writers_both_are_in_force_one_after_the_other(faulty: Server) -> None:
    """One at a time; with expected_revision the second is ABORTED."""
    async with stub_of(faulty.address) as stub:
        revision = (await current(stub)).revision
        answers = await asyncio.gather(
            configure(faulty, Configuration(cache=MASKED), expected_revision=revision),
            configure(faulty, Configuration(cache=MASKED), expected_revision=revision),
            return_exceptions=True,
        )
        [error] = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
        assert error.code() is grpc.StatusCode.ABORTED
        assert (await current(stub)).revision == revision + 1
        await configure(faulty, Configuration(cache=OFF))


async def test_a_change_that_its_writer_no_longer_waits_for_is_not_applied(faulty: Server) -> None:
    """The deadline passes while a generation runs: DEADLINE_EXCEEDED, and nothing changed."""
    async with faulty.client() as client, stub_of(faulty.address) as stub:
        revision = (await current(stub)).revision
        running = asyncio.ensure_future(client.generate(**fields(num_inference_steps=40)).result())
        await asyncio.sleep(0.5)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.Configure(
                ConfigureRequest(configuration=Configuration(cache=MASKED)), timeout=0.3
            )
        assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await running
        assert await default_decisions(client) == ()
        assert (await current(stub)).revision == revision


async def test_new_ranks_are_loaded_only_if_allowed_and_the_old_ones_come_back_if_it_fails(
    faulty: Server,
) -> None:
    """Tensor parallelism needs new ranks: refused, then done; what cannot load leaves the old."""
    tensor = Configuration(
        parallelism=ParallelismConfig(ulysses_degree=1, tensor_parallel_degree=2)
    )
    async with faulty.client() as client, stub_of(faulty.address) as stub:
        before = await picture(client)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await configure(faulty, tensor)
        assert ending(error.value).code is grpc.StatusCode.FAILED_PRECONDITION
        changed = await configure(faulty, tensor, allow_reload=True)
        assert changed.configuration.parallelism.tensor_parallel_degree == 2
        assert len(await picture(client)) == len(before)
        # Nothing but the ranks can know that this prompt's lengths cannot be shared plainly.
        plain = Configuration(
            parallelism=ParallelismConfig(
                ulysses_degree=2, tensor_parallel_degree=1, ulysses_anything=False
            )
        )
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await configure(faulty, plain, allow_reload=True)
        assert ending(error.value).code is grpc.StatusCode.FAILED_PRECONDITION
        assert (await current(stub)).parallelism.tensor_parallel_degree == 2
        assert len(await picture(client)) == len(before)


async def test_what_the_pipeline_lacks_is_refused_without_new_ranks(faulty: Server) -> None:
    """No ControlNet, no float8, no quantisation on a CPU: FAILED_PRECONDITION, all fields named."""
    asked = Configuration(
        parallelism=ParallelismConfig(
            ulysses_degree=2,
            tensor_parallel_degree=1,
            ulysses_float8=True,
            extra_parallel_modules=["controlnet"],
        ),
        quantize=QuantizeConfig(quant_type="int8_weight_only"),
        attention_backend="sage",
    )
    before = [rank.pid for rank in faulty.ranks()]
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await configure(faulty, asked, allow_reload=True)
    refusal = ending(error.value)
    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    violations = refusal.detail(PreconditionFailure).violations
    assert {violation.subject for violation in violations} == {
        "attention_backend",
        "parallelism.extra_parallel_modules",
        "parallelism.ulysses_float8",
        "quantize.quant_type",
    }
    assert [rank.pid for rank in faulty.ranks()] == before


async def test_a_change_during_a_restart_applies_to_the_next_epoch(faulty: Server) -> None:
    """A rank is killed while nothing runs; the change waits for the new group and is in force."""
    async with faulty.client() as client:
        await picture(client)
        faulty.ranks()[1].kill()
        response = await configure(faulty, Configuration(cache=MASKED))
        result = await client.generate(**fields()).result()
        assert result.receipt.configuration_revision == response.configuration.revision
        assert len(result.cache.cached_steps) == MASK.count(0)
