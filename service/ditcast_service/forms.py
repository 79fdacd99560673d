"""In which forms outputs can be delivered, and how many frames a video has at what rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ditcast_runtime.config import EngineConfig, GenerationDefaults
from ditcast_runtime.generation import (
    FRAME_COUNTS,
    FRAME_RATES,
    AskedOutput,
    OutputFormat,
    OutputOptions,
    Request,
)
from ditcast_runtime.messages import Facts, ParameterFact, ParameterKind
from ditcast_runtime.settings import Problem

DEFAULT_FPS = 16.0
"""Frames a second where neither the request nor the configuration nor the pipeline says."""

MAX_FPS = 240.0

_PICTURES = (OutputFormat.PNG, OutputFormat.JPEG, OutputFormat.WEBP, OutputFormat.RAW_RGB8)
_VIDEOS = (OutputFormat.MP4, OutputFormat.RAW_RGB8)
_WITH_QUALITY = (OutputFormat.JPEG, OutputFormat.WEBP, OutputFormat.MP4)


def formats(facts: Facts) -> tuple[OutputFormat, ...]:
    """List the forms of this pipeline's outputs, the default first."""
    decoded = _VIDEOS if facts.makes_videos else _PICTURES
    return (*decoded, OutputFormat.LATENT_SAFETENSORS) if facts.latents_out else decoded


def resolve_output(
    asked: AskedOutput, facts: Facts, size: tuple[int, int], problems: list[Problem]
) -> OutputOptions:
    """Settle the form and quality of outputs of this size, and add what is wrong."""
    possible = formats(facts)
    form = asked.format or possible[0]
    if form not in possible:
        problems.append(Problem("output.format", _why_not(form, facts, possible)))
    elif form is OutputFormat.MP4:
        problems += [
            Problem(name, f"{side} is odd, and {form} keeps colour at half of each side")
            for name, side in zip(("width", "height"), size, strict=True)
            if side % 2
        ]
    if asked.quality is None:
        return OutputOptions(format=form)
    if form not in _WITH_QUALITY:
        reason = f"{form} has none: only jpeg, webp and mp4 have"
        problems.append(Problem("output.quality", reason))
    elif not 1 <= asked.quality <= 100:  # noqa: PLR2004 (the contract's range)
        problems.append(Problem("output.quality", f"{asked.quality} is out of range: 1 to 100"))
    return OutputOptions(format=form, quality=asked.quality)


def _why_not(form: OutputFormat, facts: Facts, possible: Sequence[OutputFormat]) -> str:
    kind = "videos" if facts.makes_videos else "pictures"
    reason = f"{form}: the loaded pipeline makes {kind}"
    if form is OutputFormat.LATENT_SAFETENSORS:
        reason = f"{form}: the loaded pipeline cannot give its latents"
    return f"{reason}; possible are {', '.join(possible)}"


def resolve_num_frames(
    request: Request,
    facts: Facts,
    config: EngineConfig,
    defaults: GenerationDefaults,
    problems: list[Problem],
) -> int | None:
    """Settle the frames of a video, and add what is wrong; None: not a video."""
    fact = frames_fact(facts)
    given = request.num_frames
    if fact is None or not facts.makes_videos:
        if given is not None:
            what = "has no parameter for it" if facts.makes_videos else "makes pictures"
            problems.append(Problem("num_frames", f"the loaded pipeline {what}"))
        return None
    count = next((n for n in (given, defaults.num_frames, fact.default) if n is not None), None)
    if not isinstance(count, int):
        problems.append(Problem("num_frames", "it is required: the pipeline has no default"))
        return None
    step = facts.num_frames_step
    if not 1 <= count <= config.max_frames:
        reason = f"{count} frames are out of range: 1 to {config.max_frames}"
        problems.append(Problem("num_frames", reason))
    elif (count - 1) % step:
        lower = count - (count - 1) % step
        reason = f"{count} less one is no multiple of {step}; the nearest are {lower}"
        problems.append(Problem("num_frames", f"{reason} and {lower + step}"))
    return count


def resolve_fps(
    request: Request, facts: Facts, defaults: GenerationDefaults, problems: list[Problem]
) -> float | None:
    """Settle the frames a second of a video, and add what is wrong; None: not a video."""
    given = request.fps
    if not facts.makes_videos:
        if given is not None:
            problems.append(Problem("fps", "the loaded pipeline makes pictures"))
        return None
    fact = rate_fact(facts)
    own = fact.default if fact is not None and isinstance(fact.default, (int, float)) else None
    fps = next(rate for rate in (given, defaults.fps, own, DEFAULT_FPS) if rate is not None)
    if not (math.isfinite(fps) and 0 < fps <= MAX_FPS):
        problems.append(Problem("fps", f"{fps:g} is out of range: over 0 to {MAX_FPS:g}"))
    elif fact is not None and ParameterKind.FLOAT not in fact.kinds and fps % 1:
        problems.append(Problem("fps", f"{fps:g} is no whole number, which the pipeline counts in"))
    return float(fps)


def check_video_defaults(
    defaults: GenerationDefaults, facts: Facts, config: EngineConfig
) -> list[Problem]:
    """Find what is wrong with defaults of videos: what would be with a request for the same."""
    asked = Request(prompt="", num_frames=defaults.num_frames, fps=defaults.fps)
    problems: list[Problem] = []
    if defaults.num_frames is not None:
        resolve_num_frames(asked, facts, config, GenerationDefaults(), problems)
    if defaults.fps is not None:
        resolve_fps(asked, facts, GenerationDefaults(), problems)
    return problems


def frames_fact(facts: Facts) -> ParameterFact | None:
    """Find the parameter that takes the number of frames."""
    return next((fact for fact in facts.parameters if fact.name in FRAME_COUNTS), None)


def rate_fact(facts: Facts) -> ParameterFact | None:
    """Find the parameter that takes the frames a second."""
    return next((fact for fact in facts.parameters if fact.name in FRAME_RATES), None)
