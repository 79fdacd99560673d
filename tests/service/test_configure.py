"""Configure over a channel: what becomes of each field, all or nothing, writers and deadlines."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import msgspec
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2 as details
from grpc import StatusCode, aio
from tests.service.changing import CURRENT, INITIAL, asking
from tests.service.conftest import Served
from tests.service.test_generate import rich

from ditcast.v1 import acceleration_pb2 as pb
from ditcast.v1 import diffusion_service_pb2 as service_pb
from ditcast_runtime.errors import ChangeRefused, ReloadFailed
from ditcast_runtime.settings import (
    Problem,
)
from ditcast_service.translate.acceleration import configuration_to_proto

NOT_PATHS = [
    (asking("cache.db_cache.fn_compute_block"), "cache.db_cache.fn_compute_block", "did you mean"),
    (asking("configuration.cache"), "configuration.cache", "did you mean cache?"),
    (asking("cache.dbCache"), "cache.dbCache", "did you mean cache.db_cache?"),
    (asking("cache.method"), "cache.method", "no such path"),
    (asking(""), "", "no such path"),
    (asking("x" * 100_000), "x" * 200, "no such path"),
    (
        asking("parallelism.extra_parallel_kwargs.x"),
        "parallelism.extra_parallel_kwargs.x",
        "no such",
    ),
    (asking("*", "nothing"), "nothing", "no such path"),
    (asking("cache.db_prune.fn_compute_blocks"), "cache.db_prune.fn_compute_blocks", "is db_cache"),
    (
        asking("cache.db_prune.fn_compute_blocks", cache={"db_prune": {"fn_compute_blocks": 1}}),
        "cache.db_prune.fn_compute_blocks",
        "the current method is db_cache",
    ),
    (asking("cache.dmd.dmd_rank"), "cache.dmd.dmd_rank", "the current calibrator is taylor_seer"),
    (asking("cache.db_prune"), "cache.db_prune", "the current method is db_cache"),
    (
        asking("cache.disabled", "cache.db_cache.fn_compute_blocks", cache={"disabled": {}}),
        "cache.db_cache.fn_compute_blocks",
        "the current method is disabled",
    ),
    (asking(*(f"cache.{n}" for n in range(1001))), "update_mask", "1001 paths"),
    (service_pb.ConfigureRequest(), "configuration", "required"),
    (
        service_pb.ConfigureRequest(update_mask=FieldMask(paths=["*"])),
        "configuration",
        "required",
    ),
]


@pytest.mark.parametrize(("request_", "field", "says"), NOT_PATHS)
async def test_a_path_that_cannot_be_is_named(
    served: Served, request_: service_pb.ConfigureRequest, field: str, says: str
) -> None:
    """INVALID_ARGUMENT names unknown paths with the nearest known one, and paths that stray."""
    use(served)
    [violation] = (await refused(served, request_, StatusCode.INVALID_ARGUMENT)).field_violations
    assert field.startswith(violation.field.removesuffix("..."))
    assert says in violation.description
    assert served.engine.configuration == CURRENT


def use(served: Served, device: str = "cpu") -> None:
    """Have the server run with the configuration of this file, on some device."""
    served.engine.facts_now = msgspec.structs.replace(served.engine.facts_now, device=device)
    served.engine.initial_configuration = INITIAL
    served.engine.configuration = CURRENT
    served.engine.history = {INITIAL.revision: INITIAL, CURRENT.revision: CURRENT}


async def refused(served: Served, request: service_pb.ConfigureRequest, code: StatusCode) -> Any:  # noqa: ANN401 (one of the details)
    """Expect a refusal and give what stands beside its ErrorInfo, or that."""
    with pytest.raises(aio.AioRpcError) as caught:
        await served.stub.Configure(request)
    assert caught.value.code() is code, caught.value.details()
    return detail_of(caught.value)


def detail_of(error: aio.AioRpcError) -> Any:  # noqa: ANN401 (one of the details)
    """Give the detail beside the ErrorInfo, or the ErrorInfo where it stands alone."""
    found = rich(error).details[-1]
    made = getattr(details, found.TypeName().rpartition(".")[2])()
    found.Unpack(made)
    return made


def outcomes_of(response: service_pb.ConfigureResponse) -> dict[str, str]:
    """Give the outcomes by path, in words."""
    return {
        each.path: pb.Outcome.Name(each.outcome).removeprefix("OUTCOME_").lower()
        for each in response.outcomes
    }


LIVE = asking(cache={"db_cache": {"residual_diff_threshold": 0.5}}, defaults={"width": 64})
RELOADING = asking(
    cache={"db_cache": {"fn_compute_blocks": 1}},
    quantize={"quant_type": "int8_weight_only"},
    attention_backend="native",
)


async def test_live_fields_are_applied_at_once(served: Served) -> None:
    """Cache and defaults need no reload; the revision grows by 1, and each leaf has an entry."""
    use(served)
    answer = await served.stub.Configure(LIVE)
    assert answer.configuration.revision == 5
    assert answer.configuration.cache.db_cache.residual_diff_threshold == 0.5
    assert answer.configuration.cache.db_cache.fn_compute_blocks == 4
    assert outcomes_of(answer) == {
        "cache.db_cache.residual_diff_threshold": "applied_live",
        "defaults.width": "applied_live",
    }
    now = await served.stub.GetConfiguration(service_pb.GetConfigurationRequest())
    assert now.configuration == answer.configuration


@pytest.mark.parametrize("validate_only", [False, True])
async def test_no_change_keeps_the_revision(served: Served, *, validate_only: bool) -> None:
    """What is in force already is OK, has no outcomes, and makes no revision."""
    use(served)
    request = service_pb.ConfigureRequest(
        configuration=configuration_to_proto(CURRENT),
        update_mask=FieldMask(paths=["*"]),
        validate_only=validate_only,
    )
    answer = await served.stub.Configure(request)
    assert (answer.configuration.revision, list(answer.outcomes)) == (4, [])


async def test_a_reload_must_be_allowed(served: Served) -> None:
    """Without allow_reload: FAILED_PRECONDITION, a NEEDS_RELOAD a field, and nothing applied."""
    use(served, "cuda")  # Quantised on no other.
    found = await refused(served, RELOADING, StatusCode.FAILED_PRECONDITION)
    assert [(each.type, each.subject) for each in found.violations] == [
        ("NEEDS_RELOAD", "attention_backend"),
        ("NEEDS_RELOAD", "quantize"),
    ]
    assert served.engine.configuration == CURRENT


async def test_an_allowed_reload_is_told_from_what_is_live(served: Served) -> None:
    """With allow_reload each field says whether it took a reload."""
    use(served, "cuda")  # Quantised on no other.
    request = service_pb.ConfigureRequest()
    request.CopyFrom(RELOADING)
    request.allow_reload = True
    answer = await served.stub.Configure(request)
    assert answer.configuration.revision == 5
    assert outcomes_of(answer) == {
        "attention_backend": "applied_by_reload",
        "cache.db_cache.fn_compute_blocks": "applied_live",
        "quantize": "applied_by_reload",
    }


async def test_a_dry_run_tells_all_and_applies_nothing(served: Served) -> None:
    """validate_only is OK whatever the values: live, reload and rejected fields side by side."""
    use(served)
    request = asking(
        "cache.db_cache.fn_compute_blocks",
        "cache.db_cache.residual_diff_threshold",
        "attention_backend",
        "no.such",
        cache={"db_cache": {"fn_compute_blocks": 9, "residual_diff_threshold": 0.5}},
        attention_backend="native",
    )
    request.validate_only = True
    answer = await served.stub.Configure(request)
    assert outcomes_of(answer) == {
        "attention_backend": "needs_reload",
        "cache.db_cache.fn_compute_blocks": "rejected",
        "cache.db_cache.residual_diff_threshold": "applied_live",
        "no.such": "rejected",
    }
    assert "8 blocks" in answer.outcomes[1].reason
    assert answer.configuration == configuration_to_proto(CURRENT)
    assert served.engine.configuration == CURRENT


async def test_a_dry_run_shows_what_would_be(served: Served) -> None:
    """Where nothing stands in the way, the answer is the next configuration, not in force."""
    use(served)
    request = service_pb.ConfigureRequest()
    request.CopyFrom(LIVE)
    request.validate_only = True
    answer = await served.stub.Configure(request)
    assert answer.configuration.revision == 5
    assert answer.configuration.defaults.width == 64
    assert served.engine.configuration == CURRENT


NAN = float("nan")
BAD_VALUES = [
    (asking(cache={"db_cache": {"fn_compute_blocks": 9}}), "cache.db_cache.fn_compute_blocks"),
    (asking(cache={"db_cache": {"fn_compute_blocks": 0}}), "cache.db_cache.fn_compute_blocks"),
    (
        asking(cache={"db_cache": {"residual_diff_threshold": NAN}}),
        "cache.db_cache.residual_diff_threshold",
    ),
    (
        asking(cache={"db_cache": {"steps_computation_policy": 9}}),
        "cache.db_cache.steps_computation_policy",
    ),
    (asking(cache={}), "cache"),
    (asking("cache", cache={}), "cache"),
    (asking("cache", cache={"disabled": {}, "foca": {}}), "cache.disabled"),
    (asking(defaults={"width": 130}), "defaults.width"),
    (asking(defaults={"width": 0}), "defaults.width"),
    (asking(defaults={"height": 5000}), "defaults.height"),
    (asking(defaults={"num_inference_steps": 0}), "defaults.num_inference_steps"),
    (asking(defaults={"num_inference_steps": 1001}), "defaults.num_inference_steps"),
    (asking(defaults={"true_cfg_scale": -1}), "defaults.true_cfg_scale"),
    (asking(defaults={"guidance_scale": NAN}), "defaults.guidance_scale"),
    (asking(defaults={"negative_prompt": "x" * 16385}), "defaults.negative_prompt"),
    (asking(defaults={"num_frames": 3}), "defaults.num_frames"),
    (asking(defaults={"fps": 3}), "defaults.fps"),
    (asking(parallelism={"ulysses_degree": 2}), "parallelism.ulysses_degree"),
    (asking(parallelism={"ulysses_degree": -1}), "parallelism.ulysses_degree"),
    (
        asking(parallelism={"ulysses_degree": 0, "ring_degree": 0}),
        "parallelism.ring_degree",
    ),
    (asking(attention_backend="natve"), "attention_backend"),
    (asking(quantize={"quant_type": "int3"}), "quantize.quant_type"),
    (asking(quantize={"serialize_to": "/tmp"}), "quantize.serialize_to"),  # noqa: S108 (refused)
    (
        asking(quantize={"components_to_quantize": [{"component": ""}]}),
        "quantize.components_to_quantize",
    ),
]


@pytest.mark.parametrize("allow_reload", [False, True])
@pytest.mark.parametrize(("request_", "field"), BAD_VALUES)
async def test_a_bad_value_applies_nothing(
    served: Served, request_: service_pb.ConfigureRequest, field: str, *, allow_reload: bool
) -> None:
    """INVALID_ARGUMENT names the path that a dry run rejects; what else was asked stays undone."""
    use(served)
    asked = service_pb.ConfigureRequest()
    asked.CopyFrom(request_)
    asked.allow_reload = allow_reload
    found = await refused(served, asked, StatusCode.INVALID_ARGUMENT)
    named = [violation.field for violation in found.field_violations]
    assert field in named
    assert served.engine.configuration == CURRENT
    asked.validate_only = True
    answer = await served.stub.Configure(asked)
    assert sorted(named) == sorted(
        each.path for each in answer.outcomes if each.outcome == pb.OUTCOME_REJECTED
    )


LACKING = [
    (asking(cache={"db_prune": {}}), "cache.db_prune"),
    (asking(attention_backend="flash"), "attention_backend"),
    (asking(quantize={}), "quantize.quant_type"),  # float8 on a CPU
]


@pytest.mark.parametrize(("request_", "field"), LACKING)
async def test_what_the_pipeline_lacks_is_no_bad_value(
    served: Served, request_: service_pb.ConfigureRequest, field: str
) -> None:
    """FAILED_PRECONDITION with the type UNSUPPORTED, and a rejection in the dry run."""
    use(served)
    found = await refused(served, request_, StatusCode.FAILED_PRECONDITION)
    assert [(each.type, each.subject) for each in found.violations] == [("UNSUPPORTED", field)]
    asked = service_pb.ConfigureRequest()
    asked.CopyFrom(request_)
    asked.validate_only = True
    assert outcomes_of(await served.stub.Configure(asked)) == {field: "rejected"}


async def test_another_revision_aborts(served: Served) -> None:
    """expected_revision that is not in force: ABORTED with the one that is, in dry runs too."""
    use(served)
    request = service_pb.ConfigureRequest()
    request.CopyFrom(LIVE)
    request.expected_revision = 3
    for request.validate_only in (False, True):
        info = await refused(served, request, StatusCode.ABORTED)
        assert (info.reason, info.metadata["current_revision"]) == ("REVISION_MISMATCH", "4")
    request.expected_revision, request.validate_only = 4, False
    assert (await served.stub.Configure(request)).configuration.revision == 5


async def test_of_two_writers_on_one_revision_the_second_is_aborted(served: Served) -> None:
    """The revision is compared in the writer's turn, not when its request came."""
    use(served)
    served.engine.between_generations.clear()
    request = service_pb.ConfigureRequest()
    request.CopyFrom(LIVE)
    request.expected_revision = 4
    first = asyncio.ensure_future(served.stub.Configure(request))
    await served.engine.writer_waits.wait()
    other = service_pb.ConfigureRequest()
    other.CopyFrom(request)
    other.configuration.defaults.width = 256
    second = asyncio.ensure_future(served.stub.Configure(other))
    await asyncio.sleep(0.05)
    served.engine.between_generations.set()
    assert (await first).configuration.revision == 5
    with pytest.raises(aio.AioRpcError) as caught:
        await second
    assert caught.value.code() is StatusCode.ABORTED
    assert served.engine.configuration.defaults.width == 64


