"""Settles what a TuneRequest asks for, or says everything that is wrong with it at once."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import NoReturn, cast

from google.protobuf.message import Message

from ditcast.v1.diffusion_service_pb2 import GenerateRequest, TuneRequest
from ditcast.v1.generation_pb2 import OUTPUT_FORMAT_RAW_RGB8
from ditcast_runtime.errors import InvalidRequest, UnsupportedRequest
from ditcast_runtime.events import LEAST_SIDE, MOST_DECIBELS
from ditcast_runtime.generation import Parameters
from ditcast_runtime.settings import CacheSettings, Disabled, Problem
from ditcast_runtime.settings.problems import one_per_field
from ditcast_service.intake import Intake
from ditcast_service.translate.acceleration import cache_from_proto, cache_to_proto
from ditcast_service.tuning.candidates import usual_candidates

MAX_PROMPTS = 32
MAX_CANDIDATES = 32
USUAL_TARGET_PSNR = 30.0
"""dB."""

_NOT_SHARED = (
    *("request_id", "prompt", "num_images", "output", "cache", "progress"),
    *("timeout", "on_disconnect", "reattach_window", "validate_only"),
    "shadow_comparison",
)
"""What each generation of a series has of its own, or none has."""

_OFF = CacheSettings(method=Disabled())

_Place = Callable[[str], str | None]
"""Gives where in the TuneRequest a field of a GenerateRequest stands; None: judged elsewhere."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is to be measured."""

    shared: GenerateRequest
    """What all generations have in common."""
    parameters: Parameters
    """The first one's, settled."""
    prompts: tuple[str, ...]
    candidates: tuple[CacheSettings, ...]
    target_psnr: float
    """dB."""

    def request(self, prompt: int, candidate: int | None) -> GenerateRequest:
        """Give the request of one generation; without a candidate it has no cache."""
        cache = _OFF if candidate is None else self.candidates[candidate]
        made = _request(self.shared, self.prompts[prompt], cache)
        # One for all: pictures of two seeds cannot be compared.
        made.seed = self.parameters.seed
        return made


async def settle(request: TuneRequest, intake: Intake) -> Plan:
    """Settle what is asked for.

    Raises:
        InvalidRequest: some values cannot be; has all problems.
        UnsupportedRequest: the values are sound, but something here lacks the features.
        NotServing: nothing is loaded yet.
    """
    settling = _Settling(request, intake)
    parameters = await settling.parameters()
    await settling.check_prompts()
    candidates = await settling.candidates(parameters)
    target = settling.target_psnr()
    if settling.problems or parameters is None:
        _refuse(settling.problems)
    return Plan(
        shared=settling.shared,
        parameters=parameters,
        prompts=settling.prompts,
        candidates=candidates,
        target_psnr=target,
    )


