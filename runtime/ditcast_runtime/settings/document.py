"""All that one cache-dit file holds, out of its mapping and back into it.

`parse_acceleration` takes what cache-dit's `load_configs` takes, older forms too, and refuses what
that would drop in silence. `dump_acceleration` writes the current form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import msgspec

from ditcast_runtime.settings.cache import (
    CACHE_SPELLINGS,
    DMD,
    CacheMethod,
    CacheSettings,
    Calibrator,
    DBCache,
    DBPrune,
    Disabled,
    FoCa,
    TaylorSeer,
    cache_options,
    calibrator_options,
)
from ditcast_runtime.settings.parallelism import (
    AUTO_DEGREE,
    DEGREES,
    SPELLINGS,
    ExtraValue,
    ParallelismSettings,
    shared_options,
)
from ditcast_runtime.settings.problems import INT32_MAX, Problem, SettingsError, shown
from ditcast_runtime.settings.quantize import QuantizeSettings, quantize_options
from ditcast_runtime.settings.quantize_file import read_quantize
from ditcast_runtime.settings.reading import (
    Entry,
    Section,
    read_options,
    read_pairs,
    read_section,
    read_value,
    refuse_unknown,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Acceleration:
    """How a pipeline is accelerated: what one cache-dit file holds."""

    cache: CacheSettings = field(default_factory=CacheSettings)
    """Caching; disabled where the file has no `cache_config`."""
    parallelism: ParallelismSettings | None = None
    """None: the file leaves it to `resolve_parallelism`."""
    quantize: QuantizeSettings | None = None
    """None: weights stay as they are."""
    attention_backend: str | None = None
    """Attention implementation. None: the pipeline's own choice."""


SECTIONS = ("cache_config", "parallelism_config", "quantize_config", "attention_backend")
METHODS: dict[str, type[DBCache | DBPrune | Disabled]] = {
    "DBCache": DBCache,
    "DBPrune": DBPrune,
    "NONE": Disabled,
}
"""`cache_type` in files. cache-dit's own loader stumbles over DBPrune (it keeps the text where
its code compares with an enum) and refuses NONE, which its enum has."""

SWITCHES: dict[str, type[TaylorSeer | DMD | FoCa]] = {
    "enable_taylorseer": TaylorSeer,
    "enable_dmd": DMD,
    "enable_foca": FoCa,
}
CALIBRATOR_KEYS = {
    "enable_taylorseer": {
        "enable_encoder_calibrator": "enable_encoder_taylorseer",
        "calibrator_cache_type": "taylorseer_cache_type",
        "taylorseer_order": "taylorseer_order",
    },
    "enable_dmd": {
        "enable_encoder_calibrator": "enable_encoder_dmd",
        "calibrator_cache_type": "calibrator_cache_type",
        "dmd_history": "dmd_history",
        "dmd_rank": "dmd_rank",
        "dmd_ridge": "dmd_ridge",
        "dmd_svd_precision": "dmd_svd_precision",
    },
    "enable_foca": {
        "enable_encoder_calibrator": "enable_encoder_foca",
        "calibrator_cache_type": "calibrator_cache_type",
    },
}
"""Field to key, by the switch in the file."""

ENCODER_IN_FILES = {"enable_taylorseer": False, "enable_dmd": True, "enable_foca": False}
"""What an unset `enable_encoder_*` means in a file; in cache-dit's classes it is always True."""

DEPRECATED = {
    "experimental_ulysses_anything": "ulysses_anything",
    "experimental_ulysses_float8": "ulysses_float8",
    "experimental_ulysses_async": "ulysses_async",
}
ALIASES = {"ulysses": "ulysses_size", "ring": "ring_size", "tp": "tp_size"}
PARALLEL_KEYS = {
    name: name
    for name in ParallelismSettings.__dataclass_fields__
    if name not in (*DEGREES, "extra_parallel_kwargs")
}
AUTO = "auto"


def parse_acceleration(data: object, source: str = "") -> Acceleration:
    """Make settings of what a file in cache-dit's format holds.

    Args:
        data: The file's content as mappings, lists and scalars.
        source: Where it comes from, for messages.

    Raises:
        SettingsError: With everything that is wrong: unknown keys, wrong types, contradictions.
    """
    problems: list[Problem] = []
    if not isinstance(data, Mapping):
        kind = "it is empty" if data is None else "it is no mapping"
        raise SettingsError(
            (Problem("(file)", f"{kind}: expected cache_config and its kin"),), source
        )
    root = read_section(data, "", problems)
    if any(section in root for section in SECTIONS):
        acceleration = _read_sections(root, problems)
    else:
        cache = _read_cache(root, problems, also_known=SECTIONS)
        acceleration = Acceleration(cache=cache)
    if problems:
        raise SettingsError(tuple(dict.fromkeys(problems)), source)
    return acceleration