async def test_a_deadline_that_passes_applies_nothing(served: Served) -> None:
    """Behind a long generation the call ends with DEADLINE_EXCEEDED, and stays without effect."""
    use(served)
    served.engine.between_generations.clear()
    with pytest.raises(aio.AioRpcError) as caught:
        await served.stub.Configure(LIVE, timeout=0.5)
    assert caught.value.code() is StatusCode.DEADLINE_EXCEEDED
    assert detail_of(caught.value).reason == "NOT_APPLIED"
    served.engine.between_generations.set()
    await asyncio.sleep(0.05)
    assert served.engine.configuration == CURRENT
    assert not served.engine.writing.locked()


async def test_a_caller_that_leaves_applies_nothing(served: Served) -> None:
    """A cancelled call frees the writer's turn."""
    use(served)
    served.engine.between_generations.clear()
    call = served.stub.Configure(LIVE)
    await served.engine.writer_waits.wait()
    call.cancel()
    async with served.engine.writing:
        pass
    served.engine.between_generations.set()
    assert served.engine.configuration == CURRENT


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (ChangeRefused((Problem("cache.db_cache", "no", "unsupported"),)), "CHANGE_REFUSED"),
        (ReloadFailed("rank 1 ran out of memory"), "RELOAD_FAILED"),
    ],
)
async def test_what_the_ranks_refuse_is_a_precondition(
    served: Served, failure: ChangeRefused | ReloadFailed, kind: str
) -> None:
    """FAILED_PRECONDITION with the cause; the old configuration is in force."""
    use(served)
    served.engine.change_failure = failure
    [violation] = (await refused(served, LIVE, StatusCode.FAILED_PRECONDITION)).violations
    assert violation.type == kind
    assert served.engine.configuration == CURRENT


