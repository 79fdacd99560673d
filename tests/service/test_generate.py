"""Generate through a real channel: order, endings, heartbeats, slow readers, identity."""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import Any, cast

import grpc
import pytest
from google.rpc import error_details_pb2 as details
from google.rpc.status_pb2 import Status
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.service.conftest import Served
from tests.service.fakes import chunks, completed, success

from ditcast.v1 import acceleration_pb2 as acceleration_pb
from ditcast.v1 import diffusion_service_pb2 as pb
from ditcast.v1.generation_pb2 import GenerationEvent
from ditcast_runtime.engine import Phase
from ditcast_service.servicer import REQUEST_ID_KEY

Call = aio.UnaryStreamCall[Any, Any]


async def events_of(call: Call) -> list[GenerationEvent]:
    """Read a stream to its end."""
    return [response.event async for response in call]


async def read_on(call: Call) -> None:
    """Read what is left of a stream that was read from before."""
    while await call.read() is not aio.EOF:
        pass


def rich(error: aio.AioRpcError) -> Status:
    """Read the details of a status."""
    metadata = error.trailing_metadata()
    assert metadata is not None
    return Status.FromString(cast("bytes", metadata["grpc-status-details-bin"]))


def reason(error: aio.AioRpcError) -> str:
    """Read the reason of a status."""
    info = details.ErrorInfo()
    assert rich(error).details[0].Unpack(info)
    assert info.domain == "ditcast"
    return str(info.reason)


async def test_a_success_is_queued_started_steps_chunks_completed(served: Served) -> None:
    """A stream that ends with OK carried one completed, as its last event, and no gap before."""
    call = served.stub.Generate(pb.GenerateRequest(prompt="a circle", seed=7))
    events = await events_of(call)
    kinds = [event.WhichOneof("kind") for event in events]
    assert kinds == [
        "queued",
        "started",
        "step_completed",
        "step_completed",
        "output_chunk",
        "completed",
    ]
    assert [event.sequence for event in events] == list(range(1, 7))
    assert events[1].started.parameters.seed == 7
    assert list(events[-1].completed.cache.computed_steps) == [1, 2]
    assert await call.code() is grpc.StatusCode.OK


async def test_the_id_is_made_and_stands_in_headers_and_events(served: Served) -> None:
    """An empty request_id becomes a UUID, named before the first event."""
    call = served.stub.Generate(pb.GenerateRequest(prompt="a circle"))
    made = (await call.initial_metadata())[REQUEST_ID_KEY]
    uuid.UUID(str(made))
    assert {event.request_id for event in await events_of(call)} == {made}


