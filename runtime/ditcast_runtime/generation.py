"""One generation: what is asked for, what it was settled to, and how it can be made again."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from ditcast_runtime.config import Configuration
from ditcast_runtime.settings import CacheSettings

Scalar = bool | int | float | str
KeywordValue = Scalar | None | list[Scalar]
"""What `pipeline_kwargs` may hold: a scalar, nothing, or a list of scalars."""


FRAME_COUNTS = ("num_frames", "frames", "video_length")
"""What pipelines call the number of frames."""

FRAME_RATES = ("fps", "frame_rate", "target_fps")
"""What pipelines call frames a second."""


class State(enum.StrEnum):
    """Where a generation is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    RESTARTING = "restarting"
    SUCCEEDED = "succeeded"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def final(self) -> bool:
        """Whether nothing more can happen to it."""
        return self in {State.SUCCEEDED, State.CANCELLED, State.FAILED}


class Priority(enum.IntEnum):
    """Place in the queue; a higher one goes first, within what keeps the others from starving."""

    LOW = 0
    NORMAL = 1
    HIGH = 2


class OutputFormat(enum.StrEnum):
    """How outputs are encoded; the value is the name of the format in the contract."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"
    RAW_RGB8 = "raw_rgb8"
    MP4 = "mp4"
    LATENT_SAFETENSORS = "latent_safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputOptions:
    """How outputs are encoded."""

    format: OutputFormat = OutputFormat.PNG
    quality: int = 90
    """1 to 100, for JPEG, WebP and MP4; ignored by the lossless formats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AskedOutput:
    """How outputs are to be encoded, as asked for; None means unset."""

    format: OutputFormat | None = None
    quality: int | None = None


class ImageRole(enum.StrEnum):
    """What an input picture is for; the value is the name of the role in the contract."""

    IMAGE = "image"
    MASK = "mask"
    CONTROL = "control"
    LAST_FRAME = "last_frame"


@dataclass(frozen=True, kw_only=True, slots=True)
class InputImage:
    """A picture as its caller sent it, decoded; its pixels travel beside."""

    role: ImageRole = ImageRole.IMAGE
    parameter: str = ""
    """The pipeline's parameter that takes it. Empty: the one that the role stands for."""
    width: int
    """Pixels; 0: it could not be decoded, which is among the problems of the request."""
    height: int
    """Pixels."""
    mode: str
    """How the pixels lie: RGB, or L for a mask."""
    size_bytes: int
    """Of the file."""
    sha256: bytes
    """Of the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageUse:
    """An input picture in force for a generation, told apart by its content."""

    role: ImageRole
    parameter: str
    """The pipeline's parameter that takes it."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    mode: str
    """How the pixels lie: RGB, or L for a mask."""
    size_bytes: int
    """Of the file."""
    sha256: bytes
    """Of the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterWeight:
    """An adapter as its caller asked for it."""

    name: str
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterUse:
    """An adapter in force for a generation."""

    name: str
    weight: float
    weights_digest: str
    """SHA-256 of its file, in hexadecimal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviewOptions:
    """Which previews a generation shows; changes no byte of its output."""

    every_n_steps: int = 0
    """0: none."""
    max_side: int = 256
    """Longest side in pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A generation as its caller asked for it; None means unset."""

    prompt: str
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    seed: int | None = None
    num_images: int = 0
    sigmas: tuple[float, ...] = ()
    pipeline_kwargs: dict[str, KeywordValue] = field(default_factory=dict)
    output: AskedOutput = field(default_factory=AskedOutput)
    cache: CacheSettings | None = None
    timeout: float | None = None
    """Seconds from acceptance."""
    priority: Priority = Priority.NORMAL
    continues: bool = False
    """Whether it goes on without any reader."""
    reattach_window: float = 0.0
    """Seconds that it goes on without a reader before it is cancelled."""
    num_frames: int | None = None
    fps: float | None = None
    images: tuple[InputImage, ...] = ()
    adapters: tuple[AdapterWeight, ...] = ()
    previews: PreviewOptions = field(default_factory=PreviewOptions)
    shadow_comparison: bool = False
    """Whether the same is run once more without a cache, and compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameters:
    """A generation as it runs: every value settled before a rank sees it."""

    prompt: str
    negative_prompt: str | None
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    num_inference_steps: int
    guidance_scale: float | None
    true_cfg_scale: float | None
    seed: int
    """Picture i uses seed + i modulo 2^64."""
    num_images: int
    sigmas: tuple[float, ...]
    """The noise schedule; empty: the pipeline's own."""
    pipeline_kwargs: dict[str, KeywordValue]
    output: OutputOptions
    cache: CacheSettings
    """With `enable_separate_cfg` resolved for this generation."""
    num_frames: int | None = None
    """Frames of a video; None: not a video."""
    fps: float | None = None
    """Frames a second of a video; None: not a video."""
    images: tuple[ImageUse, ...] = ()
    """The input pictures, in the order of the request; their pixels travel beside."""
    adapters: tuple[AdapterUse, ...] = ()
    """The adapters in force, in the order of the request."""


class SeparateCfg(enum.StrEnum):
    """When the pipeline makes a second, unconditional forward pass in each step."""

    TRUE_CFG = "true_cfg"
    """true_cfg_scale over 1 and a negative prompt."""
    GUIDANCE = "guidance"
    """guidance_scale over 1."""
    NEVER = "never"
    """Never, or in the same batch."""
    ALWAYS = "always"
    """Whatever the request says."""

    def two_passes(
        self,
        *,
        negative_prompt: str | None,
        guidance_scale: float | None,
        true_cfg_scale: float | None,
    ) -> bool:
        """Say whether a generation with these values makes two passes in each step."""
        match self:
            case SeparateCfg.TRUE_CFG:
                return (true_cfg_scale or 0) > 1 and negative_prompt is not None
            case SeparateCfg.GUIDANCE:
                return (guidance_scale or 0) > 1
            case SeparateCfg.NEVER:
                return False
            case SeparateCfg.ALWAYS:
                return True


@dataclass(frozen=True, kw_only=True, slots=True)
class RawOutput:
    """How one output lies in memory before it is encoded."""

    width: int
    """Pixels."""
    height: int
    """Pixels."""
    num_frames: int | None = None
    """None: a picture."""
    fps: float | None = None
    """Frames a second; None: a picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedOutput:
    """One output as its reader gets it."""

    media_type: str
    data: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputDigest:
    """What one output was."""

    output_index: int
    media_type: str
    size_bytes: int
    sha256: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """All it takes to make the same bytes again."""

    parameters: Parameters
    model_id: str
    model_revision: str | None
    weights_digest: str
    library_versions: dict[str, str]
    world_size: int
    threads_per_rank: int
    device: str
    dtype: str
    configuration: Configuration
    sigmas_used: tuple[float, ...]
    outputs: tuple[OutputDigest, ...]
    deterministic: bool
    group: int = 0
    """Of which ranks; the bytes do not depend on it."""
    batch_size: int = 1
    """Generations that were made in the same call, itself too."""
