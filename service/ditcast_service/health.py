"""What load balancers and probes are told, by `grpc.health.v1`.

"" and the service's name say whether generations are taken now; "liveness" says that this process
works, so that nobody restarts one that only loads.
"""

from __future__ import annotations

import asyncio

from grpc_health.v1 import health, health_pb2

from ditcast_runtime.engine import Phase

SERVICE = "ditcast.v1.DiffusionService"
LIVENESS = "liveness"


class Health:
    """Follows the phases of the engine; construct it inside the running loop.

    Attributes:
        servicer: what the server registers.
    """

    def __init__(self) -> None:
        self.servicer = health.aio.HealthServicer()
        self._tasks: set[asyncio.Task[None]] = set()
        self._set(LIVENESS, serving=True)
        self.follow(Phase.LOADING)

    def follow(self, phase: Phase) -> None:
        """Tell the probes; a listener of `Engine.on_phase`."""
        for name in ("", SERVICE):
            self._set(name, serving=phase is Phase.SERVING)

    def _set(self, name: str, *, serving: bool) -> None:
        response = health_pb2.HealthCheckResponse
        status = response.SERVING if serving else response.NOT_SERVING
        # Held in a set: the loop keeps only weak references, and a task that is collected
        # would leave the probes with the old answer.
        task = asyncio.get_running_loop().create_task(self.servicer.set(name, status))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
