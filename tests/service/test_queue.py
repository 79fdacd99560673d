"""The queue of a real server with a real rank: places, estimates, priorities, time limits."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import datetime
from typing import Any, cast

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc import aio
from tests.service.test_lifecycle import Call, serving, wait_until_serving

from ditcast.v1 import diffusion_service_pb2 as pb
from ditcast.v1 import generation_pb2
from ditcast.v1.diffusion_service_pb2_grpc import DiffusionServiceStub

SIDES = (64, 128)
STEPS = (10, 20, 40)


CALLERS = """
callers:
  - {name: many, token: the first of two tokens, scopes: [generate], max_queued_per_client: 5}
  - {name: few, token: the second of two tokens, scopes: [generate]}
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the embedded model on one rank to two callers, for all tests here."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "callers.yaml").write_text(CALLERS)
    with serving(folder, "--callers", f"{folder}/callers.yaml") as (process, address):
        wait_until_serving(process)
        yield address


@pytest.fixture
async def stub(address: str) -> AsyncIterator[Any]:
    """Connect to it."""
    async with aio.insecure_channel(address) as channel:
        yield DiffusionServiceStub(channel)


def begin(stub: Any, which: str = "first", /, **fields: Any) -> Call:  # noqa: ANN401
    """Ask for a picture, as one of the callers."""
    metadata = (("authorization", f"Bearer the {which} of two tokens"),)
    request = pb.GenerateRequest(prompt="a red circle", **fields)
    call: Call = stub.Generate(request, metadata=metadata)
    return call


async def read(call: Call) -> generation_pb2.GenerationEvent:
    """Read one event."""
    response: Any = await call.read()
    event: generation_pb2.GenerationEvent = response.event
    return event


async def rest(call: Call) -> list[generation_pb2.GenerationEvent]:
    """Read to the end."""
    events = []
    while (response := cast("Any", await call.read())) is not aio.EOF:
        events.append(response.event)
    return events


async def events(stub: Any, **fields: Any) -> list[generation_pb2.GenerationEvent]:  # noqa: ANN401
    """Run a generation to its end."""
    return await rest(begin(stub, **fields))


async def test_those_that_wait_are_told_where_they_stand(stub: Any) -> None:  # noqa: ANN401
    """Places and estimates fall; LOW goes last; a limit far too short is refused at once."""
    # Long enough for each place to be told: those behind the next one hear in rounds.
    small: dict[str, Any] = {"width": 64, "height": 64, "num_inference_steps": 40}
    for _ in range(2):
        await events(stub, **small)
    running = begin(stub, **small | {"num_inference_steps": 1000})
    while not (await read(running)).HasField("step_completed"):
        pass
    # These wait, and the one that came first goes last.
    calls = []
    for priority in ("LOW", "NORMAL", "NORMAL", "HIGH"):
        value = generation_pb2.Priority.Value(f"PRIORITY_{priority}")
        calls.append(begin(stub, **small, priority=value))
        assert (await read(calls[-1])).HasField("queued")
    with pytest.raises(aio.AioRpcError) as refused:
        await events(stub, **small | {"num_inference_steps": 1000}, timeout={"nanos": 1_000_000})
    assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert reason_of(refused.value) == "CANNOT_MEET_TIME_LIMIT"
    running.cancel()
    finished = await asyncio.gather(*(rest(call) for call in calls))
    low, *normal, high = (
        next(event.time.ToDatetime() for event in run if event.HasField("started"))
        for run in finished
    )
    assert high < normal[0] < normal[1] < low
    waits = [event.queued for event in finished[0] if event.HasField("queued")]
    assert all(said.HasField("estimated_wait") for said in waits)
    # On a slow machine an estimate is told again at the same place.
    assert [place for place, _ in itertools.groupby(said.position for said in waits)][-3:] == [
        2,
        1,
        0,
    ]
    last = waits[-1].estimated_wait.ToTimedelta()
    assert last < max(said.estimated_wait.ToTimedelta() for said in waits)


async def test_the_first_of_one_caller_waits_for_one_of_another(stub: Any) -> None:  # noqa: ANN401
    """However many those have sent; who has as many as one may is told so, and the other is not."""
    small: dict[str, Any] = {"width": 64, "height": 64, "num_inference_steps": 2}
    running = begin(stub, **small | {"num_inference_steps": 1000})
    while not (await read(running)).HasField("step_completed"):
        pass
    calls = []
    for which in (*["first"] * 5, "second"):
        calls.append(begin(stub, which, **small))
        assert (await read(calls[-1])).HasField("queued")
    with pytest.raises(aio.AioRpcError) as refused:
        await events(stub, **small)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason_of(refused.value) == "CLIENT_LIMIT"
    running.cancel()
    finished = await asyncio.gather(*(rest(call) for call in calls))
    *many, few = (
        next(event.time.ToDatetime() for event in run if event.HasField("started"))
        for run in finished
    )
    assert many == sorted(many)
    assert many[0] < few < many[1]


def reason_of(error: aio.AioRpcError) -> str:
    """Give the reason in the details of a status."""
    [data] = (v for k, v in error.trailing_metadata() or () if k == "grpc-status-details-bin")
    status = Status.FromString(cast("bytes", data))
    info = ErrorInfo()
    assert status.details[0].Unpack(info)
    return str(info.reason)


@pytest.mark.soak
async def test_nine_of_ten_estimates_are_within_half_of_what_came(
    stub: Any,  # noqa: ANN401
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a steady load of mixed sizes and lengths, counting every `queued` with an estimate."""
    for side, steps in itertools.product(SIDES, STEPS):
        await events(stub, width=side, height=side, num_inference_steps=steps)
    errors: list[float] = []
    kinds = [(SIDES[number % 2], STEPS[number * 7 % 3]) for number in range(12)]

    async def client(kinds: Iterable[tuple[int, int]]) -> None:
        for side, steps in kinds:
            run = await events(stub, width=side, height=side, num_inference_steps=steps)
            errors.extend(_errors(run))

    await asyncio.gather(*(client(kinds[start:] + kinds[:start]) for start in range(5)))
    share = sum(error <= 0.5 for error in errors) / len(errors)
    with capsys.disabled():
        print(f"\n{share:.0%} of {len(errors)} estimates within 50 % of what came")  # noqa: T201
    assert share >= 0.9


def _errors(run: list[generation_pb2.GenerationEvent]) -> list[float]:
    """Give how far each estimate was off, as a part of what came."""
    began: datetime = next(event.time.ToDatetime() for event in run if event.HasField("started"))
    errors = []
    for event in run:
        if event.HasField("queued") and event.queued.HasField("estimated_wait"):
            came = (began - event.time.ToDatetime()).total_seconds()
            said = event.queued.estimated_wait.ToTimedelta().total_seconds()
            errors.append(abs(said - came) / max(came, 1e-9))
    return errors