async def test_configure_needs_a_loaded_pipeline(served: Served) -> None:
    """Before the first SERVING it is UNAVAILABLE, a dry run too."""
    served.engine.serving = False
    request = service_pb.ConfigureRequest()
    request.CopyFrom(LIVE)
    for request.validate_only in (False, True):
        await refused(served, request, StatusCode.UNAVAILABLE)


async def test_an_earlier_configuration_can_be_had_and_sent_back(served: Served) -> None:
    """GetConfiguration by revision, and "*" with its answer, is a rollback; unknown: NOT_FOUND."""
    use(served)
    await served.stub.Configure(asking(cache={"disabled": {}}))
    asked = service_pb.GetConfigurationRequest(revision=4)
    earlier = (await served.stub.GetConfiguration(asked)).configuration
    assert earlier == configuration_to_proto(CURRENT)
    back = service_pb.ConfigureRequest(
        configuration=earlier, update_mask=FieldMask(paths=["*"]), expected_revision=5
    )
    assert (await served.stub.Configure(back)).configuration.revision == 6
    assert served.engine.configuration == dataclasses.replace(CURRENT, revision=6)
    for revision in (0, 2, 99):
        with pytest.raises(aio.AioRpcError) as caught:
            await served.stub.GetConfiguration(
                service_pb.GetConfigurationRequest(revision=revision)
            )
        assert caught.value.code() is StatusCode.NOT_FOUND
        assert detail_of(caught.value).resource_name == str(revision)
