"""What a ConfigureRequest comes to: each form of the mask, and what else changes or is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from hypothesis import given
from hypothesis import strategies as st
from tests.service.changing import (
    CURRENT,
    EVERYWHERE,
    INITIAL,
    asking,
    planned,
    with_cache,
    with_defaults,
    with_method,
)
from tests.service.test_translate import caches, defaults, names, parallelisms, quantizations

from ditcast.v1 import acceleration_pb2 as pb
from ditcast.v1 import diffusion_service_pb2 as service_pb
from ditcast_runtime.config import Configuration, GenerationDefaults
from ditcast_runtime.messages import Support
from ditcast_runtime.settings import (
    DMD,
    DBCache,
    DBPrune,
    Disabled,
    ParallelismSettings,
    Problem,
    QuantizeSettings,
    resolve_parallelism,
)
from ditcast_service.translate.acceleration import configuration_to_proto

FORMS = {
    # Empty: all that is set.
    "empty, an option": (
        asking(cache={"db_cache": {"residual_diff_threshold": 0.5}}),
        with_method(residual_diff_threshold=0.5),
    ),
    "empty, zero is set": (
        asking(cache={"db_cache": {"max_warmup_steps": 0}}),
        with_method(max_warmup_steps=0),
    ),
    "empty, UNSPECIFIED is unset": (
        asking(cache={"taylor_seer": {"calibrator_cache_type": 0}}),
        CURRENT,
    ),
    "empty, an empty message adds nothing": (asking(cache={"db_cache": {}}), CURRENT),
    "empty, another method starts from its defaults": (
        asking(cache={"db_prune": {"fn_compute_blocks": 3}}),
        with_cache(DBPrune(fn_compute_blocks=3), CURRENT.cache.calibrator),
    ),
    "empty, another calibrator takes the place": (
        asking(cache={"dmd": {"dmd_rank": 1}}),
        with_cache(CURRENT.cache.method, DMD(dmd_rank=1)),
    ),
    "empty, disabled drops the calibrator": (
        asking(cache={"disabled": {}}),
        with_cache(Disabled()),
    ),
    "empty, nothing set": (asking(), CURRENT),
    "empty, revision is ignored": (asking(revision=77), CURRENT),
    "empty, several parts": (
        asking(cache={"db_cache": {"bn_compute_blocks": 1}}, defaults={"width": 64}),
        dataclasses.replace(
            with_method(bn_compute_blocks=1), defaults=with_defaults(width=64).defaults
        ),
    ),
    # Named paths.
    "a path leaves what is not named": (
        asking(
            "cache.db_cache.fn_compute_blocks",
            cache={"db_cache": {"fn_compute_blocks": 1}},
            defaults={"width": 64},
        ),
        with_method(fn_compute_blocks=1),
    ),
    "cache replaces the message": (
        asking("cache", cache={"db_cache": {"fn_compute_blocks": 1}}),
        with_cache(DBCache(fn_compute_blocks=1)),
    ),
    "cache left unset goes back": (
        asking("cache"),
        with_cache(INITIAL.cache.method, INITIAL.cache.calibrator),
    ),
    "an option left unset goes back": (
        asking("cache.db_cache.residual_diff_threshold"),
        with_method(residual_diff_threshold=0.1),
    ),
    "a whole method": (
        asking("cache.db_cache", cache={"db_cache": {"fn_compute_blocks": 1}}),
        with_cache(DBCache(fn_compute_blocks=1), CURRENT.cache.calibrator),
    ),
    "another method by its path": (
        asking("cache.db_prune", cache={"db_prune": {}}),
        with_cache(DBPrune(), CURRENT.cache.calibrator),
    ),
    "disabled by its path drops the calibrator": (
        asking("cache.disabled", cache={"disabled": {}}),
        with_cache(Disabled()),
    ),
    "a method left unset goes back": (
        asking("cache.db_cache"),
        with_cache(INITIAL.cache.method, CURRENT.cache.calibrator),
    ),
    "a calibrator left unset goes back": (
        asking("cache.taylor_seer"),
        with_cache(CURRENT.cache.method, INITIAL.cache.calibrator),
    ),
    "defaults replaces the message": (
        asking("defaults", defaults={"width": 64}),
        dataclasses.replace(CURRENT, defaults=GenerationDefaults(width=64)),
    ),
    "defaults set and empty": (
        asking("defaults", defaults={}),
        dataclasses.replace(CURRENT, defaults=GenerationDefaults()),
    ),
    "defaults left unset goes back": (
        asking("defaults"),
        dataclasses.replace(CURRENT, defaults=INITIAL.defaults),
    ),
    "a default that the start had none of": (
        asking("defaults.guidance_scale"),
        with_defaults(guidance_scale=None),
    ),
    "quantize creates the message": (
        asking("quantize.verbose", quantize={"verbose": True}),
        dataclasses.replace(CURRENT, quantize=QuantizeSettings(verbose=True)),
    ),
    "an option of no message": (asking("quantize.verbose", "quantize.svdq_kwargs"), CURRENT),
    "attention backend": (
        asking("attention_backend", attention_backend="native"),
        dataclasses.replace(CURRENT, attention_backend="native"),
    ),
    "revision alone": (asking("revision", revision=9), CURRENT),
    "no configuration: all goes back": (
        service_pb.ConfigureRequest(update_mask=FieldMask(paths=["cache", "defaults"])),
        dataclasses.replace(INITIAL, revision=4),
    ),
    # Several paths, one within another.
    "the wider path covers the narrower": (
        asking(
            "cache.db_cache.fn_compute_blocks", "cache", "cache.db_cache", cache={"db_cache": {}}
        ),
        with_cache(DBCache()),
    ),
    "twice the same": (
        asking("defaults.width", "defaults.width", defaults={"width": 64}),
        with_defaults(width=64),
    ),
    "a method and the one before it": (
        asking("cache.db_cache", "cache.disabled", cache={"disabled": {}}),
        with_cache(Disabled()),
    ),
    # "*": replace.
    "star, with others": (
        asking("*", "cache", cache={"db_cache": {}}, defaults={"width": 64}),
        dataclasses.replace(with_cache(DBCache()), defaults=GenerationDefaults(width=64)),
    ),
    "star, what is unset is as on a server that was told nothing": (
        asking("*", defaults={"width": 64}),
        dataclasses.replace(with_cache(Disabled()), defaults=GenerationDefaults(width=64)),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_the_mask(form: str) -> None:
    """The wanted configuration is what the contract says of the mask, in any order of its paths."""
    request, wanted = FORMS[form]
    assert planned(request).wanted == wanted
    request.update_mask.paths.reverse()
    assert planned(request).wanted == wanted


def test_another_method_is_one_entry() -> None:
    """A method or calibrator that takes another's place is named as a whole; so is one dropped."""
    to_prune = planned(asking(cache={"db_prune": {}, "dmd": {}}))
    assert to_prune.changed == ("cache.db_prune", "cache.dmd")
    assert planned(asking(cache={"disabled": {}})).changed == (
        "cache.disabled",
        "cache.taylor_seer",
    )