class _Settling:
    """One request on its way to being settled; collects what is wrong with it."""

    def __init__(self, request: TuneRequest, intake: Intake) -> None:
        self._request = request
        self._intake = intake
        self.problems = [*_misplaced(request), *_wrong_counts(request)]
        # Where there is none, that is said already; the rest is judged with any.
        self.prompts = tuple(request.prompts[:MAX_PROMPTS]) or ("a",)
        self.shared = GenerateRequest()
        self.shared.CopyFrom(request.generation)
        for name in _NOT_SHARED:
            cast("Message", self.shared).ClearField(name)
        self._words = GenerateRequest()
        self._words.CopyFrom(self.shared)
        # Pictures are decoded with the first alone: the others differ from it by words.
        self._words.ClearField("images")

    async def parameters(self) -> Parameters | None:
        """Settle the first generation; None if it cannot be."""
        made = _request(self.shared, self.prompts[0], _OFF)
        found = await self._try(
            made, lambda name: "prompts[0]" if name == "prompt" else f"generation.{name}"
        )
        for name in ("width", "height"):
            side = LEAST_SIDE if found is None else getattr(found, name)
            if side < LEAST_SIDE:
                reason = f"{side} is out of range: from {LEAST_SIDE}, SSIM's window"
                self.problems.append(Problem(f"generation.{name}", reason))
        return found

    async def check_prompts(self) -> None:
        """Look at each of the other prompts."""
        for index, prompt in enumerate(self.prompts[1:], 1):
            await self._try(_request(self._words, prompt, _OFF), _prompt_at(f"prompts[{index}]"))

    async def candidates(self, parameters: Parameters | None) -> tuple[CacheSettings, ...]:
        """Read those that are named, or give the usual ones; look at each."""
        if self._request.candidates:
            placed = tuple(self._named())
        elif parameters is None:
            placed = ()
        else:
            usual = usual_candidates(parameters.num_inference_steps)
            placed = tuple(("candidates", cache) for cache in usual)
        for place, cache in placed:
            await self._try(_request(self._words, self.prompts[0], cache), _cache_at(place))
        return tuple(cache for _, cache in placed)

    def target_psnr(self) -> float:
        """Read the target, in dB."""
        given = self._request.HasField("target_psnr")
        target = self._request.target_psnr if given else USUAL_TARGET_PSNR
        if not (math.isfinite(target) and 0 < target <= MOST_DECIBELS):
            reason = f"{target:g} dB is out of range: over 0, to {MOST_DECIBELS:g}"
            self.problems.append(Problem("target_psnr", reason))
        return target

    def _named(self) -> Iterator[tuple[str, CacheSettings]]:
        for index, message in enumerate(self._request.candidates[:MAX_CANDIDATES]):
            place = f"candidates[{index}]"
            try:
                cache = cache_from_proto(message)
            except ValueError as error:
                self.problems.append(Problem(place, str(error)))
                continue
            if isinstance(cache.method, Disabled):
                reason = "it caches nothing, which all are compared with anyway"
                self.problems.append(Problem(f"{place}.disabled", reason))
                continue
            yield place, cache

    async def _try(self, request: GenerateRequest, place: _Place) -> Parameters | None:
        """Settle a generation, and keep the problems that have a place."""
        # Others have their turn between them: together they take long for the event loop.
        await asyncio.sleep(0)
        try:
            submission = await self._intake.take(request, "", None)
        except (InvalidRequest, UnsupportedRequest) as refused:
            self.problems += [
                dataclasses.replace(problem, field=where)
                for problem in refused.problems
                if (where := place(problem.field)) is not None
            ]
            return None
        submission.free_pictures()
        return submission.parameters


def _misplaced(request: TuneRequest) -> Iterator[Problem]:
    given = {field.name for field, _ in request.generation.ListFields()}
    for name in _NOT_SHARED:
        if name in given:
            yield Problem(f"generation.{name}", "it must be unset here")


def _wrong_counts(request: TuneRequest) -> Iterator[Problem]:
    prompts, candidates = len(request.prompts), len(request.candidates)
    if not 1 <= prompts <= MAX_PROMPTS:
        yield Problem("prompts", f"there are {prompts}: it must be 1 to {MAX_PROMPTS}")
    if candidates > MAX_CANDIDATES:
        yield Problem("candidates", f"there are {candidates}; {MAX_CANDIDATES} are allowed")


def _request(shared: GenerateRequest, prompt: str, cache: CacheSettings) -> GenerateRequest:
    made = GenerateRequest()
    made.CopyFrom(shared)
    made.prompt = prompt
    made.output.format = OUTPUT_FORMAT_RAW_RGB8
    made.cache.CopyFrom(cache_to_proto(cache))
    return made


def _prompt_at(place: str) -> _Place:
    return lambda name: place if name == "prompt" else None


def _cache_at(place: str) -> _Place:
    return lambda name: place + name.removeprefix("cache") if name.startswith("cache") else None


def _refuse(problems: list[Problem]) -> NoReturn:
    found = one_per_field(problems)
    if any(problem.kind == "invalid" for problem in found):
        raise InvalidRequest(found)
    raise UnsupportedRequest(found)
