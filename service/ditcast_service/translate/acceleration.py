"""Settings of cache-dit as messages and back; options have the same names on both sides.

Three things differ, and are handled by name: the mask of steps (a list or a policy's name here,
two fields there), words (enums there), and mappings (sorted pairs here).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, cast

import msgspec
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from ditcast.v1 import acceleration_pb2 as pb
from ditcast_runtime.config import Configuration, GenerationDefaults
from ditcast_runtime.generation import KeywordValue
from ditcast_runtime.settings import (
    DMD,
    CacheMethod,
    CacheSettings,
    Calibrator,
    Compile,
    ComponentQuantization,
    DBCache,
    DBPrune,
    Disabled,
    FoCa,
    LoadingSettings,
    Offload,
    ParallelismSettings,
    QuantizeSettings,
    SvdqKwargs,
    TaylorSeer,
)
from ditcast_service.translate.values import from_value, struct, to_number, to_word

_METHODS: dict[str, type[CacheMethod]] = {
    "disabled": Disabled,
    "db_cache": DBCache,
    "db_prune": DBPrune,
}
_CALIBRATORS: dict[str, type[Calibrator]] = {"taylor_seer": TaylorSeer, "dmd": DMD, "foca": FoCa}

_MASK = "steps_computation_mask"
_POLICY = "steps_computation_mask_policy"
_NULL_AS_ZERO = {"activation_buffer_flush_sample_count": 0, "few_shot_steps": 0}
"""Options whose null differs from their default; unset on the wire means the default."""
_BACKENDS = ("Auto", "CACHE_DIT", "Native_Diffuser", "Native_PyTorch", "Native_Hybrid")
_SAME_BACKEND = {"native_diffuser": "CACHE_DIT"}
"""An older name, which is taken and never given."""


def cache_to_proto(settings: CacheSettings) -> pb.CacheConfig:
    """Give cache settings with every option set."""
    message = pb.CacheConfig()
    _fill(getattr(message, _tag(settings.method)), msgspec.structs.asdict(settings.method))
    getattr(message, _tag(settings.method)).SetInParent()
    if settings.calibrator is not None:
        calibrator = getattr(message, _tag(settings.calibrator))
        calibrator.SetInParent()
        _fill(calibrator, msgspec.structs.asdict(settings.calibrator))
    return message


def cache_from_proto(message: pb.CacheConfig) -> CacheSettings:
    """Read cache settings; options that are unset get cache-dit's own defaults.

    Raises:
        ValueError: no method is set, or a value of an enum is not known.
    """
    method, calibrator = message.WhichOneof("method"), message.WhichOneof("calibrator")
    if method is None:
        raise ValueError("a method is required: disabled, db_cache or db_prune")
    return CacheSettings(
        method=_METHODS[method](**_read(getattr(message, method))),
        calibrator=calibrator and _CALIBRATORS[calibrator](**_read(getattr(message, calibrator))),
    )


def parallelism_to_proto(settings: ParallelismSettings) -> pb.ParallelismConfig:
    """Give parallelism with every option set."""
    message = pb.ParallelismConfig()
    values = {each.name: getattr(settings, each.name) for each in dataclasses.fields(settings)}
    values["backend"] = _SAME_BACKEND.get(values["backend"].lower(), values["backend"])
    extra = values.pop("extra_parallel_kwargs")
    if extra:
        message.extra_parallel_kwargs.CopyFrom(struct(dict(extra)))
    _fill(message, values)
    return message


def parallelism_from_proto(message: pb.ParallelismConfig) -> ParallelismSettings:
    """Read parallelism; whole numbers among the extra options become int again.

    Raises:
        ValueError: a value of an enum is not known, or an extra option is no scalar.
    """
    options = _read(message, without=("extra_parallel_kwargs",))
    if "backend" in options:
        by_word = {word.lower(): word for word in _BACKENDS}
        word = options["backend"]
        options["backend"] = _SAME_BACKEND.get(word, by_word[word])
    extra = message.extra_parallel_kwargs.fields
    pairs = tuple((name, _whole(from_value(extra[name]))) for name in sorted(extra))
    return ParallelismSettings(**options, extra_parallel_kwargs=cast("Any", pairs))


def quantize_to_proto(settings: QuantizeSettings) -> pb.QuantizeConfig:
    """Give quantisation with every option set."""
    message = pb.QuantizeConfig()
    _fill_quantize(message, settings, skip="components_to_quantize")
    for entry in settings.components_to_quantize:
        component = message.components_to_quantize.add(component=entry.component)
        _fill_quantize(component.overrides, entry, skip="component")
    return message


def quantize_from_proto(message: pb.QuantizeConfig) -> QuantizeSettings:
    """Read quantisation.

    Raises:
        ValueError: a value of an enum is not known, or a component has components.
    """
    components = []
    for entry in message.components_to_quantize:
        if entry.overrides.components_to_quantize:
            raise ValueError("components_to_quantize must be empty within a component")
        options = _read_quantize(entry.overrides)
        components.append(ComponentQuantization(component=entry.component, **options))
    components.sort(key=lambda entry: entry.component)
    return QuantizeSettings(**_read_quantize(message), components_to_quantize=tuple(components))


def loading_to_proto(settings: LoadingSettings) -> pb.LoadingConfig:
    """Give how the pipeline is loaded with every setting set."""
    values = dataclasses.asdict(settings)
    message = pb.LoadingConfig(component_dtypes=dict(values.pop("component_dtypes")))
    _fill(message, values)
    return message


def loading_from_proto(message: pb.LoadingConfig) -> LoadingSettings:
    """Read how the pipeline is to be loaded; what is unset gets the contract's defaults.

    Raises:
        ValueError: a value of an enum is not known.
    """
    values = _read(message, without=("component_dtypes",))
    kinds = {"offload": Offload, "compile": Compile}
    words = {name: kind(values[name]) for name, kind in kinds.items() if name in values}
    dtypes = tuple(sorted(message.component_dtypes.items()))
    return LoadingSettings(**{**values, **words}, component_dtypes=dtypes)


def configuration_to_proto(configuration: Configuration) -> pb.Configuration:
    """Give what is in force."""
    message = pb.Configuration(
        revision=configuration.revision,
        cache=cache_to_proto(configuration.cache),
        parallelism=parallelism_to_proto(configuration.parallelism),
        attention_backend=configuration.attention_backend,
        defaults=pb.GenerationDefaults(**dataclasses.asdict(configuration.defaults)),
        loading=loading_to_proto(configuration.loading),
    )
    if configuration.quantize is not None:
        message.quantize.CopyFrom(quantize_to_proto(configuration.quantize))
    return message


def configuration_from_proto(message: pb.Configuration) -> Configuration:
    """Read a configuration; unset parts get the contract's defaults.

    Raises:
        ValueError: as the readers of its parts.
    """
    has_backend = message.HasField("attention_backend")
    return Configuration(
        revision=message.revision,
        cache=cache_from_proto(message.cache) if message.HasField("cache") else CacheSettings(),
        parallelism=parallelism_from_proto(message.parallelism),
        quantize=quantize_from_proto(message.quantize) if message.HasField("quantize") else None,
        attention_backend=message.attention_backend if has_backend else None,
        defaults=defaults_from_proto(message.defaults),
        loading=loading_from_proto(message.loading),
    )


def defaults_from_proto(message: pb.GenerationDefaults) -> GenerationDefaults:
    """Read defaults."""
    return GenerationDefaults(**_read(message))


def _tag(value: msgspec.Struct) -> str:
    return str(value.__struct_config__.tag)


def _fill(message: Message, values: dict[str, Any]) -> None:
    """Set the fields of the same names; None stays unset."""
    for name, value in values.items():
        if value is None:
            continue
        if name == _MASK and isinstance(value, str):
            name = _POLICY  # noqa: PLW2901 (one option, two fields)
        field = message.DESCRIPTOR.fields_by_name[name]
        if field.is_repeated:
            getattr(message, name).extend(value)
        else:
            enum = cast("EnumDescriptor | None", field.enum_type)
            setattr(message, name, value if enum is None else to_number(enum, value))


def _read(message: Message, *, without: Iterable[str] = ()) -> dict[str, Any]:
    """Give the fields that are set, with words for enums and tuples for lists."""
    values = {
        field.name: _field(message, field)
        for field, _ in message.ListFields()
        if field.name not in without
    }
    policy = values.pop(_POLICY, None)
    if policy is not None:
        values.setdefault(_MASK, policy)
    return _set(values)


def _field(message: Message, field: FieldDescriptor) -> object:
    value = getattr(message, field.name)
    if field.is_repeated:
        return tuple(value)
    if field.enum_type is None:
        return value
    try:
        return to_word(field.enum_type, value)
    except KeyError:
        raise ValueError(f"{field.name}: this version knows no value {value}") from None


def _fill_quantize(
    message: pb.QuantizeConfig, settings: QuantizeSettings | ComponentQuantization, skip: str
) -> None:
    names = {field.name for field in dataclasses.fields(settings)} - {skip}
    values = {name: getattr(settings, name) for name in names}
    layers = values.pop("exclude_layers")
    if layers is not None:
        message.exclude_layers.SetInParent()
        message.exclude_layers.names.extend(layers)
    message.precision_plan.update(dict(values.pop("precision_plan") or ()))
    svdq = values.pop("svdq_kwargs")
    if svdq is not None:
        message.svdq_kwargs.SetInParent()
        _fill(message.svdq_kwargs, _NULL_AS_ZERO | _set(dataclasses.asdict(svdq)))
    _fill(message, values)


def _read_quantize(message: pb.QuantizeConfig) -> dict[str, Any]:
    special = ("exclude_layers", "precision_plan", "svdq_kwargs", "components_to_quantize")
    options = _read(message, without=special)
    if "backend" in options:
        options["backend"] = options["backend"].upper()
    if message.HasField("exclude_layers"):
        options["exclude_layers"] = tuple(message.exclude_layers.names)
    if message.precision_plan:
        options["precision_plan"] = tuple(sorted(message.precision_plan.items()))
    if message.HasField("svdq_kwargs"):
        svdq = _read(message.svdq_kwargs)
        nulls = {name: None for name, zero in _NULL_AS_ZERO.items() if svdq.get(name) == zero}
        svdq.update(nulls)
        options["svdq_kwargs"] = SvdqKwargs(**svdq)
    return options


def _set(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _whole(value: KeywordValue) -> KeywordValue:
    is_whole = isinstance(value, float) and value.is_integer()
    return int(cast("float", value)) if is_whole else value
