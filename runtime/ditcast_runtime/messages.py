"""What travels between the service and the ranks, and from rank 0 to the others: closed unions.

Frames are msgpack with a length before it (`channel`); the decoder refuses what is not in the
union, so no name, path or class in a frame can reach anything.
"""

from __future__ import annotations

import enum

import msgspec

from ditcast_runtime.config import GenerationDefaults
from ditcast_runtime.events import PromptUse, RankMemory, TransformerDecision
from ditcast_runtime.generation import KeywordValue, Parameters, PreviewOptions, SeparateCfg
from ditcast_runtime.launches import Launch
from ditcast_runtime.settings import CacheSettings


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """How one input picture lies in the descriptor that comes along with a `Run`."""

    parameter: str
    """The pipeline's parameter that takes it."""
    width: int
    height: int
    mode: str
    """RGB or L, 8 bits each, rows from the top."""


class Companion(msgspec.Struct, frozen=True, kw_only=True):
    """A generation that shares the call of another, with which it differs in prompt and seed."""

    request_id: str
    parameters: Parameters
    previews: PreviewOptions = PreviewOptions()


class Run(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Run one generation; `number` is the engine's own count and names it in every report.

    Where there are pictures, their pixels are in the descriptor that comes along.
    """

    epoch: int
    number: int
    request_id: str
    parameters: Parameters
    pictures: tuple[Picture, ...] = ()
    previews: PreviewOptions = PreviewOptions()
    companions: tuple[Companion, ...] = ()
    """What runs in the same call; of the batch it is the first, and these follow."""

    @property
    def batch(self) -> tuple[Companion, ...]:
        """All that run in the call, in the order of their rows."""
        first = Companion(
            request_id=self.request_id, parameters=self.parameters, previews=self.previews
        )
        return (first, *self.companions)


class Configure(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Hold these cache settings from now on, if all ranks can; `number` is as in `Run`."""

    epoch: int
    number: int
    cache: CacheSettings
    num_inference_steps: int
    """A number of steps for which a ready-made step mask can be laid out."""


class LoadAdapter(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Hold this adapter from now on, if all ranks can; `number` is as in `Run`."""

    epoch: int
    number: int
    name: str
    path: str
    """A file in a folder that the operator listed."""
    weights_digest: str
    """SHA-256 that the file must have, in hexadecimal."""


class UnloadAdapter(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Hold this adapter no longer; `number` is as in `Run`."""

    epoch: int
    number: int
    name: str


class Cancel(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Leave generation `number` at its next step boundary; nothing if it is over.

    Of a batch, the ranks leave it once all of its generations are to be left.
    """

    epoch: int
    number: int
    index: int = 0
    """Which of the batch."""


class Shutdown(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Leave the loop and exit with 0."""

    epoch: int


Order = Configure | LoadAdapter | UnloadAdapter
"""What changes between two generations, on all ranks or none."""
Broadcast = Run | Order | Shutdown
"""What rank 0 passes on to the others."""
Command = Launch | Broadcast | Cancel


class ParameterKind(enum.StrEnum):
    """Types that a pipeline's parameter takes, as far as a request can give them."""

    BOOL = "bool"
    INT = "int"
    FLOAT = "float"
    STR = "str"
    BOOL_LIST = "list[bool]"
    INT_LIST = "list[int]"
    FLOAT_LIST = "list[float]"
    STR_LIST = "list[str]"
    IMAGE = "image"
    """One input picture."""
    IMAGE_LIST = "list[image]"
    """One or several input pictures."""


class ParameterFact(msgspec.Struct, frozen=True, kw_only=True):
    """One parameter of the pipeline's `__call__` that a request can set."""

    name: str
    kinds: tuple[ParameterKind, ...]
    nullable: bool
    required: bool
    default: KeywordValue
    in_pipeline_kwargs: bool
    """False where the request has a field of its own for it."""


class TransformerFact(msgspec.Struct, frozen=True, kw_only=True):
    """One denoiser of the pipeline."""

    name: str
    class_name: str
    num_blocks: int
    num_heads: int | None


class Support(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a cache method or parallel mode can be used here, and if not, why."""

    name: str
    possible: bool
    reason: str = ""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the ranks found out about the loaded pipeline; feeds validation and GetCapabilities."""

    pipeline_class: str
    scheduler_class: str = ""
    """Empty: the pipeline has none."""
    weights_digest: str
    model_revision: str = ""
    """The commit on the hub that is loaded; empty for a folder."""
    components: tuple[str, ...] = ()
    """Those with weights."""
    loading_faults: dict[str, str] = {}
    """Why it cannot be loaded in some way, by `field` or `field=value` of the settings."""
    device: str
    device_name: str
    dtype: str
    threads: int
    library_versions: dict[str, str]
    parameters: tuple[ParameterFact, ...]
    transformers: tuple[TransformerFact, ...]
    size_multiple: int
    """Width and height must be multiples of this many pixels to be made exactly."""
    shard_multiple: int
    """(width / size_multiple) x (height / size_multiple) must be a multiple of this; 1: any."""
    default_width: int | None
    default_height: int | None
    separate_cfg: SeparateCfg
    guidance_embeds: bool | None
    """Whether the model is guidance-distilled; None where its configuration does not say."""
    cancellable: bool
    """Whether something tells when a step ended; otherwise no step is reported."""
    num_frames_step: int = 1
    """Frames of a video less one must be a multiple of this."""
    makes_videos: bool = False
    """Whether each output has frames."""
    latents_out: bool = True
    """Whether the pipeline can give its latents in place of what it decodes from them."""
    defaults: GenerationDefaults
    """What `ditcast.yaml` beside the model says."""
    cache_methods: tuple[Support, ...]
    parallel_modes: tuple[Support, ...]
    deterministic: bool
    adapters_supported: bool = False
    """Whether adapters can be loaded into the pipeline."""
    previews: bool = False
    """Whether previews can be made; known after the warm-up."""
    batch_fault: str = ""
    """Why generations cannot share a call; empty: they can, or nobody asked for it."""


class FailureKind(enum.StrEnum):
    """What sort of exception left the pipeline, decided by its type on the rank."""

    OUT_OF_MEMORY = "out_of_memory"
    REFUSED = "refused"
    """ValueError or TypeError from the pipeline's own checks, before a step ran."""
    NAN_OUTPUT = "nan_output"
    SETTINGS_DIFFER = "settings_differ"
    """The cache holds other settings than it was told to: the rank must be replaced."""
    FAILED = "failed"


class Outcome(enum.StrEnum):
    """How a generation ended on the ranks, the same on all of them: the result of a vote."""

    DONE = "done"
    CANCELLED = "cancelled"
    VETOED = "vetoed"
    FAILED = "failed"


class Loading(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A sign of progress while loading."""

    epoch: int
    rank: int
    stage: str
    seconds: float
    """Since the rank began to load."""
    bytes_done: int = 0
    bytes_total: int = 0
    """0: not known."""


class WarmingUp(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The weights are there; the warm-up begins."""

    epoch: int
    rank: int


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Loaded and warmed up. Only rank 0's facts are used."""

    epoch: int
    rank: int
    facts: Facts
    seconds: float


class CannotServe(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Loading failed for a reason that a restart will not mend."""

    epoch: int
    rank: int
    error_type: str
    reason: str


class Alive(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A sign of life from the rank's receiver thread."""

    epoch: int
    rank: int


class Denoising(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """All ranks agreed to run it, the prompt is encoded and the first step begins."""

    epoch: int
    number: int
    sigmas: tuple[float, ...]
    prepare_seconds: float
    encode_prompt_seconds: float = 0.0
    """Of `prepare_seconds`: from the call of the pipeline on."""
    prompts: PromptUse = PromptUse()


class Step(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One step ended on all ranks. `step` counts from 1."""

    epoch: int
    number: int
    step: int
    total_steps: int
    timestep: float
    sigma: float | None
    seconds: float
    transformers: tuple[TransformerDecision, ...]


class Preview(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What the outputs would be after `step`: small pictures, 8-bit RGB rows from the top."""

    epoch: int
    number: int
    step: int
    count: int
    width: int
    height: int
    pixels: bytes
    index: int = 0
    """Of which generation of the batch."""


class Output(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """All outputs, one after the other, in the descriptor that comes along.

    Of each its frames, 8-bit RGB rows from the top; or its latents, as a file.
    """

    epoch: int
    number: int
    count: int
    size_bytes: int
    """Of each output."""
    width: int
    height: int
    num_frames: int | None = None
    """Of each output; None: pictures."""
    index: int = 0
    """Of which generation of the batch."""


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An exception on one rank; its `Ended` follows if the rank gets to the vote."""

    epoch: int
    number: int
    rank: int
    step: int
    kind: FailureKind
    error_type: str
    message: str
    field: str = ""
    """The request's field that was refused; empty for other failures."""


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """This rank is through with the generation and free; the last report about it."""

    epoch: int
    number: int
    rank: int
    outcome: Outcome
    steps: int
    memory: RankMemory
    denoise_seconds: float
    decode_seconds: float
    components: tuple[str, ...] = ()
    """Of an adapter that was loaded: what of the pipeline it changes."""
    preview_seconds: float = 0.0
    """Of `denoise_seconds`: making previews."""


Report = (
    Loading
    | WarmingUp
    | Ready
    | CannotServe
    | Alive
    | Denoising
    | Step
    | Preview
    | Output
    | Failed
    | Ended
)
