"""What the engine needs to know at the start: one frozen object, each default in one place.

`ditcast_service.config` adds what the gRPC edge needs and fills it from flags, a YAML file and
`DITCAST_*` variables; every field below is one flag, one YAML key and one variable.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from ditcast_runtime.settings import (
    Acceleration,
    CacheSettings,
    LoadingSettings,
    ParallelismSettings,
    QuantizeSettings,
    WarmUp,
    resolve_parallelism,
)

STARTER_MODEL = Path(__file__).parent / "starter" / "qwen-image-starter"
"""The embedded model: served when no other is named."""

STARTER_MODEL_ID = "ditcast/qwen-image-starter"
"""How receipts and capabilities name the embedded model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationDefaults:
    """What unset request fields become; None leaves it to the pipeline."""

    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    num_frames: int | None = None
    fps: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Configuration:
    """What is in force: the resolved settings under a revision that grows by 1 with each change."""

    revision: int
    cache: CacheSettings
    parallelism: ParallelismSettings
    quantize: QuantizeSettings | None
    attention_backend: str | None
    defaults: GenerationDefaults
    loading: LoadingSettings = field(default_factory=LoadingSettings)

    @property
    def acceleration(self) -> Acceleration:
        """What of it the ranks make cache-dit's own settings of."""
        # On one rank there is nothing to split, and cache-dit refuses a split of nothing.
        split = self.parallelism.world_size > 1
        return Acceleration(
            cache=self.cache,
            parallelism=self.parallelism if split else None,
            quantize=self.quantize,
            attention_backend=self.attention_backend,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """A LoRA adapter: what it is loaded from, and under which name."""

    name: str
    """Under which requests call it."""
    file: str
    """Its file as callers know it: a listed folder's own name, and the path within it."""
    path: str
    """Where the ranks find the file."""
    weights_digest: str
    """SHA-256 of the file, in hexadecimal."""
    size_bytes: int
    components: tuple[str, ...] = ()
    """What of the pipeline it changes; empty until the ranks have said."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientLimits:
    """What one client may have at once, as the settings of the same names say it.

    0: no limit; None: nothing is said of it here.
    """

    max_generations_per_client: int | None = None
    max_queued_per_client: int | None = None
    max_bytes_per_client: int | None = None

    def over(self, others: ClientLimits) -> ClientLimits:
        """Give these, and the others' where nothing is said here."""
        own = {
            field.name: value
            for field in fields(self)
            if (value := getattr(self, field.name)) is not None
        }
        return replace(others, **own)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """The engine's settings. Times are in seconds, sizes in bytes unless the name says more."""

    model: str = ""
    """A folder, or the id of a model on a hub. Empty: the embedded starter model."""
    model_revision: str = ""
    """Branch, tag or commit on the hub. Empty: the hub's default. Ignored for a folder."""
    world_size: int = 1
    """Ranks in the group, 1 to 64: one process and, on CUDA, one device each."""
    groups: int = 1
    """Groups of so many ranks, 1 to 64, behind one queue, each with the whole model and devices of
    its own: see docs/GROUPS.md."""
    variant: str = ""
    """Variant of the weight files to load, such as fp16. Components that have none of it are loaded
    without."""
    device: str = "auto"
    """cpu or cuda. auto: cuda where there is one, else cpu."""
    loading: LoadingSettings = field(default_factory=LoadingSettings)
    """How the weights are loaded, placed and compiled; each of its fields is a flag."""
    warm_up: tuple[WarmUp, ...] = ()
    """Sizes to run before serving, `WIDTHxHEIGHT[xFRAMES][@STEPS]`, such as 1024x1024 or
    832x480x81@4; with commas, or by repeating the flag. The model's own size is always run."""
    acceleration: Acceleration = field(default_factory=Acceleration)
    """What the cache-dit file says; see `--cache-dit-config`."""
    adapters: tuple[Adapter, ...] = ()
    """What the first ranks are to hold before they serve; see `--adapter`."""

    queue_capacity: int = 64
    """Generations that may wait, 1 to 100000; more are refused with RESOURCE_EXHAUSTED."""
    max_overtakes: int = 8
    """So many later generations of higher priority may go before the next of a lower one, from
    0."""
    max_batch_size: int = 1
    """Most generations that run in one call of the pipeline, 1 to 64, each with its own prompt and
    seed. 1: each runs alone. See docs/BATCHING.md."""
    max_batch_wait: float = 0.0
    """How long after its acceptance the next generation waits for others to share its call, where
    fewer than max_batch_size could. 0: it takes those that wait already."""
    max_bytes_in_flight: int = 2**30
    """Most bytes of pixels, raw and encoded, in and out, of all generations that are accepted and
    not finished; more are refused with RESOURCE_EXHAUSTED, and one that is larger by itself is
    invalid."""
    max_generations_per_client: int = 0
    """Most generations of one client that are accepted and not finished; more are refused with
    RESOURCE_EXHAUSTED. 0: no limit. A client is who a token or certificate says it is, else all
    that call from one address: see docs/QUEUE.md."""
    max_queued_per_client: int = 0
    """Most generations of one client that wait. 0: no limit, so that one client can fill the queue
    for all."""
    max_bytes_per_client: int = 0
    """Most bytes of one client's generations, as for max_bytes_in_flight. 0: no limit."""
    max_num_inference_steps: int = 1000
    """Largest number of denoising steps a request may ask for, from 1."""
    min_side: int = 16
    """Smallest width or height in pixels, from 1."""
    max_side: int = 4096
    """Largest width or height in pixels."""
    max_pixels: int = 4096 * 4096
    """Largest width x height x images, in pixels, of one generation; of a video, of a frame."""
    max_images: int = 16
    """Most images of one generation, from 1."""
    max_frames: int = 1000
    """Most frames of one generation, from 1."""
    max_input_images: int = 8
    """Most input pictures of one generation, from 1."""
    max_input_pixels: int = 4096 * 4096
    """Largest width x height of one input picture, in pixels; a larger one is not decoded."""
    max_prompt_bytes: int = 16384
    """Longest prompt, and longest negative prompt, in UTF-8 bytes, from 1."""
    max_request_bytes: int = 32 * 2**20
    """Largest request message, from 64 KiB."""
    chunk_bytes: int = 256 * 2**10
    """Size of an output_chunk's data, 1 KiB to 1 MiB."""

    load_timeout: float = 3600.0
    """Longest time without a sign of progress from a loading rank."""
    warm_up_timeout: float = 600.0
    """Longest time the warm-up may take."""
    first_steps_timeout: float = 300.0
    """Longest preparation and longest step while fewer than three computed steps of its kind are
    known."""
    step_timeout_floor: float = 5.0
    """Shortest limit of a step, once three computed ones of its kind are known."""
    step_timeout_factor: float = 10.0
    """Limit of a step as a multiple of the median of computed ones of its kind."""
    decode_timeout: float = 300.0
    """Longest time from the last step to the output."""
    vote_timeout: float = 5.0
    """How long the other ranks may take to arrive after the first rank failed."""
    alive_timeout: float = 30.0
    """Longest silence of a rank: each gives a sign of life every second, from its own thread."""
    handshake_timeout: float = 5.0
    """How long a rank that others started may take to show that it knows the group's secret."""
    attach_notice: float = 60.0
    """After so long without a rank that attaches, and again, the log says which are missing. Until
    all are there, health says NOT_SERVING."""
    shutdown_timeout: float = 5.0
    """How long idle ranks may take to leave before they are killed."""
    grace: float = 30.0
    """How long a SIGTERM waits for what runs and what is queued; then UNAVAILABLE."""
    max_attempts: int = 2
    """Runs of one generation in all, 1 to 10, if its ranks are lost for no reason of its own."""
    crash_folder: str = ""
    """Folder for crash reports, the newest 20 as JSON of 1 MiB at most. Empty: they stand in the
    log alone."""
    crash_loop_losses: int = 5
    """So many lost groups with no completed generation between them end the process."""
    crash_loop_window: float = 300.0
    """The time in which `crash_loop_losses` count."""

    heartbeat_interval: float = 10.0
    """Silence on a stream after which a heartbeat is sent."""
    reader_timeout: float = 60.0
    """How long a reader may take nothing before its stream is ended."""
    retention: float = 300.0
    """How long a finished generation is kept for other readers of the same request_id."""
    retention_count: int = 256
    """Most finished generations kept, from 0; the oldest go first. Each may hold a file open."""
    retention_bytes: int = 2**30
    """Most output bytes kept of finished generations; the oldest go first. A larger result is sent
    to whoever reads it when it is made, and kept for nobody."""
    retention_memory_bytes: int = 64 * 2**20
    """How many of them are held in memory; the rest lies in files, in the folder that the system
    has for temporary ones (TMPDIR)."""
    max_reattach_window: float = 600.0
    """Longest time, from 30 s, that a request may ask to go on for without a reader."""
    prompt_cache_bytes: int = 64 * 2**20
    """Most bytes of encoded prompts each rank keeps in host memory, for texts that come again;
    the longest unused go first. 0: none."""
    encoder_threads: int = 2
    """Threads that encode outputs in the service process, 1 to 64."""
    log_prompts: bool = False
    """Whether prompts may stand in the log."""

    @property
    def client_limits(self) -> ClientLimits:
        """What a client may have of whom nothing else is said."""
        return ClientLimits(
            max_generations_per_client=self.max_generations_per_client,
            max_queued_per_client=self.max_queued_per_client,
            max_bytes_per_client=self.max_bytes_per_client,
        )

    @property
    def model_source(self) -> str:
        """What the ranks load: the folder or hub id, the embedded model's folder by default."""
        return self.model or str(STARTER_MODEL)

    @property
    def model_id(self) -> str:
        """How the model is named to callers: never a path of this machine."""
        if not self.model:
            return STARTER_MODEL_ID
        path = Path(self.model)
        return path.resolve().name if path.is_dir() else self.model


def first_configuration(config: EngineConfig) -> Configuration:
    """Settle what the server starts with; its defaults come with the model."""
    acceleration = config.acceleration
    return Configuration(
        revision=1,
        cache=acceleration.cache,
        parallelism=resolve_parallelism(acceleration.parallelism, config.world_size)
        if config.world_size > 1
        else resolve_parallelism(None, 1),
        quantize=acceleration.quantize,
        attention_backend=acceleration.attention_backend,
        defaults=GenerationDefaults(),
        loading=config.loading,
    )


def needs_reload(current: Configuration, wanted: Configuration) -> bool:
    """Say whether only new ranks can hold it: all but cache and defaults is fixed at the load."""
    fixed = ("parallelism", "quantize", "attention_backend", "loading")
    return any(getattr(current, name) != getattr(wanted, name) for name in fixed)