def test_a_fault_within_a_new_method_is_its_entry() -> None:
    """The refused option stands in the outcomes, and the method that holds it does not."""
    request = asking(cache={"db_prune": {"fn_compute_blocks": 9}})
    [outcome] = [each for each in planned(request).outcomes() if "prune" in each.path]
    assert outcome.path == "cache.db_prune.fn_compute_blocks"
    assert outcome.outcome == pb.OUTCOME_REJECTED


# Two ranks.

SPLIT = dataclasses.replace(CURRENT, parallelism=resolve_parallelism(None, 2))
TENSOR = {"ulysses_degree": 1, "tensor_parallel_degree": 2}


def test_what_was_resolved_for_the_old_degrees_follows_the_new_ones() -> None:
    """ulysses_anything, unless asked for, is chosen anew when the degrees change."""
    made = planned(asking(parallelism=TENSOR), current=SPLIT, world_size=2)
    assert made.problems == ()
    assert made.wanted.parallelism == ParallelismSettings(
        tensor_parallel_degree=2, ulysses_anything=False
    )
    kept = asking(parallelism={**TENSOR, "ulysses_anything": True})
    [problem] = planned(kept, current=SPLIT, world_size=2).problems
    assert problem.field == "parallelism.ulysses_anything"


def test_an_open_degree_takes_what_is_left() -> None:
    """0 stands for auto, and answers carry the number."""
    request = asking("parallelism", parallelism={"tensor_parallel_degree": 0})
    assert planned(request, current=SPLIT, world_size=2).wanted.parallelism == ParallelismSettings(
        tensor_parallel_degree=2, ulysses_anything=False
    )


