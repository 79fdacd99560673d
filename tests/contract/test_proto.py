"""The contract keeps its rules: style, every promised name, generated code that is current."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor

from ditcast.v1 import (
    acceleration_pb2,
    capabilities_pb2,
    diffusion_service_pb2,
    generation_pb2,
    tuning_pb2,
)

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
FILES: list[FileDescriptor] = [
    acceleration_pb2.DESCRIPTOR,
    capabilities_pb2.DESCRIPTOR,
    diffusion_service_pb2.DESCRIPTOR,
    generation_pb2.DESCRIPTOR,
    tuning_pb2.DESCRIPTOR,
]

# name: (server streams, request, response)
RPCS = {
    "Generate": (True, "GenerateRequest", "GenerateResponse"),
    "WatchGeneration": (True, "WatchGenerationRequest", "WatchGenerationResponse"),
    "CancelGeneration": (False, "CancelGenerationRequest", "CancelGenerationResponse"),
    "ListGenerations": (False, "ListGenerationsRequest", "ListGenerationsResponse"),
    "Configure": (False, "ConfigureRequest", "ConfigureResponse"),
    "GetConfiguration": (False, "GetConfigurationRequest", "GetConfigurationResponse"),
    "GetCapabilities": (False, "GetCapabilitiesRequest", "GetCapabilitiesResponse"),
    "Tune": (True, "TuneRequest", "TuneResponse"),
}

# Names that clients in every language were promised. "?": its absence can be told from zero.
FIELDS = {
    "GenerateRequest": """
        request_id prompt negative_prompt? width? height? num_inference_steps? guidance_scale?
        true_cfg_scale? seed? num_images sigmas num_frames? fps? images pipeline_kwargs output
        progress cache timeout on_disconnect reattach_window priority validate_only
        shadow_comparison""",
    "GenerateResponse": "event",
    "WatchGenerationRequest": "request_id after_sequence",
    "WatchGenerationResponse": "event",
    "CancelGenerationRequest": "request_id",
    "CancelGenerationResponse": "state",
    "ListGenerationsRequest": "page_size page_token",
    "ListGenerationsResponse": "generations next_page_token",
    "GetConfigurationResponse": "configuration",
    "GetCapabilitiesResponse": "capabilities",
    "InputImage": "data role",
    "OutputOptions": "format quality?",
    "ProgressOptions": "preview_every_n_steps preview_max_side?",
    "GenerationEvent": """
        request_id sequence time queued started step_completed preview warning restarted heartbeat
        output_chunk completed""",
    "Queued": "position estimated_wait",
    "Started": "parameters configuration_revision world_size epoch",
    "ResolvedParameters": """
        prompt negative_prompt? width height num_inference_steps guidance_scale? true_cfg_scale?
        seed num_images sigmas num_frames? fps? pipeline_kwargs output cache""",
    "StepCompleted": """
        step total_steps timestep? sigma? step_duration estimated_remaining cache_decision
        residual_diff? cfg_cache_decision? cfg_residual_diff? transformers""",
    "TransformerDecision": """
        name cache_decision residual_diff? cfg_cache_decision? cfg_residual_diff?""",
    "Preview": "step data",
    "Warning": "field message",
    "Restarted": "attempt",
    "Heartbeat": "state",
    "OutputChunk": "output_index media_type total_bytes offset data",
    "Completed": "receipt timings cache memory shadow",
    "ShadowComparison": "outputs uncached_denoise time_ratio",
    "OutputLikeness": "output_index psnr ssim",
    "Receipt": """
        parameters model_id model_revision? weights_digest library_versions world_size parallelism
        threads_per_rank device dtype configuration_revision configuration sigmas_used outputs
        deterministic""",
    "OutputDigest": "output_index media_type size_bytes sha256",
    "Timings": "queued prepare denoise decode encode total",
    "CacheReport": """
        computed_steps cached_steps pruned_steps cfg_computed_steps cfg_cached_steps
        cfg_pruned_steps transformers""",
    "RankMemory": "rank peak_bytes free_bytes",
    "CacheConfig": "disabled db_cache db_prune taylor_seer dmd foca",
    "DBCache": "fn_compute_blocks? bn_compute_blocks? residual_diff_threshold? max_warmup_steps?",
    "ParallelismConfig": "ulysses_degree? ring_degree? tensor_parallel_degree?",
    "Configuration": "revision cache parallelism quantize attention_backend? defaults",
    "ConfigureRequest": """
        configuration update_mask expected_revision? validate_only allow_reload""",
    "ConfigureResponse": "configuration outcomes",
    "FieldOutcome": "path outcome reason",
    "TuneRequest": "generation prompts target_psnr? candidates",
    "TuneResponse": "event",
    "TuneEvent": "started progress comparison completed",
    "TuneComparison": "candidate_index prompt_index psnr ssim cached_steps time_ratio dropped",
    "TuneCompleted": "candidates recommended_index? cache_dit_yaml",
}

VALUES = {
    "OutputFormat": "PNG JPEG WEBP MP4 RAW_RGB8 LATENT_SAFETENSORS",
    "DisconnectPolicy": "CANCEL CONTINUE",
    "Priority": "LOW NORMAL HIGH",
    "GenerationState": "QUEUED RUNNING RESTARTING SUCCEEDED CANCELLED FAILED",
    "CacheDecision": "COMPUTED CACHED PRUNED",
    "InputImageRole": "IMAGE MASK CONTROL",
    "Outcome": "APPLIED_LIVE APPLIED_BY_RELOAD NEEDS_RELOAD REJECTED",
}

CACHE_CONFIG_NUMBERS = {
    "disabled": 1,
    "db_cache": 2,
    "db_prune": 3,
    "taylor_seer": 4,
    "dmd": 5,
    "foca": 6,
}


def messages() -> dict[str, Descriptor]:
    """Give every message of the contract by name."""
    return {name: m for file in FILES for name, m in file.message_types_by_name.items()}


def enums() -> dict[str, EnumDescriptor]:
    """Give every enum of the contract by name."""
    return {name: e for file in FILES for name, e in file.enum_types_by_name.items()}


def fields() -> Iterator[FieldDescriptor]:
    """Give every field of the contract."""
    for message in messages().values():
        yield from message.fields


def upper_snake(name: str) -> str:
    """Spell OutputFormat as OUTPUT_FORMAT."""
    return "".join("_" * c.isupper() + c for c in name).lstrip("_").upper()


@pytest.mark.parametrize("command", [("lint",), ("format", "--diff", "--exit-code")], ids=" ".join)
def test_buf_has_nothing_to_say(command: tuple[str, ...]) -> None:
    """The contract follows buf's STANDARD and COMMENTS rules and its format."""
    done = subprocess.run([BIN / "buf", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_generated_code_is_current() -> None:
    """What is committed under proto/gen is what `make proto` makes of the .proto files."""
    installed = Path(sys.prefix) / ".installed"
    done = subprocess.run(
        ["make", f"VENV={sys.prefix}", "-o", installed, "proto-check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_enum_starts_with_unspecified() -> None:
    """The zero of each enum is its *_UNSPECIFIED, so that unset is never a choice."""
    zeros = {name: enum.values_by_number[0].name for name, enum in enums().items()}
    assert zeros == {name: f"{upper_snake(name)}_UNSPECIFIED" for name in zeros}


def test_every_enum_is_top_level() -> None:
    """No enum hides in a message, where other languages spell it differently."""
    assert [m.name for m in messages().values() if m.enum_types] == []


def test_every_real_is_double() -> None:
    """A float would turn 0.12 into 0.11999999731 on its way through Configure."""
    assert [f.full_name for f in fields() if f.type == FieldDescriptor.TYPE_FLOAT] == []


def test_cache_options_can_all_be_left_unset() -> None:
    """Each option of the acceleration, left unset, differs from its zero."""
    blocks = [
        "DBCache",
        "DBPrune",
        "TaylorSeer",
        "DMD",
        "FoCa",
        "ParallelismConfig",
        "QuantizeConfig",
        "SvdqKwargs",
        "GenerationDefaults",
    ]
    singular = [
        f
        for name in blocks
        for f in messages()[name].fields
        if f.type != FieldDescriptor.TYPE_MESSAGE and not f.is_repeated
    ]
    assert [f.full_name for f in singular if not f.has_presence] == []


@pytest.mark.parametrize("name", RPCS)
def test_rpc_has_its_promised_shape(name: str) -> None:
    """Each RPC has its own request and response, and streams as promised."""
    service = diffusion_service_pb2.DESCRIPTOR.services_by_name["DiffusionService"]
    method = service.methods_by_name[name]
    assert not method.client_streaming
    shape = (method.server_streaming, method.input_type.name, method.output_type.name)
    assert shape == RPCS[name]


@pytest.mark.parametrize("name", FIELDS)
def test_message_has_its_promised_fields(name: str) -> None:
    """Each promised field is there, and where promised its absence can be told from zero."""
    found = {f.name: f for f in messages()[name].fields}
    promised = FIELDS[name].split()
    assert {p.rstrip("?") for p in promised} <= found.keys()
    assert [p for p in promised if p.endswith("?") and not found[p.rstrip("?")].has_presence] == []


@pytest.mark.parametrize("name", VALUES)
def test_enum_has_its_promised_values(name: str) -> None:
    """Each promised value is there, with the name of its enum before it."""
    found = set(enums()[name].values_by_name)
    assert {f"{upper_snake(name)}_{value}" for value in VALUES[name].split()} <= found


def test_cache_config_has_its_promised_numbers() -> None:
    """CacheConfig has the numbers that were given out, one method and one calibrator at most."""
    config = messages()["CacheConfig"]
    assert {f.name: f.number for f in config.fields} == CACHE_CONFIG_NUMBERS
    groups = {o.name: [f.name for f in o.fields] for o in config.oneofs}
    assert groups == {
        "method": ["disabled", "db_cache", "db_prune"],
        "calibrator": ["taylor_seer", "dmd", "foca"],
    }


def test_event_kinds_exclude_each_other() -> None:
    """An event is of one kind."""
    (kind,) = messages()["GenerationEvent"].oneofs
    assert kind.name == "kind"
    assert [f.name for f in kind.fields] == [
        *("queued", "started", "step_completed", "preview", "warning", "restarted"),
        *("heartbeat", "output_chunk", "completed"),
    ]
