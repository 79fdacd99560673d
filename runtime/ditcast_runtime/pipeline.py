"""Load, warm up and run one diffusers pipeline on one rank.

Nothing here knows a kind of pipeline: what is special about one comes from its signature, its
configuration and cache-dit's registry (`facts`).
"""

from __future__ import annotations

import contextlib
import inspect
import math
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Protocol

import diffusers
import torch
import tqdm
import transformers
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from ditcast_runtime.acceleration import Accelerator
from ditcast_runtime.generation import Parameters
from ditcast_runtime.messages import Launch
from ditcast_runtime.preflight import check_acceleration

SEEDS = 2**64
"""Seeds are taken modulo this, the range of a torch generator."""

_OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)


class NotFinite(Exception):
    """The output holds NaN or infinity."""


class ScheduleRefused(Exception):
    """The scheduler makes noise levels that are not finite of these steps, as some do of one."""


class Watcher(Protocol):
    """Who is told what happens while the pipeline runs, on the thread that runs it."""

    def denoising_began(self, sigmas: tuple[float, ...]) -> None:
        """Tell that the prompt is encoded and the first step begins."""

    def step_ended(self, step: int, total_steps: int, timestep: float, sigma: float | None) -> None:
        """Tell that a step ended, from 1; may leave the pipeline by raising."""

    def denoising_ended(self) -> None:
        """Tell that the last step ended and decoding begins."""


class _DenoisingBar(tqdm.tqdm):  # type: ignore[type-arg]
    """Stands in for the pipeline's progress bar, whose life is the denoising loop's in every kind.

    A disabled tqdm, so that whatever else a pipeline calls on its bar is there.
    """

    def __init__(self, iterable: Any, total: int | None, stages: _Stages) -> None:
        super().__init__(iterable, total=total, disable=True)
        self._stages = stages
        stages.begin(self.total)

    def __iter__(self) -> Iterator[Any]:
        yield from super().__iter__()
        self._stages.end()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, traceback)
        if kind is None:
            self._stages.end()


class _Stages:
    """Turns what the pipeline calls back into what a watcher is told."""

    def __init__(self, pipe: Any, watcher: Watcher, device: torch.device) -> None:
        self._pipe = pipe
        self._watcher = watcher
        self._total = 0
        self._began = False
        self._timesteps: list[float] = []
        self._sigmas: tuple[float, ...] = ()
        self._cuda = device.type == "cuda"
        self._previous: torch.cuda.Event | None = None

    def bar(self, iterable: Any = None, total: int | None = None) -> _DenoisingBar:
        """Stand in for `DiffusionPipeline.progress_bar`."""
        return _DenoisingBar(iterable, total, self)

    def begin(self, total: float | None) -> None:
        if self._began:
            return
        self._began = True
        scheduler = self._pipe.scheduler
        # One copy from the device for all steps: an .item() at each would drain its queue.
        self._timesteps = [float(value) for value in scheduler.timesteps.tolist()]
        sigmas = getattr(scheduler, "sigmas", None)
        self._sigmas = (
            tuple(float(value) for value in sigmas.tolist()) if sigmas is not None else ()
        )
        self._total = int(total or 0) or len(self._timesteps)
        if not all(math.isfinite(level) for level in (*self._timesteps, *self._sigmas)):
            count = len(self._timesteps)
            raise ScheduleRefused(f"the scheduler has no finite noise levels for {count} steps")
        self._watcher.denoising_began(self._sigmas)

    def step_ended(self, _pipe: Any, index: int, _timestep: Any, _tensors: Any) -> dict[str, Any]:
        """Be the pipeline's `callback_on_step_end`."""
        self._keep_device_close()
        timestep = self._timesteps[index] if index < len(self._timesteps) else 0.0
        sigma = self._sigmas[index] if index < len(self._sigmas) else None
        self._watcher.step_ended(index + 1, self._total, timestep, sigma)
        return {}

    def end(self) -> None:
        if self._began:
            self._watcher.denoising_ended()

    def _keep_device_close(self) -> None:
        # Without it the host queues all steps in a moment: step times would be launch times, and a
        # cancel would trail behind the queued kernels. One step of slack keeps the device busy.
        if self._cuda:
            event = torch.cuda.Event()
            event.record()
            if self._previous is not None:
                self._previous.synchronize()
            self._previous = event