def test_pruning_does_not_go_with_a_split_sequence() -> None:
    """DBPrune and context parallelism: FAILED_PRECONDITION, whichever of the two comes second."""
    [problem] = planned(asking(cache={"db_prune": {}}), current=SPLIT, world_size=2).problems
    assert (problem.field, problem.kind) == ("cache.db_prune", "unsupported")


def test_a_split_that_the_defaults_do_not_fit_is_refused() -> None:
    """Requests that name no size must be possible under new degrees that want equal parts."""
    facts = msgspec.structs.replace(EVERYWHERE, default_width=48, default_height=48)
    current = dataclasses.replace(
        SPLIT,
        parallelism=ParallelismSettings(tensor_parallel_degree=2, ulysses_anything=False),
        defaults=GenerationDefaults(width=48),
    )
    back = asking("parallelism", parallelism={"ulysses_degree": 2, "ulysses_anything": False})
    [problem] = planned(back, current=current, facts=facts, world_size=2).problems
    assert problem.field == "defaults.width"
    assert "cannot split into 2" in problem.reason


def test_a_mode_that_the_pipeline_lacks_is_refused() -> None:
    """The capabilities' word on parallel modes counts for Configure."""
    lacking = Support(name="tensor", possible=False, reason="no plan for this model")
    facts = msgspec.structs.replace(EVERYWHERE, parallel_modes=(lacking,))
    [problem] = planned(
        asking(parallelism=TENSOR), current=SPLIT, facts=facts, world_size=2
    ).problems
    assert problem == Problem(
        "parallelism.tensor_parallel_degree", "no plan for this model", "unsupported"
    )


def test_a_policy_takes_the_place_of_a_list() -> None:
    """A mask's policy, asked for alone, is not in vain beside a list that would win."""
    current = with_method(steps_computation_mask=(1, 0, 1))
    request = asking(
        cache={"db_cache": {"steps_computation_mask_policy": "STEPS_COMPUTATION_MASK_POLICY_FAST"}}
    )
    assert planned(request, current=current).wanted == with_method(steps_computation_mask="fast")
    request.update_mask.paths.append("cache.db_cache.steps_computation_mask_policy")
    assert planned(request, current=current).wanted == with_method(steps_computation_mask="fast")


def test_the_spelling_of_a_file_is_no_change() -> None:
    """cache-dit takes words in any case; what GetConfiguration answers changes nothing."""
    spelled = ParallelismSettings(
        backend="native_diffuser", ulysses_degree=2, ulysses_anything=True
    )
    current = dataclasses.replace(CURRENT, parallelism=spelled)
    request = service_pb.ConfigureRequest(
        configuration=configuration_to_proto(current), update_mask=FieldMask(paths=["*"])
    )
    assert planned(request, current=current, world_size=2).wanted == current


