"""What the loaded pipeline takes and what requests are held to, as GetCapabilities answers it."""

from __future__ import annotations

from importlib.metadata import version

from ditcast.v1 import capabilities_pb2 as pb
from ditcast.v1 import generation_pb2 as generation_pb
from ditcast_runtime.config import ClientLimits, Configuration
from ditcast_runtime.generation import FRAME_COUNTS, FRAME_RATES, KeywordValue
from ditcast_runtime.messages import Facts, ParameterFact, ParameterKind
from ditcast_service.config import ServerConfig
from ditcast_service.forms import MAX_FPS, formats
from ditcast_service.picture_roles import roles, taking_pictures
from ditcast_service.sizes import most_pixels
from ditcast_service.status import MAX_VIOLATIONS
from ditcast_service.translate.values import duration, to_number, to_value
from ditcast_service.validation import MAX_REQUEST_ID_CHARACTERS

CONTRACT_VERSION = "1.0"
MIN_PING_INTERVAL_SECONDS = 30
"""How often clients may ping; part of the contract."""

_TYPES = {
    ParameterKind.BOOL: pb.PARAMETER_TYPE_BOOLEAN,
    ParameterKind.INT: pb.PARAMETER_TYPE_INTEGER,
    ParameterKind.FLOAT: pb.PARAMETER_TYPE_NUMBER,
    ParameterKind.STR: pb.PARAMETER_TYPE_STRING,
    ParameterKind.BOOL_LIST: pb.PARAMETER_TYPE_BOOLEAN_LIST,
    ParameterKind.INT_LIST: pb.PARAMETER_TYPE_INTEGER_LIST,
    ParameterKind.FLOAT_LIST: pb.PARAMETER_TYPE_NUMBER_LIST,
    ParameterKind.STR_LIST: pb.PARAMETER_TYPE_STRING_LIST,
    ParameterKind.IMAGE: pb.PARAMETER_TYPE_IMAGE,
    ParameterKind.IMAGE_LIST: pb.PARAMETER_TYPE_IMAGE_LIST,
}
_FIELD_NAMES = {
    "num_images_per_prompt": "num_images",
    "num_videos_per_prompt": "num_images",
    **dict.fromkeys(FRAME_COUNTS, "num_frames"),
    **dict.fromkeys(FRAME_RATES, "fps"),
}
"""Parameters that the request calls otherwise."""

_OUTPUT_FORMAT = generation_pb.OutputFormat.DESCRIPTOR
_INPUT_IMAGE_ROLE = generation_pb.InputImageRole.DESCRIPTOR

_STAGES = (
    ("text_encoding", "Encodes the prompts in one call, which has no step to stop at."),
    ("decode", "Decodes the latents to pixels in one call of the VAE."),
)


def capabilities(
    facts: Facts,
    config: ServerConfig,
    configuration: Configuration,
    client: ClientLimits,
    groups_serving: int,
) -> pb.Capabilities:
    """Gather what a caller can ask for, and have at once."""
    return pb.Capabilities(
        contract_version=CONTRACT_VERSION,
        server_version=version("ditcast"),
        model=pb.Model(
            id=config.model_id,
            revision=config.model_revision or None,
            pipeline_class=facts.pipeline_class,
            weights_digest=facts.weights_digest,
            dtype=facts.dtype,
        ),
        world_size=config.world_size,
        groups=config.groups,
        groups_serving=groups_serving,
        max_batch_size=1 if facts.batch_fault else config.max_batch_size,
        threads_per_rank=facts.threads,
        device=facts.device_name,
        parameters=[_parameter(fact, facts, config, configuration) for fact in facts.parameters],
        limits=_limits(facts, config, client),
        cache_methods=[
            pb.CacheMethodSupport(name=each.name, possible=each.possible, reason=each.reason)
            for each in facts.cache_methods
        ],
        parallel_modes=[
            pb.ParallelModeSupport(name=each.name, possible=each.possible, reason=each.reason)
            for each in facts.parallel_modes
        ],
        output_formats=[
            generation_pb.OutputFormat.ValueType(to_number(_OUTPUT_FORMAT, form))
            for form in formats(facts)
        ],
        uninterruptible_stages=[
            pb.UninterruptibleStage(name=name, description=text) for name, text in _STAGES
        ],
        library_versions=facts.library_versions,
        transformers=[
            pb.TransformerFacts(
                name=each.name,
                class_name=each.class_name,
                num_blocks=each.num_blocks,
                num_heads=each.num_heads or 0,
            )
            for each in facts.transformers
        ],
        cancellable=facts.cancellable,
        negative_prompt_supported=any(fact.name == "negative_prompt" for fact in facts.parameters),
        scheduler_class=facts.scheduler_class,
        input_image_roles=[
            generation_pb.InputImageRole.ValueType(to_number(_INPUT_IMAGE_ROLE, role))
            for role in roles(facts)
        ],
        makes_videos=facts.makes_videos,
        adapters_supported=facts.adapters_supported,
        previews_supported=facts.previews,
    )


