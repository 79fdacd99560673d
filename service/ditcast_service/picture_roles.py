"""Which parameter of the pipeline each input picture goes to: by its role, and rules of names."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from ditcast_runtime.generation import ImageRole, ImageUse, InputImage
from ditcast_runtime.messages import Facts, ParameterFact, ParameterKind
from ditcast_runtime.settings import Problem
from ditcast_runtime.settings.problems import nearest

_FIRST_NAMES = {
    ImageRole.IMAGE: ("image",),
    ImageRole.MASK: ("mask_image", "mask"),
    ImageRole.CONTROL: ("control_image",),
    ImageRole.LAST_FRAME: ("last_image", "end_image", "last_frame"),
}
_PARTS = {
    ImageRole.IMAGE: "",
    ImageRole.MASK: "mask",
    ImageRole.CONTROL: "control",
    ImageRole.LAST_FRAME: "last_",
}
"""Where no parameter has the usual name: what the only one that is meant has in its name."""


def taking_pictures(facts: Facts) -> list[ParameterFact]:
    """List the parameters that take pictures."""
    kinds = {ParameterKind.IMAGE, ParameterKind.IMAGE_LIST}
    return [fact for fact in facts.parameters if kinds & set(fact.kinds)]


def roles(facts: Facts) -> list[ImageRole]:
    """List the roles that the pipeline has a parameter for."""
    return [role for role in ImageRole if by_role(role, facts) is not None]


def by_role(role: ImageRole, facts: Facts) -> ParameterFact | None:
    """Find the parameter that a role stands for; None where there is none, or no telling."""
    takers = taking_pictures(facts)
    for name in _FIRST_NAMES[role]:
        for fact in takers:
            if fact.name == name:
                return fact
    others = [part for each, part in _PARTS.items() if each is not role and part]
    if role is ImageRole.IMAGE:
        meant = [fact for fact in takers if not any(part in fact.name for part in others)]
        meant = [fact for fact in meant if "ip_adapter" not in fact.name]
    elif role is ImageRole.MASK:
        meant = [fact for fact in takers if "mask" in fact.name]
    else:
        part = _PARTS[role]
        meant = [fact for fact in takers if part in fact.name and "mask" not in fact.name]
    return meant[0] if len(meant) == 1 else None


def resolve_images(
    images: Sequence[InputImage], facts: Facts, problems: list[Problem]
) -> tuple[ImageUse, ...]:
    """Settle where each picture goes, and add what is wrong."""
    takers = taking_pictures(facts)
    uses = []
    counts: Counter[str] = Counter()
    for index, image in enumerate(images):
        fact = _taker(image, facts, f"images[{index}]", problems)
        if fact is None:
            continue
        counts[fact.name] += 1
        if counts[fact.name] > 1 and ParameterKind.IMAGE_LIST not in fact.kinds:
            reason = f"{fact.name} takes one picture, and has one"
            problems.append(Problem(f"images[{index}].parameter", reason))
        uses.append(_use(image, fact.name))
    _check_missing(takers, uses, len(images), facts, problems)
    _check_masks(images, problems)
    return tuple(uses)


def size_like(uses: Sequence[ImageUse], facts: Facts) -> tuple[int, int] | None:
    """Give the size that suits the picture to start from, where there is one.

    It has the picture's own sides, made smaller to the pixels of the pipeline's default size if it
    has more and the pipeline can be told a size, and cut down to multiples that can be made.
    """
    lead = next((use for use in uses if use.role in _LEADING and use.width), None)
    if lead is None:
        return None
    scale = 1.0
    resizes = any(fact.name == "width" for fact in facts.parameters)
    if resizes and facts.default_width and facts.default_height:
        usual = facts.default_width * facts.default_height
        scale = min(1.0, math.sqrt(usual / (lead.width * lead.height)))
    unit = facts.size_multiple
    width, height = (max(unit, int(s * scale) // unit * unit) for s in (lead.width, lead.height))
    return width, height


_LEADING = (ImageRole.IMAGE, ImageRole.CONTROL)


def _taker(
    image: InputImage, facts: Facts, place: str, problems: list[Problem]
) -> ParameterFact | None:
    takers = taking_pictures(facts)
    names = [fact.name for fact in takers]
    if image.parameter:
        found = next((fact for fact in takers if fact.name == image.parameter), None)
        if found is None:
            hint = nearest(image.parameter, names) or f"; it takes {', '.join(names)}"
            reason = f"the loaded pipeline takes no picture as {image.parameter!r}{hint}"
            problems.append(Problem(f"{place}.parameter", reason))
        return found
    found = by_role(image.role, facts)
    if found is None:
        reason = f"the loaded pipeline has no one parameter for this role, {image.role}"
        hint = f"; name one in {place}.parameter: {', '.join(names)}"
        problems.append(Problem(f"{place}.role", reason + hint))
    return found


def _use(image: InputImage, parameter: str) -> ImageUse:
    return ImageUse(
        role=image.role,
        parameter=parameter,
        width=image.width,
        height=image.height,
        mode=image.mode,
        size_bytes=image.size_bytes,
        sha256=image.sha256,
    )


def _check_missing(
    takers: Sequence[ParameterFact],
    uses: Sequence[ImageUse],
    count: int,
    facts: Facts,
    problems: list[Problem],
) -> None:
    """Find required parameters without a picture, unless pictures were lost on the way here."""
    given = {use.parameter for use in uses}
    missing = [fact.name for fact in takers if fact.required and fact.name not in given]
    if not missing or len(uses) < count:
        return
    stands = {fact.name: role for role in roles(facts) if (fact := by_role(role, facts))}
    wanted = ", ".join(
        f"{name} (role {stands[name]})" if name in stands else f"{name} (as its parameter)"
        for name in missing
    )
    problems.append(Problem("images", f"it is required: the pipeline needs a picture as {wanted}"))


def _check_masks(images: Sequence[InputImage], problems: list[Problem]) -> None:
    """Refuse masks of another size than the picture that they belong to."""
    lead = next((image for image in images if image.role is ImageRole.IMAGE and image.width), None)
    if lead is None:
        return
    for index, image in enumerate(images):
        other = (image.width, image.height) != (lead.width, lead.height)
        if image.role is ImageRole.MASK and image.width and other:
            sizes = f"{image.width}x{image.height}, but the image is {lead.width}x{lead.height}"
            problems.append(Problem(f"images[{index}].data", f"the mask is {sizes}"))