def test_a_folder_of_the_servers_own_file_may_stay() -> None:
    """serialize_to comes from the server's files only, and going back to it is no new one."""
    own = dataclasses.replace(INITIAL, quantize=QuantizeSettings(serialize_to="weights"))
    assert planned(asking("quantize"), initial=own).wanted.quantize == own.quantize
    named = [each.field for each in planned(asking("quantize"), initial=own).problems]
    assert "quantize.serialize_to" not in named


configurations = st.builds(
    Configuration,
    revision=st.integers(1, 2**63),
    cache=caches,
    parallelism=parallelisms.map(lambda settings: resolve_parallelism(settings, 1)),
    quantize=st.none() | quantizations,
    attention_backend=st.none() | names,
    defaults=defaults,
)


@given(configurations, configurations)
def test_replacing_all_gives_exactly_what_is_sent(
    current: Configuration, earlier: Configuration
) -> None:
    """With "*" a resolved configuration comes into force; the current one changes nothing."""
    request = service_pb.ConfigureRequest(
        configuration=configuration_to_proto(earlier), update_mask=FieldMask(paths=["*"])
    )
    made = planned(request, current=current, initial=current)
    assert made.wanted == dataclasses.replace(earlier, revision=current.revision)
    assert (made.changed == ()) == (made.wanted == current)
    same = planned(request, current=earlier, initial=current)
    assert (same.wanted, same.changed) == (earlier, ())


LEAVES = {
    "cache.db_cache.fn_compute_blocks": st.integers(1, 8),
    "cache.db_cache.bn_compute_blocks": st.integers(0, 8),
    "cache.db_cache.residual_diff_threshold": st.floats(0, 9),
    "cache.db_cache.max_cached_steps": st.integers(-1, 9),
    "cache.db_cache.enable_separate_cfg": st.booleans(),
    "cache.taylor_seer.taylorseer_order": st.integers(1, 4),
    "cache.taylor_seer.enable_encoder_calibrator": st.booleans(),
    "defaults.width": st.integers(0, 4096),
    "defaults.negative_prompt": names,
    "defaults.true_cfg_scale": st.floats(0, 9),
    "parallelism.ulysses_float8": st.booleans(),
    "parallelism.attention_backend": names,
    "attention_backend": names,
    "quantize.quant_type": names,
    "quantize.verbose": st.booleans(),
}


def set_directly(configuration: Configuration, path: str, value: object) -> Configuration:
    """Set one leaf of the domain's own objects."""
    part, *rest = path.split(".")
    if part == "cache":
        group = "method" if rest[0] == "db_cache" else "calibrator"
        inner = msgspec.structs.replace(getattr(configuration.cache, group), **{rest[1]: value})
        cache = dataclasses.replace(configuration.cache, **{group: inner})
        return dataclasses.replace(configuration, cache=cache)
    if not rest:
        return dataclasses.replace(configuration, **{part: value})  # type: ignore[arg-type]
    whole = getattr(configuration, part) or QuantizeSettings()
    changed = dataclasses.replace(whole, **{rest[0]: value})
    return dataclasses.replace(configuration, **{part: changed})  # type: ignore[arg-type]


@given(st.fixed_dictionaries({}, optional=LEAVES), st.randoms(use_true_random=False))
def test_leaves_by_mask_equal_leaves_set_directly(values: dict[str, Any], random: Any) -> None:  # noqa: ANN401 (of hypothesis)
    """Whatever the order of the paths, and without a mask too, exactly the named leaves change."""
    request, wanted = asking(), CURRENT
    for path, value in values.items():
        *parts, name = path.split(".")
        message: Any = request.configuration
        for part in parts:
            message = getattr(message, part)
        setattr(message, name, value)
        wanted = set_directly(wanted, path, value)
    assert planned(request).wanted == wanted
    paths: Sequence[str] = random.sample(list(values), len(values))
    request.update_mask.paths.extend(paths)
    made = planned(request)
    assert made.wanted == wanted
    leaves = {path if not path.startswith("quantize.") else "quantize" for path in values}
    assert set(made.changed) <= leaves
