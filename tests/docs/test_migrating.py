"""docs/MIGRATING.md names what there is, and leaves out none of the other servers' flags."""

from __future__ import annotations

import re

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor
from tests.docs.commands import NEEDS, ROOT, commands, files

from ditcast.v1 import diffusion_service_pb2
from ditcast_runtime.settings import SettingsError
from ditcast_runtime.settings.document import SECTIONS, parse_acceleration
from ditcast_service.config import FIELDS, load

PAGE = ROOT / "docs" / "MIGRATING.md"
TEXT = PAGE.read_text("utf-8")

SERVICE = diffusion_service_pb2.DESCRIPTOR.services_by_name["DiffusionService"]
FLAGS = {field.flag for field in FIELDS}

CACHE_DIT_FLAGS = """
    --Bn --Bn-compute-blocks --Fn --Fn-compute-blocks --attn --cache --compile
    --compile-repeated-blocks --device --device-map --disable-fuse-lora --dtype
    --enable-cpu-offload --gen-device --generator-device --height --host --image-path --lora-name
    --lora-path --mask-policy --max-autotune --max-cached-steps --max-continuous-cached-steps
    --max-warmup-steps --mc --mcc --model-path --negative-prompt --num-inference-steps -order
    --parallel --parallel-text --parallel-text-encoder --parallel-type --parallel-vae --perf
    --pipeline-quant-config-path --port --prompt -q --quant-type --quantize --quantize-type --rdt
    --repeat --residual-diff-threshold --scm --steps --steps-mask --taylorseer --taylorseer-order
    --track-memory --uaa --uaqkv --ufp8 --ulysses-anything --ulysses-async --ulysses-float8 --w
    --warmup --warmup-interval --wi --width --workers --ws
"""
"""Of cache_dit/serve/serve.py, 1.3.4: every one that it parses."""

CACHE_DIT_FIELDS = """
    fps guidance_scale height image_urls include_stats negative_prompt num_frames num_images
    num_inference_steps output_dir output_format prompt seed sigmas width
"""
"""Of its GenerateRequestAPI."""

SGLANG_FLAGS = """
    --attention-backend --attention-backend-config --backend --cache-dit-config
    --data-parallel-size --diffusers-attention-backend --disable-autocast --dist-timeout
    --dit-cpu-offload --dit-layerwise-offload --dit-offload-prefetch-size --dp --dp-size
    --enable-cfg-parallel --enable-torch-compile --host --hsdp-replicate-dim --hsdp-shard-dim
    --image-encoder-cpu-offload --log-level --lora-nickname --lora-path --lora-scale
    --mask-strategy-file-path --master-port --model-path --num-gpus --output-path --pin-cpu-memory
    --port --prompt-file-path --revision --ring-degree --scheduler-port --sp-degree
    --text-encoder-cpu-offload --tp-size --trust-remote-code --ulysses-degree --use-fsdp-inference
    --vae-cpu-offload --vae-path --warmup --warmup-resolutions --webui --webui-port
"""
"""Of ServerArgs.add_cli_args, but for those of Nunchaku, which the page names together."""

SGLANG_FIELDS = """
    background diffusers_kwargs enable_teacache enable_upscaling flow_shift fps generator_device
    guidance_scale guidance_scale_2 height input_reference max_sequence_length model n
    negative_prompt num_frames num_inference_steps num_outputs_per_prompt output_compression
    output_format output_path output_quality perf_dump_path prompt quality reference_url
    response_format seconds seed size style true_cfg_scale user width
"""
"""Of ImageGenerationsRequest and VideoGenerationsRequest."""


def rows(server: str) -> list[tuple[str, str]]:
    """List the first two cells of each row in the tables of one server."""
    found: list[tuple[str, str]] = []
    heading = ""
    for line in TEXT.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if not line.startswith("|"):
            heading = ""
        elif line.startswith("|--"):
            continue
        elif not heading:
            heading = cells[0]
        elif heading == server:
            found.append((cells[0], cells[1]))
    return found


ROWS = [row for server in ("cache-dit", "SGLang") for row in rows(server)]
OURS = sorted({name for _, ours in ROWS for name in re.findall(r"`([^`]+)`", ours)})


def has_field(message: Descriptor, path: str) -> bool:
    """Say whether a path of fields leads somewhere."""
    first, _, rest = path.partition(".")
    field = message.fields_by_name.get(first)
    if field is None:
        return False
    return not rest or (field.message_type is not None and has_field(field.message_type, rest))


def is_key(path: str) -> bool:
    """Say whether cache-dit's file has a key, by reading one in which it is unset."""
    section, _, key = path.partition(".")
    try:
        parse_acceleration({section: {key: None} if key else None})
    except SettingsError as error:
        return all("unknown key" not in problem.reason for problem in error.problems)
    return True


@pytest.mark.parametrize("name", OURS)
def test_what_ditcast_has_in_its_place_is_there(name: str) -> None:
    """A flag, a key of the file, an RPC, or a field."""
    if name.startswith("--"):
        assert name in FLAGS
    elif name.partition(".")[0] in SECTIONS:
        assert is_key(name)
    elif name in SERVICE.methods_by_name:
        pass
    elif name[0].isupper():
        message, _, path = name.partition(".")
        pool = descriptor_pool.Default()
        assert has_field(pool.FindMessageTypeByName(f"ditcast.v1.{message}"), path)
    else:
        assert has_field(diffusion_service_pb2.GenerateRequest.DESCRIPTOR, name)


def test_a_key_that_there_is_not_would_be_seen() -> None:
    """Else no test of a key could fail."""
    assert not is_key("cache_config.bogus")


@pytest.mark.parametrize(
    ("server", "names"),
    [
        ("cache-dit", CACHE_DIT_FLAGS + CACHE_DIT_FIELDS),
        ("SGLang", SGLANG_FLAGS + SGLANG_FIELDS),
    ],
    ids=["cache-dit", "SGLang"],
)
def test_nothing_of_theirs_is_left_out(server: str, names: str) -> None:
    """Each has a row, if only to say that there is nothing in its place."""
    told = {name for theirs, _ in rows(server) for name in re.findall(r"`([^`]+)`", theirs)}
    assert set(names.split()) - told == set()
    assert all("`" in ours or ours == "None" for _, ours in rows(server))


def test_other_names_in_running_text_are_there_too() -> None:
    """Fields of answers, which are told in sentences."""
    pool = descriptor_pool.Default()
    named = set(re.findall(r"`([A-Z]\w+)\.([a-z][\w.]*)`", TEXT))
    assert len(named) > 5
    for message, path in named:
        assert has_field(pool.FindMessageTypeByName(f"ditcast.v1.{message}"), path), message


def test_the_examples_are_understood(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the file that the page shows; they need hardware only to be run."""
    folder = tmp_path_factory.mktemp("migrating")
    monkeypatch.chdir(folder)
    for name, content in files(PAGE).items():
        (folder / name).write_text(content, "utf-8")
    lines = list(commands(PAGE))
    assert len(lines) == 2
    for line in lines:
        assert NEEDS.search(line)
        arguments = line.partition("#")[0].split()[2:]
        load(arguments, {})
