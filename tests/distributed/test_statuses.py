"""Every status that this version can answer, once, through a real channel, with its details.

UNAVAILABLE is where servers start, stop and lose ranks: `test_shutdown` and `test_lost_ranks`.
"""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct
from google.rpc import error_details_pb2
from tests.distributed.generations import (
    FOR_EVER,
    Ending,
    ending,
    fields,
    occupied,
    other_fields,
    picture,
    stub_of,
    unmeasured,
    watch_until,
)
from tests.distributed.servers import Server

from ditcast.v1.acceleration_pb2 import CacheConfig, DBCache, DBPrune
from ditcast.v1.diffusion_service_pb2 import (
    CancelGenerationRequest,
    GenerateRequest,
)
from ditcast.v1.generation_pb2 import OutputOptions
from ditcast_client import Client
from ditcast_client.fields import request_from


async def _refused(server: Server, request: GenerateRequest) -> Ending:
    """Send a request whose stream ends with a status, and read that."""
    async with stub_of(server.address) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            async for _ in stub.Generate(request):
                pass
    return ending(error.value)


async def test_invalid_argument_names_every_wrong_field_at_once(server_one: Server) -> None:
    """One answer is enough to mend a request, whatever is wrong with it."""
    kwargs = Struct()
    kwargs.update({"max_sequence_length": 1.5, "generator": 1, "atention_kwargs": "x"})
    request = GenerateRequest(
        request_id="x" * 129,
        width=17,
        height=5000,
        num_inference_steps=0,
        guidance_scale=-1,
        true_cfg_scale=float("nan"),
        num_images=17,
        sigmas=[0.1, 0.9],
        num_frames=3,
        output=OutputOptions(quality=101),
        cache=CacheConfig(db_cache=DBCache(fn_compute_blocks=99)),
        pipeline_kwargs=kwargs,
    )
    request.timeout.FromSeconds(-1)
    refused = await _refused(server_one, request)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    violations = refused.detail(error_details_pb2.BadRequest).field_violations
    named = {violation.field for violation in violations}
    assert all(violation.description for violation in violations)
    assert named == {
        "request_id",
        "prompt",
        "height",
        "num_inference_steps",
        "guidance_scale",
        "true_cfg_scale",
        "num_images",
        "sigmas",
        "num_frames",
        "output.quality",
        "cache.db_cache.fn_compute_blocks",
        "pipeline_kwargs.max_sequence_length",
        "pipeline_kwargs.generator",
        "pipeline_kwargs.atention_kwargs",
        "timeout",
    }


async def test_many_violations_stay_within_what_proxies_pass(server_one: Server) -> None:
    """However much is wrong, 32 fields at most are named and the trailers stay small."""
    kwargs = Struct()
    kwargs.update({f"wrong_{'x' * 200}_{number}": number for number in range(500)})
    refused = await _refused(server_one, GenerateRequest(pipeline_kwargs=kwargs))
    violations = refused.detail(error_details_pb2.BadRequest).field_violations
    assert 1 < len(violations) <= 32
    assert int(refused.info.metadata["violations_left_out"]) == 501 - len(violations)


async def test_what_the_pipeline_itself_refuses_is_invalid(
    server_one: Server, server_two: Server
) -> None:
    """The pipeline's own checks are votes: a refusal costs nothing and all ranks stay."""
    for server in (server_one, server_two):
        request = request_from(fields(pipeline_kwargs={"max_sequence_length": 2000}))
        refused = await _refused(server, request)
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.reason == "PIPELINE_REFUSED"
        [violation] = refused.detail(error_details_pb2.BadRequest).field_violations
        assert violation.field == "pipeline_kwargs.max_sequence_length"
        async with server.client() as client:
            assert await picture(client, num_inference_steps=2)


async def test_a_schedule_that_the_model_cannot_make_is_invalid(
    server_one: Server, server_two: Server
) -> None:
    """The embedded model's scheduler divides zero by zero for a single step: said, not rendered."""
    for server in (server_one, server_two):
        refused = await _refused(server, request_from(fields(num_inference_steps=1)))
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.reason == "PIPELINE_REFUSED"
        [violation] = refused.detail(error_details_pb2.BadRequest).field_violations
        assert violation.field == "num_inference_steps"


