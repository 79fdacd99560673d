"""Makes a submission of a request: reads, decodes and settles it under the configuration in force.

Whoever has generations made comes through here, `Generate` and `Tune` alike.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

from ditcast.v1.diffusion_service_pb2 import GenerateRequest
from ditcast_runtime.accepted import Submission
from ditcast_runtime.config import Adapter, ClientLimits, Configuration
from ditcast_runtime.events import RequestWarning
from ditcast_runtime.generation import Parameters, Request
from ditcast_runtime.messages import Facts
from ditcast_runtime.pictures import Pictures
from ditcast_runtime.settings import Problem
from ditcast_service.config import ServerConfig
from ditcast_service.input_images import ImageReader
from ditcast_service.interceptors import record
from ditcast_service.picture_roles import taking_pictures
from ditcast_service.translate.request import digest, request_from_proto
from ditcast_service.validation import check_request_id, resolve


class SettlingEngine(Protocol):
    """What a request is settled against."""

    @property
    def facts(self) -> Facts:
        """What the loaded pipeline takes; raises NotServing before the first SERVING."""
        ...

    @property
    def configuration(self) -> Configuration:
        """What is in force."""
        ...

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """Those that are loaded."""
        ...


class Intake:
    """Settles requests in the name of whoever calls the RPC that runs."""

    def __init__(self, engine: SettlingEngine, config: ServerConfig) -> None:
        self._engine = engine
        self._config = config
        self._images = ImageReader(config)

    async def take(
        self,
        request: GenerateRequest,
        request_id: str,
        seconds_left: float | None,
        *,
        keeps_result: bool = True,
    ) -> Submission:
        """Read and settle a request under the configuration in force.

        Args:
            request: What is asked for.
            request_id: Its id, the caller's or one that was made.
            seconds_left: Until the caller's deadline. None: it has none.
            keeps_result: Whether anybody may want the result after its readers.

        Raises:
            InvalidRequest: some values cannot be; has all problems.
            UnsupportedRequest: the values are sound, but something here lacks the features.
            NotServing: nothing is loaded yet.
        """
        asked, pictures, problems = await self._read(request)

        def settle() -> tuple[Parameters, tuple[RequestWarning, ...]]:
            configuration = self._engine.configuration
            return resolve(
                asked,
                self._engine.facts,
                self._config,
                configuration,
                problems,
                adapters=self._engine.adapters,
            )

        revision = self._engine.configuration.revision
        parameters, warnings = settle()
        # Settled anew under a later configuration, it must not draw another seed.
        asked = dataclasses.replace(asked, seed=parameters.seed)
        # The deadline is the stream's alone where the generation may go on without one.
        bounds = (asked.timeout, None if asked.continues else seconds_left)
        limits = [limit for limit in bounds if limit is not None]
        return Submission(
            request_id=request_id,
            identity=identity(),
            client=record.get().client,
            limits=self.limits(),
            digest=digest(request),
            parameters=parameters,
            pictures=pictures,
            warnings=warnings,
            revision=revision,
            settle=settle,
            timeout=min(limits, default=None),
            priority=asked.priority,
            continues=asked.continues,
            reattach_window=asked.reattach_window,
            previews=asked.previews,
            shadow_comparison=asked.shadow_comparison,
            keeps_result=keeps_result,
        )

    async def _read(
        self, request: GenerateRequest
    ) -> tuple[Request, Pictures | None, list[Problem]]:
        """Read the fields and decode the pictures; say what cannot be."""
        found: list[Problem] = []
        # Nothing is decoded for a pipeline that takes no pictures, or before one is loaded.
        takes = bool(request.images and taking_pictures(self._engine.facts))
        images, pictures = await self._images.read(request.images if takes else (), found)
        asked, problems = request_from_proto(request, images)
        problems += found
        if request.images and not takes:
            problems.append(Problem("images", "the loaded pipeline takes no pictures"))
        check_request_id(request.request_id, problems, required=False)
        return asked, pictures, problems

    def limits(self) -> ClientLimits:
        """Give what the one who calls may have at once."""
        return record.get().caller.limits.over(self._config.client_limits)


def identity() -> str:
    """Say who calls, as the door has found out."""
    return record.get().caller.identity