def resolve_device(name: str, local_rank: int) -> torch.device:
    """Turn the configured device into this rank's own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name, local_rank) if name == "cuda" else torch.device(name)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Turn the configured dtype into torch's; auto is float32 on cpu, bfloat16 elsewhere."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


@contextlib.contextmanager
def _component_progress(report: Callable[[str], None]) -> Iterator[None]:
    """Report each component while diffusers loads it, in place of its terminal bar."""
    logging = diffusers.utils.logging
    original = logging.tqdm

    def narrate(items: Any, **_: Any) -> Iterator[Any]:
        listed = list(items)
        for index, item in enumerate(listed, start=1):
            name = item[0] if isinstance(item, tuple) else item
            report(f"loading {name} ({index} of {len(listed)})")
            yield item

    logging.tqdm = narrate  # type: ignore[assignment]
    try:
        yield
    finally:
        logging.tqdm = original


class Pipeline:
    """One loaded pipeline, on this rank's device, with cache-dit on it."""

    def __init__(self, pipe: Any, accelerator: Accelerator, device: torch.device) -> None:
        self.pipe = pipe
        self.accelerator = accelerator
        self.device = device
        self.signature = inspect.signature(pipe.__call__)
        names = inspect.unwrap(type(pipe).__call__).__code__.co_names
        self._frees_hooks_itself = "maybe_free_model_hooks" in names
        self._returned = False

    @classmethod
    def load(cls, launch: Launch, device: torch.device, report: Callable[[str], None]) -> Pipeline:
        """Load the weights (safetensors alone, no remote code), place them and enable cache-dit."""
        transformers.utils.logging.disable_progress_bar()
        # What it warns of in a generation is refused before, or a warning event of the generation.
        diffusers.utils.logging.set_verbosity_error()
        with _component_progress(report):
            pipe = DiffusionPipeline.from_pretrained(
                launch.model,
                revision=launch.model_revision or None,
                torch_dtype=resolve_dtype(launch.dtype, device),
                use_safetensors=True,
            )
        report("placing on the device")
        pipe.to(device)
        report("enabling cache-dit")
        accelerator = Accelerator(pipe, launch.acceleration, launch.world_size, device)
        check_acceleration(
            launch.acceleration,
            launch.world_size,
            type(pipe).__name__,
            pipe.components,
            accelerator.block_lists,
            device,
        )
        pipeline = cls(pipe, accelerator, device)
        accelerator.enable()
        return pipeline

    def prepare(self, parameters: Parameters, *, two_passes: bool) -> dict[str, Any]:
        """Apply the cache settings, build the call's arguments and let the pipeline check them.

        Raises:
            ValueError, TypeError: the pipeline's own checks refused the arguments.
            SettingsDiffer: the cache does not hold what it was told to.
        """
        arguments = self.arguments(parameters)
        self._check(arguments)
        self.accelerator.switch(
            parameters.cache, parameters.num_inference_steps, two_passes=two_passes
        )
        return arguments

    def run(self, arguments: dict[str, Any], watcher: Watcher) -> torch.Tensor:
        """Run the pipeline; give uint8 pixels (images, height, width, 3) on the host.

        Raises:
            NotFinite: the output holds NaN or infinity.
        """
        stages = _Stages(self.pipe, watcher, self.device)
        self.pipe.progress_bar = stages.bar
        if self.cancellable:
            arguments["callback_on_step_end"] = stages.step_ended
            arguments["callback_on_step_end_tensor_inputs"] = []
        self._returned = False
        images: torch.Tensor = self.pipe(**arguments, output_type="pt", return_dict=False)[0]
        self._returned = True
        images = images.float()
        if not bool(torch.isfinite(images).all()):
            raise NotFinite
        # Rounded as diffusers' numpy_to_pil does, so that the bytes are those of a direct call.
        pixels = images.mul(255).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous().cpu()

    @property
    def cancellable(self) -> bool:
        """Whether the pipeline calls back after each step."""
        return "callback_on_step_end" in self.signature.parameters

    def clean_up(self, failure: BaseException | None) -> None:
        """Leave nothing of a generation behind, however it ended."""
        if failure is not None:
            # The traceback's frames hold the latents of the run.
            failure.__traceback__ = None
        self.pipe.__dict__.pop("progress_bar", None)
        self.accelerator.reset()
        if not (self._returned and self._frees_hooks_itself):
            # A pipeline that was left early has not done it. It walks every module, so that a
            # second time is most of what would lie between two generations.
            self.pipe.maybe_free_model_hooks()
        if isinstance(failure, _OUT_OF_MEMORY) and self.device.type == "cuda":
            torch.cuda.empty_cache()

    def arguments(self, parameters: Parameters) -> dict[str, Any]:
        """Give the keyword arguments of the call, as far as its signature takes them."""
        taken = self.signature.parameters
        settled: dict[str, Any] = {
            "prompt": parameters.prompt,
            "negative_prompt": parameters.negative_prompt,
            "width": parameters.width,
            "height": parameters.height,
            "num_inference_steps": parameters.num_inference_steps,
            "guidance_scale": parameters.guidance_scale,
            "true_cfg_scale": parameters.true_cfg_scale,
            "num_images_per_prompt": parameters.num_images,
            "sigmas": list(parameters.sigmas) or None,
            "generator": [
                # On the host in every case, so that the noise does not depend on the device.
                torch.Generator("cpu").manual_seed((parameters.seed + index) % SEEDS)
                for index in range(parameters.num_images)
            ],
        }
        if parameters.num_images == 1:
            settled["generator"] = settled["generator"][0]
        arguments = {
            name: value for name, value in settled.items() if name in taken and value is not None
        }
        return arguments | parameters.pipeline_kwargs

    def _check(self, arguments: dict[str, Any]) -> None:
        """Call the pipeline's `check_inputs` with what its `__call__` would pass."""
        check = getattr(self.pipe, "check_inputs", None)
        if check is None:
            return
        passed: dict[str, Any] = {}
        for name, parameter in inspect.signature(check).parameters.items():
            if name == "callback_on_step_end_tensor_inputs":
                passed[name] = []
            elif name in arguments:
                passed[name] = arguments[name]
            elif name in self.signature.parameters:
                default = self.signature.parameters[name].default
                passed[name] = None if default is inspect.Parameter.empty else default
            elif parameter.default is inspect.Parameter.empty:
                # An argument that its __call__ computes: the check cannot be made beforehand.
                return
        check(**passed)


class Stopwatch:
    """Seconds since it was made or last read."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Give the seconds since the last lap and begin the next."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds
