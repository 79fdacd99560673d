"""What is refused before a rank is touched, field by field, and how unset values are settled."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest
from google.protobuf import struct_pb2
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st
from tests.service.fakes import CONFIGURATION, FACTS

from ditcast.v1 import acceleration_pb2 as cache_pb
from ditcast.v1 import diffusion_service_pb2 as pb
from ditcast.v1 import generation_pb2 as generation_pb
from ditcast_runtime.errors import InvalidRequest, UnsupportedRequest
from ditcast_runtime.events import RequestWarning
from ditcast_runtime.generation import Parameters, SeparateCfg
from ditcast_runtime.messages import Facts, Support
from ditcast_runtime.settings import CacheSettings, DBCache, Disabled, ParallelismSettings
from ditcast_service.config import ServerConfig
from ditcast_service.sizes import Sizes
from ditcast_service.translate.request import request_from_proto
from ditcast_service.validation import check_request_id, resolve

CONFIG = ServerConfig(max_pixels=512 * 512, max_prompt_bytes=100)


def settle(
    request: pb.GenerateRequest, facts: Facts = FACTS, **configured: object
) -> tuple[Parameters, tuple[RequestWarning, ...]]:
    """Resolve a message as the servicer does."""
    asked, problems = request_from_proto(request)
    check_request_id(request.request_id, problems, required=False)
    configuration = dataclasses.replace(CONFIGURATION, **configured)  # type: ignore[arg-type]
    return resolve(asked, facts, CONFIG, configuration, problems)


def keywords(**values: Any) -> struct_pb2.Struct:  # noqa: ANN401 (as Struct takes it)
    """Make a Struct."""
    made = struct_pb2.Struct()
    made.update(values)
    return made


def null(name: str) -> struct_pb2.Struct:
    """Make a Struct with a null."""
    return struct_pb2.Struct(fields={name: struct_pb2.Value(null_value=struct_pb2.NULL_VALUE)})


def asking(**fields: object) -> pb.GenerateRequest:
    """Make a request with a prompt."""
    return pb.GenerateRequest(**({"prompt": "a circle"} | fields))  # type: ignore[arg-type]


def db_cache(**fields: object) -> cache_pb.CacheConfig:
    """Make a request's cache."""
    return cache_pb.CacheConfig(db_cache=cache_pb.DBCache(**fields))  # type: ignore[arg-type]


def test_previews_are_refused_where_they_cannot_be_made() -> None:
    """The field is named, and the size alone asks for none."""
    progress = generation_pb.ProgressOptions(preview_every_n_steps=2, preview_max_side=64)
    with pytest.raises(UnsupportedRequest) as refused:
        settle(asking(progress=progress))
    [problem] = refused.value.problems
    assert problem.field == "progress.preview_every_n_steps"
    settle(asking(progress=progress), msgspec.structs.replace(FACTS, previews=True))
    settle(asking(progress=generation_pb.ProgressOptions(preview_max_side=64)))