async def test_failed_precondition_for_what_this_group_lacks(server_two: Server) -> None:
    """DBPrune's values are sound, but a sharded sequence cannot be pruned."""
    request = request_from(fields(cache=CacheConfig(db_prune=DBPrune(fn_compute_blocks=1))))
    refused = await _refused(server_two, request)
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    [violation] = refused.detail(error_details_pb2.PreconditionFailure).violations
    assert violation.subject == "cache.db_prune"


async def test_not_found_for_an_unknown_generation(server_one: Server) -> None:
    """Who cancels what does not exist is told so."""
    async with stub_of(server_one.address) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.CancelGeneration(CancelGenerationRequest(request_id="nobody"))
    refused = ending(error.value)
    assert refused.code is grpc.StatusCode.NOT_FOUND
    assert refused.detail(error_details_pb2.ResourceInfo).resource_name == "nobody"


async def test_already_exists_for_an_id_with_other_content(one: Client, server_one: Server) -> None:
    """An id stands for one content; with the same it gives the same generation again."""
    asked = fields(request_id="used", num_inference_steps=2)
    first = await one.generate(**asked).result()
    other = request_from(fields(request_id="used", num_inference_steps=3))
    refused = await _refused(server_one, other)
    assert refused.code is grpc.StatusCode.ALREADY_EXISTS
    assert refused.detail(error_details_pb2.ResourceInfo).resource_name == "used"
    again = await one.generate(**asked).result()
    assert again.outputs == first.outputs
    assert again.receipt == first.receipt


async def test_resource_exhausted_when_the_queue_is_full(server_other: Server) -> None:
    """One runs and two wait; a fourth is told when to try again, and its id stays free."""
    fourth = request_from(other_fields(request_id="fourth"))
    async with (
        server_other.client() as client,
        occupied(client, other_fields(width=256, height=256)),
        client.generate(**other_fields()) as first,
        client.generate(**other_fields()) as second,
    ):
        queues = [aiter(first), aiter(second)]
        for queue in queues:
            await watch_until(queue, "queued")
        refused = await _refused(server_other, fourth)
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.reason == "QUEUE_FULL"
    assert refused.retry_seconds > 0
    assert refused.has(error_details_pb2.QuotaFailure)
    async with server_other.client() as client:
        assert (await client.generate(fourth).result()).outputs


async def test_steps_that_the_scheduler_cannot_make_are_refused(server_other: Server) -> None:
    """DDIM with an offset has no noise level for the first of 1000 steps: the request is wrong."""
    refused = await _refused(server_other, request_from(other_fields(num_inference_steps=1000)))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    [violation] = refused.detail(error_details_pb2.BadRequest).field_violations
    assert violation.field == "num_inference_steps"


async def test_deadline_exceeded_when_the_timeout_passes(server_one: Server) -> None:
    """The request's own time limit ends it, and says how far it came."""
    request = request_from(unmeasured(num_inference_steps=FOR_EVER))
    request.timeout.FromMilliseconds(700)
    refused = await _refused(server_one, request)
    assert refused.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert int(refused.info.metadata["steps_done"]) >= 0


async def test_cancelled_tells_the_other_readers_the_steps_done(server_one: Server) -> None:
    """Who reads a generation that somebody else cancels is told how far it came."""
    request = request_from(fields(request_id="shared", num_inference_steps=FOR_EVER))
    # As our client asks for by itself: with another window it would be another request.
    request.reattach_window.FromSeconds(30)
    async with server_one.client() as client:
        running = client.generate(request)
        events = aiter(running)
        await watch_until(events, "step_completed", 3)
        other = asyncio.create_task(_refused(server_one, request))
        async with stub_of(server_one.address) as stub:
            # The second reader is there once it has been sent the first event.
            await stub.Generate(request).read()
        await asyncio.sleep(0)
        await running.cancel()
        refused = await other
        await running.close()
    assert refused.code is grpc.StatusCode.CANCELLED
    assert int(refused.info.metadata["steps_done"]) >= 3


async def test_internal_for_an_output_that_is_no_picture(
    server_one: Server, server_two: Server
) -> None:
    """NaN is an error with an id that stands in the log, never a grey picture."""
    for server in (server_one, server_two):
        request = request_from(fields(true_cfg_scale=1e300, num_inference_steps=2))
        refused = await _refused(server, request)
        assert refused.code is grpc.StatusCode.INTERNAL
        assert refused.reason == "NAN_OUTPUT"
        error_id = refused.info.metadata["error_id"]
        assert error_id in refused.message
        assert any(entry.get("error_id") == error_id for entry in server.entries())
        async with server.client() as client:
            assert await picture(client, num_inference_steps=2)
