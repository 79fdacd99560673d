"""Checks `pipeline_kwargs` against the signature of the loaded pipeline.

A Struct knows only doubles, so whole numbers become int here, where the pipeline wants them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from ditcast_runtime.generation import FRAME_COUNTS, FRAME_RATES, KeywordValue, Scalar
from ditcast_runtime.messages import Facts, ParameterFact, ParameterKind
from ditcast_runtime.settings import Problem
from ditcast_runtime.settings.problems import nearest

LARGEST_EXACT = 2**53
"""Beyond it a double skips whole numbers, so what was meant cannot be known."""

_PREFIX = "pipeline_kwargs"

_OWN_FIELDS = {
    "num_images_per_prompt": "num_images",
    "num_videos_per_prompt": "num_images",
    "image": "images",
    "mask_image": "images",
    **dict.fromkeys(FRAME_COUNTS, "num_frames"),
    **dict.fromkeys(FRAME_RATES, "fps"),
}
"""Request fields that are not called what the pipeline calls them."""

_NEVER = frozenset(
    {"generator", "latents", "output_type", "return_dict", "callback", "callback_steps"}
)
_NEVER_PARTS = ("embeds", "callback_on_step_end", "latents")

_SCALARS = {
    ParameterKind.BOOL: bool,
    ParameterKind.STR: str,
}
_LISTS = {
    ParameterKind.BOOL_LIST: ParameterKind.BOOL,
    ParameterKind.INT_LIST: ParameterKind.INT,
    ParameterKind.FLOAT_LIST: ParameterKind.FLOAT,
    ParameterKind.STR_LIST: ParameterKind.STR,
}


def resolve_arguments(
    given: Mapping[str, KeywordValue], facts: Facts, problems: list[Problem]
) -> dict[str, KeywordValue]:
    """Give the arguments with the types that the pipeline takes, and add what is wrong."""
    known = {fact.name: fact for fact in facts.parameters}
    resolved: dict[str, KeywordValue] = {}
    for name, value in given.items():
        try:
            resolved[name] = _value(_fact(name, known), value)
        except ValueError as error:
            problems.append(Problem(f"{_PREFIX}.{name}", str(error)))
    problems += [
        Problem(f"{_PREFIX}.{fact.name}", "the pipeline requires it")
        for fact in facts.parameters
        if fact.required and fact.in_pipeline_kwargs and fact.name not in given
    ]
    return resolved


def _fact(name: str, known: Mapping[str, ParameterFact]) -> ParameterFact:
    """Find the parameter, or say why a request cannot set it."""
    fact = known.get(name)
    pictures = fact is not None and {ParameterKind.IMAGE, ParameterKind.IMAGE_LIST} & {*fact.kinds}
    own = "images" if pictures else _OWN_FIELDS.get(name)
    if own or (fact is not None and not fact.in_pipeline_kwargs):
        raise ValueError(f"it has a field of its own in the request: {own or name}")
    if name in _NEVER or any(part in name for part in _NEVER_PARTS):
        raise ValueError("a request cannot set it")
    if fact is None:
        takes = [each.name for each in known.values() if each.in_pipeline_kwargs]
        raise ValueError(f"the pipeline takes no such argument{nearest(name, takes)}")
    return fact


def _value(fact: ParameterFact, value: KeywordValue) -> KeywordValue:
    """Convert to the first type that fits."""
    if value is None:
        if fact.nullable:
            return None
        raise ValueError("it cannot be null")
    if isinstance(value, list):
        return _list(fact, value)
    scalars = [kind for kind in fact.kinds if kind not in _LISTS]
    return _scalar(scalars, value, any_type=not fact.kinds, wanted=_wanted(fact))


def _list(fact: ParameterFact, values: list[bool | int | float | str]) -> KeywordValue:
    elements = [_LISTS[kind] for kind in fact.kinds if kind in _LISTS]
    if fact.kinds and not elements:
        raise ValueError(f"it is a list, but the pipeline takes {_wanted(fact)}")
    return [
        _scalar(elements, value, any_type=not fact.kinds, wanted=_wanted(fact)) for value in values
    ]


def _scalar(
    kinds: list[ParameterKind], value: Scalar, *, any_type: bool, wanted: str
) -> bool | int | float | str:
    if isinstance(value, (bool, str)):
        if any_type or any(_SCALARS.get(kind) is type(value) for kind in kinds):
            return value
        raise ValueError(f"{value!r:.60} has the wrong type: the pipeline takes {wanted}")
    if not math.isfinite(value):
        raise ValueError(f"{value} is no finite number")
    if (any_type or ParameterKind.INT in kinds) and float(value).is_integer():
        if abs(value) > LARGEST_EXACT:
            raise ValueError(f"{value:.0f} is beyond 2^53, where whole numbers are no longer exact")
        return int(value)
    if any_type or ParameterKind.FLOAT in kinds:
        return float(value)
    raise ValueError(f"{value} has the wrong type: the pipeline takes {wanted}")


def _wanted(fact: ParameterFact) -> str:
    return " or ".join(fact.kinds) + (" or null" if fact.nullable else "")