REFUSED = [
    (pb.GenerateRequest(), "prompt", "required"),
    (asking(prompt="ü" * 51), "prompt", "102 bytes"),
    (asking(negative_prompt="u" * 101), "negative_prompt", "101 bytes"),
    (asking(request_id="x" * 129), "request_id", "129"),
    (asking(width=0), "width", "16 to 4096"),
    (asking(width=-16), "width", "16 to 4096"),
    (asking(height=5000), "height", "16 to 4096"),
    (asking(width=130), "width", "128x128, 144x128"),
    (asking(width=4096, height=4096), "width", "allowed"),
    (asking(width=512, height=512, num_images=2), "width", "allowed"),
    (asking(num_inference_steps=0), "num_inference_steps", "1 to 1000"),
    (asking(num_inference_steps=1001), "num_inference_steps", "1 to 1000"),
    (asking(num_images=-1), "num_images", "1 to 16"),
    (asking(num_images=17), "num_images", "1 to 16"),
    (asking(true_cfg_scale=float("nan")), "true_cfg_scale", "finite"),
    (asking(guidance_scale=float("inf")), "guidance_scale", "finite"),
    (asking(guidance_scale=-0.1), "guidance_scale", "from 0"),
    (asking(sigmas=[1.0, float("nan")]), "sigmas", "finite"),
    (asking(sigmas=[1.0, 0.0]), "sigmas", "over 0"),
    (asking(sigmas=[0.5, 1.0]), "sigmas", "smaller"),
    (asking(sigmas=[1.0, 0.5], num_inference_steps=3), "sigmas", "there are 2"),
    (asking(timeout=Duration(seconds=0)), "timeout", "over 0"),
    (asking(timeout=Duration(seconds=-5)), "timeout", "over 0"),
    (asking(cache=cache_pb.CacheConfig()), "cache", "method is required"),
    (asking(cache=db_cache(fn_compute_blocks=9)), "cache.db_cache.fn_compute_blocks", "8 blocks"),
    (
        asking(cache=db_cache(residual_diff_threshold=float("nan"))),
        "cache.db_cache.residual_diff_threshold",
        "finite",
    ),
    (asking(cache=db_cache(steps_computation_policy=9)), "cache", "no value 9"),
    (asking(output={"format": 99}), "output.format", "no format 99"),
    (asking(output={"quality": 50}), "output.quality", "only jpeg, webp and mp4"),
    (asking(output={"format": 2, "quality": 0}), "output.quality", "1 to 100"),
    (asking(output={"format": 3, "quality": 101}), "output.quality", "1 to 100"),
    # What the pipeline is passed.
    (asking(pipeline_kwargs=keywords(widht=1)), "pipeline_kwargs.widht", "no such argument"),
    (asking(pipeline_kwargs=keywords(strenght=1)), "pipeline_kwargs.strenght", "mean strength"),
    (asking(pipeline_kwargs=keywords(width=64)), "pipeline_kwargs.width", "field of its own"),
    (
        asking(pipeline_kwargs=keywords(num_images_per_prompt=2)),
        "pipeline_kwargs.num_images_per_prompt",
        "num_images",
    ),
    (asking(pipeline_kwargs=keywords(generator=1)), "pipeline_kwargs.generator", "cannot set"),
    (asking(pipeline_kwargs=keywords(latents=[1])), "pipeline_kwargs.latents", "cannot set"),
    (
        asking(pipeline_kwargs=keywords(prompt_embeds=[1])),
        "pipeline_kwargs.prompt_embeds",
        "cannot",
    ),
    (asking(pipeline_kwargs=keywords(output_type="pt")), "pipeline_kwargs.output_type", "cannot"),
    (
        asking(pipeline_kwargs=keywords(max_sequence_length=1.5)),
        "pipeline_kwargs.max_sequence_length",
        "takes int",
    ),
    (
        asking(pipeline_kwargs=keywords(max_sequence_length=2.0**53 + 2)),
        "pipeline_kwargs.max_sequence_length",
        "2^53",
    ),
    (
        asking(pipeline_kwargs=keywords(max_sequence_length=True)),
        "pipeline_kwargs.max_sequence_length",
        "takes int",
    ),
    (
        asking(pipeline_kwargs=null("max_sequence_length")),
        "pipeline_kwargs.max_sequence_length",
        "null",
    ),
    (asking(pipeline_kwargs=keywords(strength=float("nan"))), "pipeline_kwargs.strength", "finite"),
    (asking(pipeline_kwargs=keywords(strength="big")), "pipeline_kwargs.strength", "takes float"),
    (asking(pipeline_kwargs=keywords(strength=[0.5])), "pipeline_kwargs.strength", "list"),
    (asking(pipeline_kwargs=keywords(mode={"a": 1})), "pipeline_kwargs.mode", "scalars"),
    (asking(pipeline_kwargs=keywords(layers=[[1]])), "pipeline_kwargs.layers", "scalars"),
    (asking(pipeline_kwargs=keywords(layers=[1.5])), "pipeline_kwargs.layers", "takes list[int]"),
    # What this pipeline does not take, and the outputs that it does not make.
    (asking(num_frames=8), "num_frames", "makes pictures"),
    (asking(fps=24), "fps", "makes pictures"),
    (asking(output={"format": 4}), "output.format", "possible are png, jpeg, webp"),
    (asking(on_disconnect=7), "on_disconnect", "knows no policy 7"),
    (asking(reattach_window=Duration(seconds=601)), "reattach_window", "0 to 600 s"),
    (asking(reattach_window=Duration(seconds=-1)), "reattach_window", "from 0"),
    (
        asking(on_disconnect=2, reattach_window=Duration(seconds=30)),
        "reattach_window",
        "leave it unset",
    ),
    (asking(priority=9), "priority", "knows no priority 9"),
    # What there is nothing to compare of.
    (asking(shadow_comparison=True), "shadow_comparison", "nothing is cached"),
    (
        asking(shadow_comparison=True, cache=cache_pb.CacheConfig(disabled=cache_pb.Disabled())),
        "shadow_comparison",
        "nothing is cached",
    ),
    (
        asking(shadow_comparison=True, output={"format": 6}, cache=db_cache(fn_compute_blocks=1)),
        "shadow_comparison",
        "latents",
    ),
]


