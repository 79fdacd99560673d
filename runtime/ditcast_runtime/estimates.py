"""How long generations are likely to take, from measured durations: no clock, no tasks.

A generation keeps the ranks for its preparation, its steps, its decoding, and what lies between
generations. Each part is measured under its own kind: what makes it take equally long. Of a kind
that never ran there is only a guess, scaled by pixels, images and passes from those that did.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from ditcast_runtime.accepted import Generation
from ditcast_runtime.events import CacheDecision
from ditcast_runtime.generation import OutputFormat, Parameters, SeparateCfg, State
from ditcast_runtime.group import RunReport
from ditcast_runtime.messages import Denoising, Ended, Outcome, Step
from ditcast_runtime.settings import Disabled

_REMEMBERED_STEPS = 64
"""Steps of each kind that are kept."""

_REMEMBERED_RUNS = 8
"""Generations of each kind that are kept: few, to go with a machine that gets slower or faster."""

_KINDS = 1024
"""Kinds remembered; the oldest goes first, so that odd sizes cannot fill the memory."""

_ENOUGH_STEPS = 3
"""Computed steps of a kind after which the watchdog trusts their median."""

_ENOUGH_RUNS = 2
"""Generations of a kind after which they count as measured: the first of a size is often slow."""


class Durations:
    """Measured seconds by kind, the newest so many of each."""

    def __init__(self, remembered: int) -> None:
        self._remembered = remembered
        self._seconds: dict[Hashable, deque[float]] = {}
        self._medians: dict[Hashable, float] = {}

    def record(self, kind: Hashable, seconds: float) -> None:
        """Remember one measurement."""
        if kind not in self._seconds and len(self._seconds) >= _KINDS:
            oldest = next(iter(self._seconds))
            del self._seconds[oldest]
            self._medians.pop(oldest, None)
        self._seconds.setdefault(kind, deque(maxlen=self._remembered)).append(seconds)
        self._medians.pop(kind, None)

    def median(self, kind: Hashable, least: int = 1) -> float | None:
        """Give the lower median of a kind once at least so many are known."""
        known = self._seconds.get(kind, ())
        if len(known) < least:
            return None
        if kind not in self._medians:
            self._medians[kind] = statistics.median_low(known)
        return self._medians[kind]

    def mean(self, kind: Hashable) -> float | None:
        """Give the mean of a kind: of steps, where the median would be a cached one."""
        known = self._seconds.get(kind, ())
        return statistics.fmean(known) if known else None


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds that something is likely to take; they add up."""

    seconds: float = 0.0
    measured: float = 0.0
    """The part of `seconds` that was measured on its own kind; the rest is a guess."""
    known: bool = True
    """Whether `seconds` is all of it; False where of some part nothing is known at all."""

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(
            self.seconds + other.seconds, self.measured + other.measured, self.known and other.known
        )

    def without(self, other: Estimate) -> Estimate:
        """Give what is left when one that was added has gone, which may be foretold anew since."""
        seconds, measured = self.seconds - other.seconds, self.measured - other.measured
        return Estimate(max(0.0, seconds), max(0.0, measured), self.known)

    def times(self, count: int) -> Estimate:
        """Give the estimate for so many of the same."""
        return Estimate(self.seconds * count, self.measured * count, self.known)

    def shared(self, groups: int) -> Estimate:
        """Give the estimate for the same work done by so many side by side."""
        return Estimate(self.seconds / groups, self.measured / groups, self.known)

    def less(self, seconds: float) -> Estimate:
        """Give what is left when so much of it has passed."""
        left = max(0.0, self.seconds - seconds)
        return Estimate(left, min(left, self.measured), self.known)


_UNKNOWN = Estimate(known=False)


class Outlook:
    """When those that wait are likely to begin: each takes the ranks that are free first."""

    def __init__(self, free: list[Estimate]) -> None:
        """Begin with when the ranks of each group are free."""
        self._free = free

    @property
    def next(self) -> Estimate:
        """When ranks are free for one more."""
        return min(self._free, key=_seconds)

    def take(self, whole: Estimate) -> Estimate:
        """Give when the next one begins, which keeps its ranks for so long."""
        begins = self.next
        self._free[self._free.index(begins)] = begins + whole
        return begins

    def copy(self) -> Outlook:
        """Give another that can be taken from."""
        return Outlook(self._free.copy())