def _read_sections(root: Section, problems: list[Problem]) -> Acceleration:
    """Read the form with sections."""
    acceleration = Acceleration()
    for name, entry in [(name, root.pop(name)) for name in SECTIONS if name in root]:
        if entry.value is None:
            continue
        if name == "attention_backend":
            value = read_value(entry, str, problems)
            acceleration = replace(
                acceleration, attention_backend=value if isinstance(value, str) else None
            )
            continue
        section = read_section(entry.value, entry.place, problems)
        if name == "cache_config":
            acceleration = replace(acceleration, cache=_read_cache(section, problems))
        elif name == "parallelism_config":
            acceleration = replace(acceleration, parallelism=_read_parallelism(section, problems))
        else:
            acceleration = replace(acceleration, quantize=read_quantize(section, problems))
    cache_keys = (*_cache_keys(DBPrune).values(), *SWITCHES, *_calibrator_keys())
    misplaced = {key: f"cache_config.{key}" for key in cache_keys}
    refuse_unknown(root, SECTIONS, problems, ours=misplaced)
    return acceleration


def _cache_keys(cls: type[DBCache | DBPrune | Disabled]) -> dict[str, str]:
    """Give field name to key of a method."""
    return {name: CACHE_SPELLINGS.get(name, name) for name in cls.__struct_fields__}


def _read_cache(
    section: Section, problems: list[Problem], also_known: tuple[str, ...] = ()
) -> CacheSettings:
    """Read caching, method and calibrator, out of the options of `cache_config`."""
    cls = _read_method(section, problems)
    calibrator = _read_calibrator(section, problems)
    keys = _cache_keys(cls)
    method: CacheMethod = read_options(section, cls, keys, problems)
    known = ("cache_type", *keys.values(), *_calibrator_keys(), *SWITCHES, *also_known)
    refuse_unknown(section, known, problems, ours=CACHE_SPELLINGS)
    return CacheSettings(method=method, calibrator=calibrator)


def _read_method(section: Section, problems: list[Problem]) -> type[DBCache | DBPrune | Disabled]:
    """Find the method that `cache_type` names; unset is DBCache, as in cache-dit."""
    entry = section.pop("cache_type", None)
    if entry is None or entry.value is None:
        return DBCache
    cls = METHODS.get(entry.value) if isinstance(entry.value, str) else None
    if cls is None:
        problems.append(
            Problem(entry.place, f"{shown(entry.value)} is none of {', '.join(METHODS)}")
        )
        return DBPrune  # knows every option, so that no further problem is made up
    return cls


def _calibrator_keys() -> list[str]:
    """Give all keys of calibrators, each once."""
    return list(dict.fromkeys(key for keys in CALIBRATOR_KEYS.values() for key in keys.values()))


def _read_calibrator(section: Section, problems: list[Problem]) -> Calibrator | None:
    """Read the one calibrator that is switched on; those that are off may keep their options."""
    entries = {switch: section.pop(switch) for switch in SWITCHES if switch in section}
    on = [
        switch
        for switch, entry in entries.items()
        if entry.value is not None and read_value(entry, bool, problems) is True
    ]
    for switch in on[1:]:
        reason = f"{on[0]} is true already: only one calibrator can be"
        problems.append(Problem(entries[switch].place, reason))
    calibrator: Calibrator | None = None
    options = {key: section.pop(key) for key in _calibrator_keys() if key in section}
    for switch, cls in SWITCHES.items():
        keys = CALIBRATOR_KEYS[switch]
        encoder = keys["enable_encoder_calibrator"]
        own = {key: options[key] for key in keys.values() if key in options}
        unset = encoder not in own or own[encoder].value is None
        found: Calibrator = read_options(own, cls, keys, problems)
        if switch not in on:
            continue
        if unset:
            found = msgspec.structs.replace(
                found, enable_encoder_calibrator=ENCODER_IN_FILES[switch]
            )
        calibrator = found
    cache_type = options.get("calibrator_cache_type")
    if (
        isinstance(calibrator, TaylorSeer)
        and cache_type is not None
        and cache_type.value is not None
    ):
        reason = "TaylorSeer does not read it: did you mean taylorseer_cache_type?"
        problems.append(Problem(cache_type.place, reason))
    return calibrator