@pytest.mark.parametrize(
    ("request_", "field", "reason"), REFUSED, ids=lambda value: str(value)[:40]
)
def test_a_wrong_field_is_refused_by_its_path(
    request_: pb.GenerateRequest, field: str, reason: str
) -> None:
    """Each wrong field is one problem, under its proto path, with what would be right."""
    with pytest.raises(InvalidRequest) as refused:
        settle(request_)
    [problem] = refused.value.problems
    assert problem.field == field
    assert reason in problem.reason


def test_all_wrong_fields_are_named_at_once() -> None:
    """A caller learns everything in one answer."""
    request = pb.GenerateRequest(
        width=1, height=1, num_inference_steps=0, num_images=99, guidance_scale=-1, fps=3
    )
    with pytest.raises(InvalidRequest) as refused:
        settle(request)
    fields = {problem.field for problem in refused.value.problems}
    assert fields == {
        *("prompt", "width", "height", "num_inference_steps", "num_images"),
        *("guidance_scale", "fps"),
    }


def test_what_the_pipeline_does_not_take_is_refused() -> None:
    """A field of the contract that this pipeline has no parameter for is refused by name."""
    facts = msgspec.structs.replace(FACTS, parameters=FACTS.parameters[:1])
    request = asking(
        negative_prompt="x", true_cfg_scale=2, guidance_scale=2, sigmas=[1.0], num_images=2
    )
    with pytest.raises(InvalidRequest) as refused:
        settle(request, facts)
    reasons = {problem.field: problem.reason for problem in refused.value.problems}
    assert {"negative_prompt", "true_cfg_scale", "guidance_scale", "sigmas"} <= set(reasons)
    assert "num_images" in reasons


def test_sound_values_that_the_pipeline_cannot_do_are_unsupported() -> None:
    """A feature that is missing here is FAILED_PRECONDITION, not a wrong value."""
    request = asking(cache=cache_pb.CacheConfig(db_prune=cache_pb.DBPrune(fn_compute_blocks=1)))
    with pytest.raises(UnsupportedRequest) as refused:
        settle(request)
    [problem] = refused.value.problems
    assert problem.field == "cache.db_prune"


def test_db_prune_with_context_parallelism_is_unsupported_once() -> None:
    """One problem a field, even where two rules agree."""
    request = asking(cache=cache_pb.CacheConfig(db_prune=cache_pb.DBPrune(fn_compute_blocks=1)))
    with pytest.raises(UnsupportedRequest) as refused:
        settle(request, parallelism=ParallelismSettings(ulysses_degree=2))
    assert len(refused.value.problems) == 1


def test_unset_values_come_from_the_configuration_then_the_pipeline() -> None:
    """Defaults of the configuration win over those of the signature; the seed is drawn."""
    first, _ = settle(asking())
    second, _ = settle(asking())
    assert first.num_inference_steps == 20
    assert (first.width, first.height) == (128, 128)
    assert first.true_cfg_scale == 4.0
    assert first.guidance_scale is None
    assert first.num_images == 1
    assert first.seed != second.seed
    assert 0 <= first.seed < 2**64


def test_sigmas_alone_give_the_number_of_steps() -> None:
    """A schedule says how many steps there are."""
    parameters, _ = settle(asking(sigmas=[1.0, 0.5, 0.25]))
    assert parameters.num_inference_steps == 3
    assert parameters.sigmas == (1.0, 0.5, 0.25)


def test_whole_numbers_become_integers_where_the_pipeline_wants_them() -> None:
    """A Struct has only doubles; the pipeline's own types decide."""
    given = keywords(max_sequence_length=256, strength=1, layers=[1, 2], mode="fast")
    parameters, _ = settle(asking(pipeline_kwargs=given))
    assert parameters.pipeline_kwargs == {
        "layers": [1, 2],
        "max_sequence_length": 256,
        "mode": "fast",
        "strength": 1.0,
    }
    assert type(parameters.pipeline_kwargs["max_sequence_length"]) is int
    assert type(parameters.pipeline_kwargs["strength"]) is float