async def test_who_takes_nothing_new_says_so_before_any_headers(served: Served) -> None:
    """Only then do proxies, and gRPC's own retries, try the next server."""
    served.engine.serving = False
    call = served.stub.Generate(pb.GenerateRequest(prompt="a circle"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await events_of(call)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert tuple(await call.initial_metadata()) == ()


async def test_validate_only_answers_started_alone(served: Served) -> None:
    """A validate_only stream is started alone, takes no id, and nothing is submitted."""
    call = served.stub.Generate(pb.GenerateRequest(prompt="a circle", validate_only=True))
    [event] = await events_of(call)
    assert event.started.parameters.num_inference_steps == 20
    assert event.started.parameters.true_cfg_scale == 4.0
    assert served.engine.submitted == []


async def test_silence_is_filled_with_heartbeats(served: Served) -> None:
    """A heartbeat repeats the last sequence and says where the generation is."""
    go_on = asyncio.Event()
    served.engine.script = lambda parameters: [
        *success(parameters)[:2],
        go_on,
        *success(parameters)[2:],
    ]
    call = served.stub.Generate(pb.GenerateRequest(prompt="a circle"))
    seen = []
    async for response in call:
        seen.append(response.event)
        if response.event.WhichOneof("kind") == "heartbeat":
            assert response.event.sequence == 2
            assert response.event.heartbeat.state == 2
            go_on.set()
    assert seen[-1].WhichOneof("kind") == "completed"


async def test_the_sooner_of_deadline_and_timeout_counts(served: Served) -> None:
    """The engine is told the smaller of the RPC's deadline and the request's timeout."""
    request = pb.GenerateRequest(prompt="a circle")
    request.timeout.FromMilliseconds(1500)
    await events_of(served.stub.Generate(request))
    await events_of(served.stub.Generate(request, timeout=60))
    await events_of(served.stub.Generate(request, timeout=1))
    await events_of(served.stub.Generate(pb.GenerateRequest(prompt="a circle")))
    timeouts = [timeout for _, _, timeout in served.engine.submitted]
    assert timeouts[:2] == [1.5, 1.5]
    assert timeouts[2] is not None
    assert timeouts[2] <= 1.2  # gRPC rounds deadlines up a little.
    assert timeouts[3] is None


async def test_a_reader_that_takes_nothing_is_ended(served: Served) -> None:
    """After reader_timeout the stream ends with READER_TIMEOUT, and the generation is left."""
    data = bytes(40 * 2**20)
    served.engine.script = lambda parameters: success(parameters, data)
    call: Call = served.stub.Generate(pb.GenerateRequest(prompt="a circle", request_id="slow"))
    await call.read()
    await asyncio.wait_for(served.engine.generations["slow"].left.wait(), 5)
    with pytest.raises(aio.AioRpcError) as ended:
        await read_on(call)
    assert ended.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason(ended.value) == "READER_TIMEOUT"


async def test_a_large_output_passes_a_default_client(served: Served) -> None:
    """No message comes near the 4 MiB that every client accepts by default."""
    data = bytes(range(256)) * (80 * 2**10)
    served.engine.script = lambda parameters: success(parameters, data)
    events = await events_of(served.stub.Generate(pb.GenerateRequest(prompt="a circle")))
    parts = [event.output_chunk.data for event in events if event.HasField("output_chunk")]
    assert b"".join(parts) == data


async def test_a_client_that_cancels_leaves_the_generation(served: Served) -> None:
    """The end of an RPC closes its reader at once, wherever the generation is."""
    served.engine.script = lambda parameters: [*success(parameters)[:2], asyncio.Event()]
    call = served.stub.Generate(pb.GenerateRequest(prompt="a circle", request_id="gone"))
    await call.read()
    call.cancel()
    await asyncio.wait_for(served.engine.generations["gone"].left.wait(), 5)


async def test_a_deadline_ends_the_rpc_and_leaves_the_generation(served: Served) -> None:
    """A client's deadline is DEADLINE_EXCEEDED, and nobody reads on."""
    served.engine.script = lambda parameters: [*success(parameters)[:2], asyncio.Event()]
    request = pb.GenerateRequest(prompt="a circle", request_id="late")
    with pytest.raises(aio.AioRpcError) as ended:
        await events_of(served.stub.Generate(request, timeout=0.3))
    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(served.engine.generations["late"].left.wait(), 5)


async def test_the_same_id_is_the_same_generation_only_for_the_same_content(
    served: Served,
) -> None:
    """Progress is not content; anything else under a used id is ALREADY_EXISTS."""
    request = pb.GenerateRequest(prompt="a circle", request_id="mine", seed=1)
    await events_of(served.stub.Generate(request))
    request.progress.SetInParent()
    await events_of(served.stub.Generate(request))
    assert len(served.engine.submitted) == 1
    request.seed = 2
    with pytest.raises(aio.AioRpcError) as refused:
        await events_of(served.stub.Generate(request))
    assert refused.value.code() is grpc.StatusCode.ALREADY_EXISTS


async def test_an_id_that_no_header_can_hold_still_works(served: Served) -> None:
    """Ids are any text; only what fits a header is repeated there."""
    request = pb.GenerateRequest(prompt="a circle", request_id="zwölf\n")
    events = await events_of(served.stub.Generate(request))
    assert events[-1].request_id == "zwölf\n"


async def test_warnings_reach_the_engine(served: Served) -> None:
    """What has no effect is said, and the generation goes on."""
    await events_of(served.stub.Generate(pb.GenerateRequest(prompt="a", guidance_scale=3.5)))
    [(_, [warning], _)] = served.engine.submitted
    assert warning.field == "guidance_scale"
    assert "not guidance-distilled" in warning.message


async def test_several_transformers_are_each_reported(served: Served) -> None:
    """The scalars are the main transformer's; with one transformer there is no list beside them."""
    events = await events_of(served.stub.Generate(pb.GenerateRequest(prompt="a circle")))
    assert len(events[2].step_completed.transformers) == 0
    assert events[2].step_completed.cache_decision == 1
    assert len(events[-1].completed.cache.transformers) == 1


async def test_bytes_that_are_no_message_are_the_callers_fault(served: Served) -> None:
    """Malformed input is INVALID_ARGUMENT with details, never INTERNAL or UNKNOWN."""
    call: aio.UnaryStreamMultiCallable[bytes, Any] = served.channel.unary_stream(
        "/ditcast.v1.DiffusionService/Generate", request_serializer=bytes
    )
    with pytest.raises(aio.AioRpcError) as refused:
        await events_of(call(b"\xff\xff\xff"))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason(refused.value) == "INVALID_REQUEST"


async def test_a_bug_is_internal_with_an_id_that_stands_in_the_log(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """An unexpected exception shows its id, and nothing of itself, to the client."""
    served.engine.script = lambda _: [ZeroDivisionError("secret")]
    with caplog.at_level(logging.INFO), pytest.raises(aio.AioRpcError) as failed:
        await events_of(served.stub.Generate(pb.GenerateRequest(prompt="a circle")))
    assert failed.value.code() is grpc.StatusCode.INTERNAL
    info = details.ErrorInfo()
    rich(failed.value).details[0].Unpack(info)
    assert info.metadata["error_id"] in str(failed.value.details())
    assert "secret" not in str(failed.value.details())


async def test_cancel_answers_the_state_it_met(served: Served) -> None:
    """CancelGeneration gives the state before the cancel, and NOT_FOUND for what is not there."""
    served.engine.script = lambda parameters: [*success(parameters)[:2], asyncio.Event()]
    call = served.stub.Generate(pb.GenerateRequest(prompt="a circle", request_id="x"))
    await call.read()
    answer = await served.stub.CancelGeneration(pb.CancelGenerationRequest(request_id="x"))
    assert answer.state == 2
    for request_id, code in (("y", "NOT_FOUND"), ("", "INVALID_ARGUMENT")):
        request = pb.CancelGenerationRequest(request_id=request_id)
        with pytest.raises(aio.AioRpcError) as refused:
            await served.stub.CancelGeneration(request)
        assert refused.value.code().name == code
    call.cancel()


async def test_capabilities_and_configuration(served: Served) -> None:
    """Limits and parameters come from the configuration and the pipeline; settings are resolved."""
    answer = await served.stub.GetCapabilities(pb.GetCapabilitiesRequest())
    found = answer.capabilities
    by_name = {each.name: each for each in found.parameters}
    assert by_name["num_inference_steps"].default.number_value == 20
    assert by_name["width"].default.number_value == 128
    assert by_name["num_images"].maximum == 16
    assert by_name["max_sequence_length"].in_pipeline_kwargs
    assert found.limits.num_inference_steps.maximum == 1000
    assert [each.name for each in found.uninterruptible_stages] == ["text_encoding", "decode"]
    current = await served.stub.GetConfiguration(pb.GetConfigurationRequest())
    assert current.configuration.cache.HasField("disabled")
    assert current.configuration.revision == 1


async def test_before_serving_everything_is_unavailable_but_liveness(served: Served) -> None:
    """LOADING comes with RetryInfo; health says NOT_SERVING, and liveness SERVING."""
    served.engine.serving = False
    with pytest.raises(aio.AioRpcError) as refused:
        await events_of(served.stub.Generate(pb.GenerateRequest(prompt="a circle")))
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert reason(refused.value) == "LOADING"
    retry = details.RetryInfo()
    assert rich(refused.value).details[1].Unpack(retry)
    assert retry.retry_delay.seconds == 3
    assert await health_of(served) == {"": 2, "ditcast.v1.DiffusionService": 2, "liveness": 1}


@pytest.mark.parametrize("phase", list(Phase))
async def test_health_serves_only_while_serving(served: Served, phase: Phase) -> None:
    """Load balancers see SERVING in one phase only; liveness never changes."""
    served.health.follow(Phase.SERVING)
    served.health.follow(phase)
    state = 1 if phase is Phase.SERVING else 2
    assert await health_of(served) == {
        "": state,
        "ditcast.v1.DiffusionService": state,
        "liveness": 1,
    }


async def health_of(served: Served) -> dict[str, int]:
    """Ask for the health under each name."""
    stub: Any = health_pb2_grpc.HealthStub(served.channel)
    names = ("", "ditcast.v1.DiffusionService", "liveness")
    return {
        name: (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status
        for name in names
    }


async def test_a_cache_for_one_request_is_resolved_for_it(served: Served) -> None:
    """The request's cache replaces the server's, with the passes of this request settled."""
    cache = acceleration_pb.CacheConfig(db_cache=acceleration_pb.DBCache(fn_compute_blocks=1))
    request = pb.GenerateRequest(prompt="a", negative_prompt="b", cache=cache, validate_only=True)
    [event] = await events_of(served.stub.Generate(request))
    resolved = event.started.parameters.cache.db_cache
    assert resolved.enable_separate_cfg
    assert resolved.residual_diff_threshold == 0.08


def test_the_fakes_make_whole_outputs() -> None:
    """What the other tests rest on: chunks add up to the data."""
    assert b"".join(bytes(chunk.data) for chunk in chunks(b"abcdef", 4)) == b"abcdef"
    assert completed.__doc__