def _parameter(
    fact: ParameterFact, facts: Facts, config: ServerConfig, configuration: Configuration
) -> pb.Parameter:
    default = _default(fact, facts, configuration)
    low, high = _bounds(fact.name, config)
    return pb.Parameter(
        name=_FIELD_NAMES.get(fact.name, fact.name),
        type=_type(fact),
        default=None if default is None else to_value(default),
        minimum=low,
        maximum=high,
        in_pipeline_kwargs=fact.in_pipeline_kwargs,
        required=fact.required or fact.name == "prompt",
    )


def _type(fact: ParameterFact) -> pb.ParameterType.ValueType:
    """Name one type: the widest that a request can give, the field's own where it has one."""
    if not fact.kinds:
        return pb.PARAMETER_TYPE_ANY
    if ParameterKind.FLOAT in fact.kinds:
        return pb.PARAMETER_TYPE_NUMBER
    return _TYPES[fact.kinds[0]]


def _default(fact: ParameterFact, facts: Facts, configuration: Configuration) -> KeywordValue:
    name = _FIELD_NAMES.get(fact.name, fact.name)
    configured: KeywordValue = getattr(configuration.defaults, name, None)
    if configured is not None:
        return configured
    if fact.name in ("width", "height"):
        size: int | None = getattr(facts, f"default_{fact.name}")
        return size
    return fact.default


def _bounds(name: str, config: ServerConfig) -> tuple[float | None, float | None]:
    """Give both ends of what a request may set, inclusive; None: no bound."""
    bounds: dict[str, tuple[float | None, float | None]] = {
        "prompt": (1, config.max_prompt_bytes),
        "negative_prompt": (0, config.max_prompt_bytes),
        "width": (config.min_side, config.max_side),
        "height": (config.min_side, config.max_side),
        "num_inference_steps": (1, config.max_num_inference_steps),
        "num_images": (1, config.max_images),
        "guidance_scale": (0, None),
        "true_cfg_scale": (0, None),
        "num_frames": (1, config.max_frames),
        "fps": (0, MAX_FPS),
    }
    return bounds.get(_FIELD_NAMES.get(name, name), (None, None))


def _limits(facts: Facts, config: ServerConfig, client: ClientLimits) -> pb.Limits:
    return pb.Limits(
        num_inference_steps=_range(1, config.max_num_inference_steps),
        side_pixels=_range(config.min_side, config.max_side),
        size_multiple=facts.size_multiple,
        image_tokens_multiple=facts.shard_multiple,
        total_pixels=_range(config.min_side**2, most_pixels(config)),
        num_images=_range(1, config.max_images),
        num_frames=_range(1, config.max_frames) if facts.makes_videos else None,
        num_frames_step=facts.num_frames_step,
        input_images=_input_images(facts, config),
        max_input_pixels=config.max_input_pixels,
        prompt_bytes=_range(1, config.max_prompt_bytes),
        request_id_characters=_range(0, MAX_REQUEST_ID_CHARACTERS),
        max_request_bytes=config.max_request_bytes,
        output_chunk_bytes=config.chunk_bytes,
        queue_capacity=config.queue_capacity,
        max_overtakes=config.max_overtakes,
        max_bytes_in_flight=config.max_bytes_in_flight,
        max_generations_per_client=client.max_generations_per_client or 0,
        max_queued_per_client=client.max_queued_per_client or 0,
        max_bytes_per_client=client.max_bytes_per_client or 0,
        max_field_violations=MAX_VIOLATIONS,
        max_reattach_window=duration(config.max_reattach_window),
        heartbeat_interval=duration(config.heartbeat_interval),
        reader_timeout=duration(config.reader_timeout),
        retention=duration(config.retention),
        min_ping_interval=duration(MIN_PING_INTERVAL_SECONDS),
    )


def _range(low: int, high: int) -> pb.IntegerRange:
    return pb.IntegerRange(minimum=low, maximum=high)


def _input_images(facts: Facts, config: ServerConfig) -> pb.IntegerRange | None:
    takers = taking_pictures(facts)
    required = sum(fact.required for fact in takers)
    return _range(required, config.max_input_images) if takers else None
