"""One loaded pipeline on one rank: prepared for a generation, run, and left clean.

Nothing here knows a kind of pipeline: what is special about one comes from its signature, its
configuration and cache-dit's registry (`facts`).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ditcast_runtime import loading
from ditcast_runtime.acceleration import Accelerator
from ditcast_runtime.adapters import Adapters
from ditcast_runtime.arguments import batched_arguments, check_inputs
from ditcast_runtime.generation import OutputFormat, Parameters
from ditcast_runtime.image_parameters import image_parameters
from ditcast_runtime.launches import Launch
from ditcast_runtime.messages import (
    ParameterKind,
)
from ditcast_runtime.outputs import Made, OtherSize, to_latents, to_pixels
from ditcast_runtime.passes import CheckedPasses, Passes
from ditcast_runtime.placement import Placement, check_placement
from ditcast_runtime.preflight import check_acceleration
from ditcast_runtime.prompt_cache import PromptCache
from ditcast_runtime.source import Report
from ditcast_runtime.steps import Stages, StepSource, Watcher, detach

_BLANK = 512
"""Side in pixels of a picture that is given for want of another."""

_OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)


class Pipeline:
    """One loaded pipeline, on this rank's device, with cache-dit on it."""

    def __init__(self, pipe: Any, accelerator: Accelerator, device: torch.device) -> None:
        self.pipe = pipe
        self.accelerator = accelerator
        self.adapters = Adapters(pipe)
        self.prompts = PromptCache(pipe, self.adapters.state)
        self.device = device
        self.signature = inspect.signature(pipe.__call__)
        self.makes_videos: bool | None = None
        """Whether its outputs have frames; None before it ran."""
        self._taken = self.signature.parameters
        self._images = image_parameters(pipe)
        names = inspect.unwrap(type(pipe).__call__).__code__.co_names
        self._frees_hooks_itself = "maybe_free_model_hooks" in names
        # What autograd notes of every tensor is a twentieth of a small model's step on a CPU.
        # Pipelines switch gradients off, but not that, and a few of them want gradients.
        plain = device.type == "cpu" and "enable_grad" not in names
        self._mode = torch.inference_mode if plain else torch.no_grad
        self._returned = False

    @classmethod
    def load(cls, launch: Launch, folder: Path, device: torch.device, report: Report) -> Pipeline:
        """Load the weights, place them, enable cache-dit and have compiled what is to be."""
        pipe = loading.load(folder, launch.variant, launch.loading, device, report)
        report("placing on the device")
        placement = Placement(pipe, launch.loading, device)
        accelerator = Accelerator(pipe, launch.acceleration, launch.world_size, device)
        accelerator.switching = placement.lifted
        check_placement(launch, pipe, accelerator, device)
        check_acceleration(
            launch.acceleration,
            launch.world_size,
            type(pipe).__name__,
            pipe.components,
            accelerator.block_lists,
            device,
        )
        placement.place(accelerator.block_lists)
        pipeline = cls(pipe, accelerator, device)
        report("enabling cache-dit")
        accelerator.enable()
        placement.finish()
        return pipeline

    def prepare(
        self,
        batch: Sequence[Parameters],
        pictures: dict[str, list[Any]] | None = None,
        *,
        two_passes: bool,
    ) -> dict[str, Any]:
        """Apply the cache settings, build the call's arguments and let the pipeline check them.

        `batch` has one or several that differ in prompt and seed alone.
        `pictures` has the input pictures by the parameter that takes them.

        Raises:
            ValueError, TypeError: the pipeline's own checks refused the arguments.
            SettingsDiffer: the pipeline does not hold what it was told to.
        """
        parameters = batch[0]
        self.adapters.select(parameters.adapters)
        arguments = batched_arguments(self.signature, batch) | self._inputs(pictures or {})
        check_inputs(self.pipe, self.signature, arguments)
        self.accelerator.switch(
            parameters.cache, parameters.num_inference_steps, two_passes=two_passes
        )
        return arguments

    def run(
        self, arguments: dict[str, Any], watcher: Watcher, form: OutputFormat = OutputFormat.PNG
    ) -> Made:
        """Run the pipeline; give its outputs, decoded unless latents are asked for.

        Raises:
            NotFinite: the output holds NaN or infinity.
            NoLatents: the pipeline gives none.
            OtherSize: the pipeline makes another size than it was asked for.
            PassesDiffer: a step made other passes than the cache was set for.
        """
        expected = self.accelerator.expected_passes
        if expected is None:
            return self._run(arguments, watcher, form)
        passes = Passes(self.accelerator.transformers, 1)
        with passes.counted():
            return self._run(arguments, CheckedPasses(watcher, passes, expected), form)

    def _run(self, arguments: dict[str, Any], watcher: Watcher, form: OutputFormat) -> Made:
        stages = Stages(self.pipe, watcher, self.device)
        stages.attach(arguments)
        latents = form is OutputFormat.LATENT_SAFETENSORS
        asked = {"output_type": "latent" if latents else "pt", "return_dict": False}
        arguments |= {name: value for name, value in asked.items() if name in self._taken}
        self._returned = False
        with self._mode():
            made: Any = self.pipe(**arguments)[0]
            self._returned = True
            if latents:
                return to_latents(made, _count(arguments))
            pixels = to_pixels(made)
        self.makes_videos = pixels.num_frames is not None
        _check_size(pixels, arguments)
        return pixels

    def least_arguments(self) -> dict[str, Any]:
        """Give what a call cannot do without."""
        least = {"prompt": "warm-up", "num_inference_steps": 2, **self.blanks(_BLANK, _BLANK)}
        return {name: value for name, value in least.items() if name in self._taken}

    def blanks(self, width: int, height: int) -> dict[str, Any]:
        """Give white pictures for the parameters that cannot do without one."""
        white = {
            name: [Image.new("L" if "mask" in name else "RGB", (width, height), "white")]
            for name, parameter in self._images.items()
            if parameter.required
        }
        return self._inputs(white)

    def _inputs(self, pictures: dict[str, list[Any]]) -> dict[str, Any]:
        """Give each parameter one picture, or the list that it takes."""
        return {
            name: given if self._images[name].kind is ParameterKind.IMAGE_LIST else given[0]
            for name, given in pictures.items()
        }

    @property
    def cancellable(self) -> bool:
        """Whether something tells when a step ended, where a generation can be left."""
        return StepSource.of(self.pipe) is not StepSource.NOTHING

    def clean_up(self, failure: BaseException | None) -> None:
        """Leave nothing of a generation behind, however it ended."""
        if failure is not None:
            # The traceback's frames hold the latents of the run.
            failure.__traceback__ = None
        detach(self.pipe)
        self.accelerator.reset()
        if not (self._returned and self._frees_hooks_itself):
            # A pipeline that was left early has not done it. It walks every module, so that a
            # second time is most of what would lie between two generations.
            self.pipe.maybe_free_model_hooks()
        if isinstance(failure, _OUT_OF_MEMORY) and self.device.type == "cuda":
            torch.cuda.empty_cache()


def _count(arguments: dict[str, Any]) -> int:
    """Give how many outputs a call makes: each has a generator of its own."""
    generators = arguments.get("generator")
    return len(generators) if isinstance(generators, list) else 1


def _check_size(made: Made, arguments: dict[str, Any]) -> None:
    sides = {"width": made.width, "height": made.height}
    if any(arguments.get(name, side) != side for name, side in sides.items()):
        asked = f"width {arguments.get('width')} and height {arguments.get('height')}"
        raise OtherSize(f"of {asked} this pipeline makes {made.width}x{made.height}")