def _read_parallelism(section: Section, problems: list[Problem]) -> ParallelismSettings:
    """Read parallelism, the older `parallel_kwargs` and the short names of the degrees too."""
    nested = section.pop("parallel_kwargs", None)
    if nested is not None:
        older = read_section(nested.value, nested.place, problems)
        _move(older, DEPRECATED, older, problems)
        _move(older, {key: key for key in older}, section, problems)
    _move(section, ALIASES, section, problems)
    extra = read_pairs(section, "extra_parallel_kwargs", ExtraValue, problems)
    settings = read_options(section, ParallelismSettings, PARALLEL_KEYS, problems)
    settings = _read_degrees(section, settings, problems)
    _refuse_ray(section, problems)
    known = (*PARALLEL_KEYS, *SPELLINGS.values(), "extra_parallel_kwargs", "parallel_kwargs")
    refuse_unknown(section, known, problems, ours=SPELLINGS)
    pairs = msgspec.convert(extra or (), tuple[tuple[str, ExtraValue], ...])
    return replace(settings, extra_parallel_kwargs=pairs)


def _move(
    section: Section, names: dict[str, str], target: Section, problems: list[Problem]
) -> None:
    """Put entries under their current key, refusing two values for one option."""
    for name, key in names.items():
        entry = section.pop(name, None)
        if entry is None:
            continue
        other = target.setdefault(key, entry)
        if other.value != entry.value:
            reason = f"it contradicts {other.place}, which is {shown(other.value)}"
            problems.append(Problem(entry.place, reason))


def _read_degrees(
    section: Section, settings: ParallelismSettings, problems: list[Problem]
) -> ParallelismSettings:
    """Read the degrees. A section that names none leaves Ulysses to take all ranks."""
    entries = {name: section.pop(SPELLINGS[name], None) for name in DEGREES}
    given = {name: entry for name, entry in entries.items() if entry and entry.value is not None}
    if not given:
        return replace(settings, ulysses_degree=AUTO_DEGREE)
    degrees = {name: _read_degree(entry, problems) for name, entry in given.items()}
    return replace(
        settings,
        ulysses_degree=degrees.get("ulysses_degree", 1),
        ring_degree=degrees.get("ring_degree", 1),
        tensor_parallel_degree=degrees.get("tensor_parallel_degree", 1),
    )


def _read_degree(entry: Entry, problems: list[Problem]) -> int:
    """Read one degree: a whole number, or "auto"."""
    value = entry.value
    if isinstance(value, str) and value.lower() == AUTO:
        return AUTO_DEGREE
    if type(value) is int and 1 <= value <= INT32_MAX:
        return value
    reason = f"{shown(value)} is no degree: it must be a whole number from 1, or auto"
    problems.append(Problem(entry.place, reason))
    return 1


def _refuse_ray(section: Section, problems: list[Problem]) -> None:
    """Refuse cache-dit's other way of starting ranks, unless it is off."""
    if (entry := section.get("use_ray")) is not None and entry.value in (None, False):
        del section["use_ray"]
    for key in [key for key in section if key.startswith(("use_ray", "ray_"))]:
        reason = "ranks are started by this server, not by Ray: leave it out"
        problems.append(Problem(section.pop(key).place, reason, "unsupported"))


def dump_acceleration(acceleration: Acceleration) -> dict[str, object]:
    """Give the settings in cache-dit's current format: mappings, lists and scalars only.

    `parse_acceleration` makes the same settings of it. Everything that is set is written out, so
    that a file means the same under another version's defaults.
    """
    document: dict[str, object] = {}
    if acceleration.parallelism is not None:
        document["parallelism_config"] = _dump_parallelism(acceleration.parallelism)
    if acceleration.quantize is not None:
        document["quantize_config"] = quantize_options(acceleration.quantize)
    if acceleration.attention_backend is not None:
        document["attention_backend"] = acceleration.attention_backend
    cache = _dump_cache(acceleration.cache)
    # A missing section is how cache-dit says "no caching"; alone it has no way to say that.
    if not document or acceleration.cache != CacheSettings(method=Disabled()):
        document = {"cache_config": cache, **document}
    return document


def _dump_cache(settings: CacheSettings) -> dict[str, object]:
    """Write caching as the options of `cache_config`."""
    section: dict[str, object] = {}
    if not isinstance(settings.method, DBCache):
        section["cache_type"] = "DBPrune" if isinstance(settings.method, DBPrune) else "NONE"
    section |= cache_options(settings)
    for switch, cls in SWITCHES.items():
        if isinstance(settings.calibrator, cls):
            keys = CALIBRATOR_KEYS[switch]
            options = calibrator_options(settings)
            section |= {switch: True} | {keys[name]: value for name, value in options.items()}
    return section


def _dump_parallelism(settings: ParallelismSettings) -> dict[str, object]:
    """Write parallelism with all its degrees, as a section without any means "auto"."""
    degrees = {SPELLINGS[name]: getattr(settings, name) for name in DEGREES}
    written = {key: AUTO if value == AUTO_DEGREE else value for key, value in degrees.items()}
    return {**written, **shared_options(settings)}