@pytest.mark.parametrize(
    ("rule", "fields", "two_passes"),
    [
        (SeparateCfg.TRUE_CFG, {"negative_prompt": " "}, True),
        (SeparateCfg.TRUE_CFG, {"negative_prompt": " ", "true_cfg_scale": 1.0}, False),
        (SeparateCfg.TRUE_CFG, {"true_cfg_scale": 3.0}, False),
        (SeparateCfg.GUIDANCE, {"guidance_scale": 3.0}, True),
        (SeparateCfg.GUIDANCE, {"guidance_scale": 1.0}, False),
        (SeparateCfg.NEVER, {"guidance_scale": 3.0, "negative_prompt": " "}, False),
        (SeparateCfg.ALWAYS, {"guidance_scale": 1.0}, True),
    ],
)
def test_separate_passes_belong_to_the_request(
    rule: SeparateCfg, fields: dict[str, object], *, two_passes: bool
) -> None:
    """enable_separate_cfg is what this generation does, whatever the settings said."""
    facts = msgspec.structs.replace(FACTS, separate_cfg=rule)
    request = asking(
        cache=db_cache(fn_compute_blocks=1, enable_separate_cfg=not two_passes), **fields
    )
    parameters, warnings = settle(request, facts)
    assert isinstance(parameters.cache.method, DBCache)
    assert parameters.cache.method.enable_separate_cfg is two_passes
    assert "cache.db_cache.enable_separate_cfg" in {warning.field for warning in warnings}


def test_a_fresh_start_between_the_two_passes_of_a_step_is_refused() -> None:
    """An odd number of calls is sound for one pass a step alone, in the server's cache too."""
    cache = db_cache(fn_compute_blocks=1, force_refresh_step_hint=5)
    field = "cache.db_cache.force_refresh_step_hint"
    two = {"negative_prompt": " ", "true_cfg_scale": 3.0}
    settle(asking(cache=cache))
    with pytest.raises(InvalidRequest) as refused:
        settle(asking(cache=cache, **two))
    assert [problem.field for problem in refused.value.problems] == [field]
    own = CacheSettings(method=DBCache(fn_compute_blocks=1, force_refresh_step_hint=5))
    with pytest.raises(InvalidRequest) as refused:
        settle(asking(**two), cache=own)
    assert [problem.field for problem in refused.value.problems] == [f"configuration.{field}"]


def test_the_servers_cache_is_used_where_a_request_brings_none() -> None:
    """An unset cache is the server's, settled for this request as well."""
    cache = CacheSettings(method=DBCache(fn_compute_blocks=2))
    parameters, warnings = settle(asking(negative_prompt=" "), cache=cache)
    assert parameters.cache == CacheSettings(
        method=DBCache(fn_compute_blocks=2, enable_separate_cfg=True)
    )
    assert warnings == ()


def test_a_scale_without_a_negative_prompt_is_warned_about() -> None:
    """What was asked for and does nothing is said."""
    _, [warning] = settle(asking(true_cfg_scale=3.0))
    assert warning.field == "true_cfg_scale"
    _, [warning] = settle(asking(negative_prompt="x", true_cfg_scale=1.0))
    assert warning.field == "negative_prompt"


@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    multiple=st.sampled_from([8, 16, 32]),
    ranks=st.sampled_from([1, 2, 3, 4, 8]),
)
def test_sizes_that_are_named_as_nearest_work(
    width: int, height: int, multiple: int, ranks: int
) -> None:
    """A size is refused exactly if it cannot be made, and the suggestions can be."""
    sizes = Sizes(
        multiple=multiple, shard_multiple=ranks, min_side=16, max_side=400, max_pixels=400 * 400
    )
    fits = (
        min(width, height) >= 16
        and width % multiple == height % multiple == 0
        and (width // multiple) * (height // multiple) % ranks == 0
    )
    assert (sizes.check(width, height) == []) is fits
    for near in sizes.nearest(width, height):
        assert sizes.check(*near) == []


def test_a_size_that_the_ranks_cannot_split_names_the_nearest_that_they_can() -> None:
    """144x144 on two ranks has 81 tokens."""
    sizes = Sizes(multiple=16, shard_multiple=2, min_side=16, max_side=4096, max_pixels=4096 * 4096)
    [problem] = sizes.check(144, 144)
    assert "81 image tokens" in problem.reason
    assert "128x144" in problem.reason


def test_where_nothing_can_be_cached_each_generation_says_so() -> None:
    """Served uncached with a warning, unless that is what was asked for."""
    lacking = Support(name="db_cache", possible=False, reason="cache-dit does not know X")
    facts = msgspec.structs.replace(FACTS, cache_methods=(lacking,))
    off = CacheSettings(method=Disabled())
    _, [warning] = settle(asking(), facts, cache=off)
    assert (warning.field, warning.message) == (
        "cache",
        "nothing is cached: cache-dit does not know X",
    )
    asked = asking(cache=cache_pb.CacheConfig(disabled=cache_pb.Disabled()))
    _, warnings = settle(asked, facts, cache=off)
    assert not warnings
