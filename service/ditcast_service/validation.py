"""Settles a request before a rank is touched, or says everything that is wrong with it at once.

What is unset comes from the configuration's defaults, else from the pipeline's own signature.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import msgspec

from ditcast_runtime.config import Adapter, Configuration, EngineConfig
from ditcast_runtime.errors import InvalidRequest, UnsupportedRequest
from ditcast_runtime.events import LEAST_SIDE, RequestWarning
from ditcast_runtime.generation import (
    ImageUse,
    KeywordValue,
    OutputFormat,
    Parameters,
    Request,
    SeparateCfg,
)
from ditcast_runtime.messages import Facts, ParameterFact
from ditcast_runtime.settings import CacheSettings, Disabled, Problem, check_cache
from ditcast_service.adapters import resolve_adapters
from ditcast_service.arguments import resolve_arguments
from ditcast_service.forms import resolve_fps, resolve_num_frames, resolve_output
from ditcast_service.picture_roles import resolve_images, size_like
from ditcast_service.sizes import Sizes

MAX_REQUEST_ID_CHARACTERS = 128

_NUM_OUTPUTS = ("num_images_per_prompt", "num_videos_per_prompt")
"""What pipelines call the number of outputs."""


def resolve(
    request: Request,
    facts: Facts,
    config: EngineConfig,
    configuration: Configuration,
    problems: Sequence[Problem] = (),
    *,
    adapters: Sequence[Adapter] = (),
) -> tuple[Parameters, tuple[RequestWarning, ...]]:
    """Settle every value of a request.

    Args:
        request: What was asked for.
        facts: What the loaded pipeline takes.
        config: The limits.
        configuration: The defaults, and the cache settings of requests that bring none.
        problems: What was already found wrong when the request was read.
        adapters: Those that are loaded.

    Raises:
        InvalidRequest: some values cannot be; has all problems.
        UnsupportedRequest: the values are sound, but something here lacks the features.
    """
    resolution = _Resolution(request, facts, config, configuration, list(problems), adapters)
    parameters = resolution.parameters()
    found = tuple(resolution.problems)
    if any(problem.kind == "invalid" for problem in found):
        raise InvalidRequest(found)
    if found:
        raise UnsupportedRequest(found)
    return parameters, tuple(resolution.warnings)


def check_request_id(request_id: str, problems: list[Problem], *, required: bool) -> None:
    """Find what is wrong with an id."""
    if required and not request_id:
        problems.append(Problem("request_id", "it is required"))
    if len(request_id) > MAX_REQUEST_ID_CHARACTERS:
        reason = f"it has {len(request_id)} characters; {MAX_REQUEST_ID_CHARACTERS} are allowed"
        problems.append(Problem("request_id", reason))


@dataclass(slots=True)
class _Resolution:
    """One request on its way to being settled; collects what is wrong with it."""

    request: Request
    facts: Facts
    config: EngineConfig
    configuration: Configuration
    problems: list[Problem]
    adapters: Sequence[Adapter]
    warnings: list[RequestWarning] = field(default_factory=list)

    def parameters(self) -> Parameters:
        """Settle all fields; the result counts only if no problem was found."""
        request = self.request
        self._prompts()
        steps = self._steps()
        num_images = self._num_images()
        defaults = self.configuration.defaults
        frames = resolve_num_frames(request, self.facts, self.config, defaults, self.problems)
        images = resolve_images(request.images, self.facts, self.problems)
        width, height = self._size(num_images, frames, images)
        self._input_bytes(images, width * height * num_images * (frames or 1))
        negative = self._text_or_default()
        true_cfg = self._scale("true_cfg_scale")
        guidance = self._scale("guidance_scale")
        self._warn_without_effect(negative, true_cfg)
        self._reattach_window()
        self._previews()
        self._shadow((width, height))
        two_passes = self.facts.separate_cfg.two_passes(
            negative_prompt=negative, guidance_scale=guidance, true_cfg_scale=true_cfg
        )
        return Parameters(
            prompt=request.prompt,
            negative_prompt=negative,
            width=width,
            height=height,
            num_inference_steps=steps,
            guidance_scale=guidance,
            true_cfg_scale=true_cfg,
            seed=secrets.randbits(64) if request.seed is None else request.seed,
            num_images=num_images,
            sigmas=request.sigmas,
            pipeline_kwargs=resolve_arguments(request.pipeline_kwargs, self.facts, self.problems),
            output=resolve_output(request.output, self.facts, (width, height), self.problems),
            cache=self._cache(steps, two_passes=two_passes),
            num_frames=frames,
            fps=resolve_fps(request, self.facts, defaults, self.problems),
            images=images,
            adapters=resolve_adapters(request.adapters, self.adapters, self.facts, self.problems),
        )

    def _reattach_window(self) -> None:
        seconds, most = self.request.reattach_window, self.config.max_reattach_window
        if seconds > most:
            self._refuse("reattach_window", f"{seconds:g} s is out of range: 0 to {most:g} s")

    def _previews(self) -> None:
        if self.request.previews.every_n_steps > 0 and not self.facts.previews:
            reason = "no previews can be made of what this pipeline works on"
            self.problems.append(Problem("progress.preview_every_n_steps", reason, "unsupported"))

    def _shadow(self, size: tuple[int, int]) -> None:
        if not self.request.shadow_comparison:
            return
        if self.request.output.format is OutputFormat.LATENT_SAFETENSORS:
            self._refuse("shadow_comparison", "pixels are compared, and latents have none")
        elif min(size) < LEAST_SIDE:
            self._refuse("shadow_comparison", f"SSIM needs sides from {LEAST_SIDE} pixels")

    def _refuse(self, name: str, reason: str) -> None:
        self.problems.append(Problem(name, reason))

    def _fact(self, name: str) -> ParameterFact | None:
        return next((fact for fact in self.facts.parameters if fact.name == name), None)

    def _default(self, name: str) -> KeywordValue:
        """Give the default of the configuration, else of the signature, else None."""
        configured: KeywordValue = getattr(self.configuration.defaults, name, None)
        if configured is not None:
            return configured
        fact = self._fact(name)
        return None if fact is None else fact.default

    def _prompts(self) -> None:
        texts = (("prompt", self.request.prompt), ("negative_prompt", self.request.negative_prompt))
        for name, text in texts:
            if text and self._fact(name) is None:
                self._refuse(name, "the loaded pipeline takes none")
            size = len(text.encode()) if text else 0
            if size > self.config.max_prompt_bytes:
                limit = self.config.max_prompt_bytes
                self._refuse(name, f"it is {size} bytes of UTF-8 long; {limit} are allowed")
        if not self.request.prompt and self._fact("prompt") is not None:
            self._refuse("prompt", "it is required")

    def _text_or_default(self) -> str | None:
        if self._fact("negative_prompt") is None:
            return None
        given = self.request.negative_prompt
        return self.configuration.defaults.negative_prompt if given is None else given

    def _steps(self) -> int:
        steps, sigmas = self.request.num_inference_steps, self.request.sigmas
        self._check_sigmas(steps)
        if steps is None:
            default = self._default("num_inference_steps")
            steps = len(sigmas) or (default if isinstance(default, int) else None)
        given = self.request.num_inference_steps is not None
        name = "num_inference_steps" if given or not sigmas else "sigmas"
        limit = self.config.max_num_inference_steps
        if steps is None:
            self._refuse(name, "it is required: the pipeline has no default")
            return 1
        if not 1 <= steps <= limit:
            self._refuse(name, f"{steps} steps are out of range: 1 to {limit}")
        return steps

    def _check_sigmas(self, steps: int | None) -> None:
        sigmas = self.request.sigmas
        if not sigmas:
            return
        if self._fact("sigmas") is None:
            self._refuse("sigmas", "the loaded pipeline takes none")
        elif any(not math.isfinite(sigma) or sigma <= 0 for sigma in sigmas):
            self._refuse("sigmas", "each must be a finite number over 0")
        elif any(later >= sooner for sooner, later in pairwise(sigmas)):
            self._refuse("sigmas", "each must be smaller than the one before")
        elif steps is not None and steps != len(sigmas):
            self._refuse("sigmas", f"there are {len(sigmas)}, but num_inference_steps is {steps}")

    def _num_images(self) -> int:
        count, limit = self.request.num_images or 1, self.config.max_images
        if not 1 <= count <= limit:
            self._refuse("num_images", f"{count} is out of range: 1 to {limit}, 0 for one")
        elif count > 1 and not any(self._fact(name) for name in _NUM_OUTPUTS):
            self._refuse("num_images", "the loaded pipeline makes one image at a time")
        return min(max(count, 1), limit)

    def _size(
        self, num_images: int, num_frames: int | None, images: Sequence[ImageUse]
    ) -> tuple[int, int]:
        sizes = Sizes.of(self.facts, self.config, num_images, num_frames)
        own = self._size_of_picture(sizes, images)
        width = self._side("width", self.facts.default_width if own is None else own[0])
        height = self._side("height", self.facts.default_height if own is None else own[1])
        if width is None or height is None:
            return 1, 1
        self.problems += sizes.check(width, height)
        return width, height

    def _size_of_picture(self, sizes: Sizes, images: Sequence[ImageUse]) -> tuple[int, int] | None:
        """Give the size that suits the picture to start from, where none is asked for."""
        if self.request.width is not None or self.request.height is not None:
            return None
        size = size_like(images, self.facts)
        if size is None or self._fact("width") is None or not sizes.check(*size):
            return size
        return next(iter(sizes.nearest(*size)), size)

    def _input_bytes(self, images: Sequence[ImageUse], pixels: int) -> None:
        """Refuse what could never be admitted: more with the outputs than may be in flight."""
        inputs = sum(use.size_bytes + use.width * use.height * len(use.mode) for use in images)
        total, limit = inputs + 3 * pixels, self.config.max_bytes_in_flight
        if 3 * pixels <= limit < total:
            self._refuse("images", f"with the outputs they take {total} bytes; {limit} are allowed")

    def _side(self, name: str, of_model: int | None) -> int | None:
        given: int | None = getattr(self.request, name)
        if given is not None and self._fact(name) is None:
            self._refuse(name, "the loaded pipeline takes none")
        configured: int | None = getattr(self.configuration.defaults, name)
        if self._fact(name) is None and self.request.images:
            # The picture's own size is what such a pipeline makes.
            configured = None
        side = next((each for each in (given, configured, of_model) if each is not None), None)
        if side is None:
            self._refuse(name, "it is required: the pipeline has no default")
        return side

    def _scale(self, name: str) -> float | None:
        given: float | None = getattr(self.request, name)
        if self._fact(name) is None:
            if given is not None:
                self._refuse(name, "the loaded pipeline takes none")
            return None
        if given is not None and not (math.isfinite(given) and given >= 0):
            self._refuse(name, f"{given} is out of range: a finite number from 0")
        if given is not None:
            return given
        default = self._default(name)
        return float(default) if isinstance(default, (int, float)) else None

    def _warn_without_effect(self, negative: str | None, true_cfg: float | None) -> None:
        """Say what was asked for and does nothing in this pipeline."""
        request, facts = self.request, self.facts
        has_true_cfg = facts.separate_cfg is SeparateCfg.TRUE_CFG
        if request.guidance_scale is not None and facts.guidance_embeds is False and has_true_cfg:
            message = "guidance_scale is ignored: the model is not guidance-distilled"
            self.warnings.append(RequestWarning(field="guidance_scale", message=message))
        if not has_true_cfg:
            return
        if (request.true_cfg_scale or 0) > 1 and negative is None:
            message = "true_cfg_scale has no effect without a negative prompt"
            self.warnings.append(RequestWarning(field="true_cfg_scale", message=message))
        if request.negative_prompt is not None and (true_cfg or 0) <= 1:
            message = "negative_prompt has no effect unless true_cfg_scale is over 1"
            self.warnings.append(RequestWarning(field="negative_prompt", message=message))

    def _warn_uncached(self) -> None:
        """Say where nothing is cached because nothing can be, unless that was asked for."""
        support = next((each for each in self.facts.cache_methods if each.name == "db_cache"), None)
        if self.request.cache is None and support is not None and not support.possible:
            message = f"nothing is cached: {support.reason}"
            self.warnings.append(RequestWarning(field="cache", message=message))

    def _cache(self, steps: int, *, two_passes: bool) -> CacheSettings:
        """Settle the cache for this generation: passes and steps are the request's to say."""
        settings = self.request.cache or self.configuration.cache
        prefix = "cache" if self.request.cache else "configuration.cache"
        parallelism = self.configuration.parallelism
        problems = check_cache(
            settings,
            prefix=prefix,
            num_blocks={each.name: each.num_blocks for each in self.facts.transformers},
            num_inference_steps=steps,
            context_parallel=parallelism.context_parallel_degree > 1,
            two_passes=two_passes,
        )
        self.problems += problems
        method = settings.method
        if isinstance(method, Disabled):
            self._warn_uncached()
            if self.request.shadow_comparison:
                self._refuse("shadow_comparison", "nothing is cached: it has nothing to show")
            return settings
        name = method.__struct_config__.tag
        support = next((each for each in self.facts.cache_methods if each.name == name), None)
        if support is not None and not support.possible and not problems:
            self.problems.append(Problem(f"{prefix}.{name}", support.reason, "unsupported"))
        given = method.enable_separate_cfg
        if given is not None and given != two_passes:
            message = f"{given} contradicts the passes of this request: {two_passes} is used"
            path = f"{prefix}.{name}.enable_separate_cfg"
            self.warnings.append(RequestWarning(field=path, message=message))
        # Its number of steps is the request's as well; the ranks see to that.
        method = msgspec.structs.replace(method, enable_separate_cfg=two_passes)
        return CacheSettings(method=method, calibrator=settings.calibrator)