class Estimates:
    """Learns from the reports of the ranks, and foretells."""

    def __init__(self) -> None:
        self.serving_at = 0.0
        """When ranks that start are likely to serve; in the past while they serve."""
        self.groups = 1
        """How many groups take generations; 1 also while none does."""
        self._separate_cfg = SeparateCfg.NEVER
        self.forget()

    def forget(self) -> None:
        """Drop what was measured: the ranks now run in another way."""
        self._steps = Durations(_REMEMBERED_STEPS)
        self._computed_steps = Durations(_REMEMBERED_STEPS)
        self._runs = Durations(_REMEMBERED_RUNS)

    def serves(self, separate_cfg: SeparateCfg) -> None:
        """Begin with fresh ranks; `separate_cfg` says when they make two passes a step."""
        self._separate_cfg = separate_cfg
        self.serving_at = 0.0

    def taken(self, generation: Generation, now: float) -> None:
        """Begin to count what a generation keeps its ranks for."""
        generation.taken_at = generation.reported_at = now

    def observe(self, generation: Generation, report: RunReport, now: float) -> None:
        """Learn from one report about a generation that runs."""
        parameters, size = generation.parameters, generation.batch_size
        generation.reported_at = now
        if isinstance(report, Denoising):
            generation.prepare_seconds = report.prepare_seconds
        if generation.batch_index > 0:
            return  # It is one call, and the first of the batch stands for it.
        match report:
            case Denoising():
                self._runs.record(self._prepare_kind(parameters, size), report.prepare_seconds)
                self._runs.record("prepare", report.prepare_seconds)
            case Step():
                kind = self._step_kind(parameters, size)
                self._steps.record(kind, report.seconds)
                if _computed(report):
                    self._computed_steps.record(kind, report.seconds)
                per_pixel = report.seconds / self._pass_pixels(parameters) / size
                self._steps.record(("pixel", parameters.cache), per_pixel)
                self._steps.record("pixel", per_pixel)
            case Ended(rank=0):
                self._observe_end(generation, report, now)
            case _:
                pass

    def step_median(self, parameters: Parameters, batch_size: int = 1) -> float | None:
        """Give the median of computed steps of this kind, for the watchdog, once three are known.

        Of a batch of a size of its own: its steps take longer than those of one.

        Where most steps are cached, a multiple of the median of all would be less than one
        computed step takes, and the watchdog would kill ranks that work.
        """
        return self._computed_steps.median(self._step_kind(parameters, batch_size), _ENOUGH_STEPS)

    def whole(self, parameters: Parameters) -> Estimate:
        """Foretell how long a generation keeps the ranks alone, from taking it to being free."""
        steps = self._pace(parameters).times(parameters.num_inference_steps)
        return self._prepare(parameters) + steps + self._decode(parameters) + self._rest()

    def outlook(self, running: Iterable[Generation], now: float) -> Outlook:
        """Foretell how long it takes until ranks take the next, and those after it."""
        pause = Estimate(max(0.0, self.serving_at - now))
        # Of a batch the first stands for all: it is one call.
        calls = (each for each in running if each.batch_index == 0)
        left = sorted((self._left(each, now) for each in calls), key=_seconds)
        idle = [Estimate()] * (self.groups - len(left))
        # What ranks were told of ahead counts in place of what they have still to vote on.
        return Outlook([pause + each for each in (*idle, *left)][-self.groups :])

    def _left(self, running: Generation, now: float) -> Estimate:
        parameters, elapsed = running.parameters, now - running.reported_at
        size = running.batch_size
        after = self._decode(parameters, size) + self._rest()
        pace = self._pace(parameters, size)
        stage = "prepare" if running.state is State.RESTARTING else running.stage
        if stage == "decode":
            return self._decode(parameters, size).less(elapsed) + self._rest()
        if running.state.final and size == 1:
            return pace.less(elapsed)  # It is left at the next boundary.
        if stage == "denoise":
            steps = pace.times(max(0, parameters.num_inference_steps - running.steps_done))
            return steps.less(min(elapsed, pace.seconds)) + after
        steps = pace.times(parameters.num_inference_steps)
        return self._prepare(parameters, size).less(elapsed) + steps + after

    def _observe_end(self, generation: Generation, report: Ended, now: float) -> None:
        parameters, size = generation.parameters, generation.batch_size
        if report.outcome is not Outcome.DONE or generation.attempt > 1 or not report.steps:
            return
        pace = report.denoise_seconds / report.steps
        self._runs.record(("pace", *self._step_kind(parameters, size)), pace)
        self._runs.record(self._decode_kind(parameters, size), report.decode_seconds)
        self._runs.record("decode pixel", report.decode_seconds / _pixels(parameters) / size)
        told = generation.prepare_seconds + report.denoise_seconds + report.decode_seconds
        self._runs.record("rest", max(0.0, now - generation.taken_at - told))

    def _pace(self, parameters: Parameters, size: int = 1) -> Estimate:
        """Foretell one step: the mean over a generation, as cached steps are shorter."""
        kind = self._step_kind(parameters, size)
        pixels = self._pass_pixels(parameters) * size
        alike = self._steps.mean(("pixel", parameters.cache)) or self._steps.mean("pixel")
        scaled = None if alike is None else alike * pixels
        return self._foretell(("pace", *kind), self._steps.mean(kind) or scaled)

    def _prepare(self, parameters: Parameters, size: int = 1) -> Estimate:
        return self._foretell(self._prepare_kind(parameters, size), self._runs.median("prepare"))

    def _decode(self, parameters: Parameters, size: int = 1) -> Estimate:
        alike = self._runs.median("decode pixel")
        scaled = None if alike is None else alike * _pixels(parameters) * size
        return self._foretell(self._decode_kind(parameters, size), scaled)

    def _rest(self) -> Estimate:
        seconds = self._runs.median("rest") or 0.0
        return Estimate(seconds, seconds)

    def _foretell(self, kind: Hashable, guess: float | None) -> Estimate:
        seconds = self._runs.median(kind)
        if seconds is None:
            return _UNKNOWN if guess is None else Estimate(guess)
        measured = self._runs.median(kind, _ENOUGH_RUNS)
        return Estimate(seconds, measured or 0.0)

    def _two_passes(self, parameters: Parameters) -> bool:
        if not isinstance(parameters.cache.method, Disabled):
            return bool(parameters.cache.method.enable_separate_cfg)
        return self._separate_cfg.two_passes(
            negative_prompt=parameters.negative_prompt,
            guidance_scale=parameters.guidance_scale,
            true_cfg_scale=parameters.true_cfg_scale,
        )

    def _pass_pixels(self, parameters: Parameters) -> int:
        return _pixels(parameters) * (2 if self._two_passes(parameters) else 1)

    def _step_kind(self, parameters: Parameters, batch_size: int) -> tuple[Hashable, ...]:
        size = (*_size(parameters), parameters.num_images, batch_size)
        adapters = tuple(sorted(use.weights_digest for use in parameters.adapters))
        return ("step", *size, parameters.cache, self._two_passes(parameters), adapters)

    def _prepare_kind(self, parameters: Parameters, batch_size: int) -> tuple[Hashable, ...]:
        inputs = tuple((image.width, image.height) for image in parameters.images)
        rows = parameters.num_images, batch_size
        return ("prepare", *rows, self._two_passes(parameters), inputs)

    def _decode_kind(self, parameters: Parameters, batch_size: int) -> tuple[Hashable, ...]:
        # Latents are not decoded.
        latents = parameters.output.format is OutputFormat.LATENT_SAFETENSORS
        return ("decode", *_size(parameters), parameters.num_images, batch_size, latents)


def _seconds(estimate: Estimate) -> float:
    return estimate.seconds


def _computed(report: Step) -> bool:
    """Say whether the cache took nothing from this step."""
    decisions = (
        each for found in report.transformers for each in (found.decision, found.cfg_decision)
    )
    return all(each in {CacheDecision.COMPUTED, None} for each in decisions)


def _pixels(parameters: Parameters) -> int:
    width, height, frames = _size(parameters)
    return width * height * frames * parameters.num_images


def _size(parameters: Parameters) -> tuple[int, int, int]:
    """Give width, height and frames, on which the time of a step and of decoding depends."""
    return parameters.width, parameters.height, parameters.num_frames or 1
