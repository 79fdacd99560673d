"""Reads the `quantize_config` section of a settings file, with what it nests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import msgspec

from ditcast_runtime.settings.problems import Problem
from ditcast_runtime.settings.quantize import (
    ComponentQuantization,
    QuantizeSettings,
    SvdqKwargs,
)
from ditcast_runtime.settings.reading import (
    Entry,
    Section,
    read_options,
    read_pairs,
    read_section,
    read_value,
    refuse_unknown,
)

T = TypeVar("T", QuantizeSettings, ComponentQuantization)

NESTED = ("component", "components_to_quantize", "precision_plan", "svdq_kwargs")
FUNCTIONS = ("filter_fn", "calibrate_fn")
SCALARS = {name: name for name in QuantizeSettings.__dataclass_fields__ if name not in NESTED}
SVDQ_KEYS = {name: name for name in SvdqKwargs.__dataclass_fields__}


def read_quantize(section: Section, problems: list[Problem]) -> QuantizeSettings:
    """Read how weights are quantised."""
    components = section.pop("components_to_quantize", None)
    settings = _read_common(section, QuantizeSettings(), problems)
    refuse_unknown(section, (*SCALARS, *NESTED[1:]), problems)
    if components is None or components.value is None:
        return settings
    return replace(settings, components_to_quantize=_read_components(components, problems))


def _read_common(section: Section, start: T, problems: list[Problem]) -> T:
    """Read what the whole and a component have in common, functions refused."""
    for name in FUNCTIONS:
        entry = section.pop(name, None)
        if entry is not None and entry.value is not None:
            problems.append(Problem(entry.place, "a file has no way to hold a function"))
    plan = read_pairs(section, "precision_plan", str, problems)
    if plan is not None:
        start = replace(start, precision_plan=msgspec.convert(plan, tuple[tuple[str, str], ...]))
    svdq = section.pop("svdq_kwargs", None)
    if svdq is not None and svdq.value is not None:
        inner = read_section(svdq.value, svdq.place, problems)
        start = replace(start, svdq_kwargs=read_options(inner, SvdqKwargs, SVDQ_KEYS, problems))
        refuse_unknown(inner, SVDQ_KEYS, problems)
    return _read_scalars(section, start, problems)


def _read_scalars(section: Section, start: T, problems: list[Problem]) -> T:
    """Read the options that nest nothing, into a copy of `start`."""
    present = {key for key in SCALARS if key in section and section[key].value is not None}
    read = read_options(section, QuantizeSettings, SCALARS, problems)
    return replace(start, **{name: getattr(read, name) for name in present})


def _read_components(entry: Entry, problems: list[Problem]) -> tuple[ComponentQuantization, ...]:
    """Read the list of names, or the mapping of names to what differs, sorted by name."""
    if not isinstance(entry.value, Mapping):
        names = read_value(entry, tuple[str, ...], problems)
        if not isinstance(names, tuple):
            return ()
        overrides: Section = {name: Entry(f"{entry.place}.{name}", None) for name in names}
    else:
        overrides = read_section(entry.value, entry.place, problems)
    if not overrides:
        problems.append(Problem(entry.place, "it names no component: leave it out"))
    return tuple(_read_component(name, item, problems) for name, item in sorted(overrides.items()))


def _read_component(name: str, entry: Entry, problems: list[Problem]) -> ComponentQuantization:
    """Read what differs for one component."""
    section = read_section(entry.value, entry.place, problems)
    component = _read_common(section, ComponentQuantization(component=name), problems)
    refuse_unknown(section, (*SCALARS, *NESTED[2:]), problems)
    return component
