"""Receipts as files lose nothing, say what is wrong with them, and stand for one request."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import pytest

from ditcast.v1.acceleration_pb2 import CacheConfig, Configuration, DBCache
from ditcast.v1.capabilities_pb2 import Capabilities, Model, Parameter
from ditcast.v1.diffusion_service_pb2 import Adapter
from ditcast.v1.generation_pb2 import (
    INPUT_IMAGE_ROLE_MASK,
    OUTPUT_FORMAT_JPEG,
    AdapterUse,
    InputImageDigest,
    OutputDigest,
    OutputOptions,
    Receipt,
    ResolvedParameters,
)
from ditcast_client import UnusableReceipt, exits, read_receipt, write_receipt
from ditcast_client.cli import main
from ditcast_client.receipts import differences, request_of

TAKEN = Capabilities(
    parameters=[Parameter(name=name) for name in ("prompt", "width", "height")],
    model=Model(id="made-up", weights_digest="ab", dtype="float32"),
    world_size=1,
    threads_per_rank=2,
    device="cpu",
    library_versions={"torch": "2.13.0"},
)


def receipt(**parameters: Any) -> Receipt:  # noqa: ANN401 (the message's own)
    """Make a receipt of `TAKEN`, with some parameters."""
    return Receipt(
        parameters=ResolvedParameters(
            prompt="a", width=64, height=32, num_inference_steps=4, num_images=1, **parameters
        ),
        model_id="made-up",
        weights_digest="ab",
        library_versions={"torch": "2.13.0"},
        world_size=1,
        threads_per_rank=2,
        device="cpu",
        dtype="float32",
        outputs=[OutputDigest(sha256=bytes(32))],
    )


def test_a_receipt_survives_its_file(tmp_path: Path) -> None:
    """Every number comes back to its last bit."""
    made = receipt(
        seed=2**64 - 1,
        true_cfg_scale=math.pi,
        sigmas=[1 / 3, 5e-324, 1.7976931348623157e308],
        pipeline_kwargs={"max_sequence_length": 512, "ratio": 0.1 + 0.2, "none": None},
        cache=CacheConfig(db_cache=DBCache(residual_diff_threshold=0.12)),
    )
    assert read_receipt(write_receipt(made, tmp_path / "receipt.json")) == made


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"[]",
        b"{}",
        b'{"parameters": {}, "modelId": "a"}',
        b'{"unheard": 1}',
        b'{"parameters": {"width": "wide"}}',
        b'{"parameters": {}, "modelId": "a", "outputs": [{"sha256": "AAAA"}]}',
    ],
)
def test_what_is_no_receipt_is_refused_by_name(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bad usage, exit code 2, before any server is asked."""
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(UnusableReceipt, match=r"bad\.json is not a"):
        read_receipt(path)
    assert main(["replay", str(path)]) == exits.REFUSED
    assert "bad.json" in capsys.readouterr().err


def test_a_file_that_is_not_there_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same exit code."""
    assert main(["replay", str(tmp_path / "none.json")]) == exits.REFUSED
    assert "cannot read" in capsys.readouterr().err


def test_the_request_is_rebuilt_from_the_receipt() -> None:
    """All that was settled is asked for, but for what this pipeline does not take."""
    made = receipt(
        seed=0,
        negative_prompt="",
        num_frames=9,
        fps=7.5,
        output=OutputOptions(format=OUTPUT_FORMAT_JPEG, quality=31),
        adapters=[AdapterUse(name="thick", weight=-0.5, weights_digest="cd")],
    )
    request = request_of(made, TAKEN)
    assert (request.width, request.height, request.num_frames, request.fps) == (64, 32, 9, 7.5)
    assert request.HasField("seed")
    assert request.HasField("negative_prompt")
    assert not request.HasField("num_inference_steps")
    assert not request.HasField("guidance_scale")
    assert request.output == made.parameters.output
    [adapter] = request.adapters
    assert (adapter.name, adapter.weight) == ("thick", -0.5)


def test_pictures_are_told_by_their_content() -> None:
    """In any order, each in its place; missing ones and strangers are all named at once."""
    first, second = (
        InputImageDigest(
            parameter=name,
            role=INPUT_IMAGE_ROLE_MASK,
            size_bytes=3,
            sha256=hashlib.sha256(data).digest(),
        )
        for name, data in (("image", b"one"), ("mask", b"two"))
    )
    made = receipt(images=[first, second, first])
    request = request_of(made, TAKEN, [b"two", b"one"])
    assert [(image.parameter, image.data) for image in request.images] == [
        ("image", b"one"),
        ("mask", b"two"),
        ("image", b"one"),
    ]
    with pytest.raises(UnusableReceipt) as refused:
        request_of(made, TAKEN, [b"one", b"other"])
    assert "input picture 1 (mask) is not given" in str(refused.value)
    assert hashlib.sha256(b"other").hexdigest() in str(refused.value)


def test_every_difference_is_named_with_both_values() -> None:
    """What a request brings along itself, as the cache, is none."""
    made = receipt(adapters=[AdapterUse(name="thick", weight=1, weights_digest="cd")])
    here = Configuration(cache=CacheConfig(db_cache=DBCache()), revision=7)
    assert differences(made, TAKEN, here, [Adapter(name="thick", weights_digest="cd")]) == ()
    other = Capabilities()
    other.CopyFrom(TAKEN)
    other.library_versions["torch"] = "2.14.0"
    other.threads_per_rank = 1
    here.parallelism.ulysses_degree = 2
    here.loading.component_dtypes["vae"] = "float32"
    assert [str(each) for each in differences(made, other, here)] == [
        "threads_per_rank: 2 in the receipt, 1 on the server",
        "library_versions.torch: 2.13.0 in the receipt, 2.14.0 on the server",
        "adapters.thick.weights_digest: cd in the receipt, none on the server",
        "configuration.parallelism.ulysses_degree: none in the receipt, 2 on the server",
        "configuration.loading.component_dtypes.vae: none in the receipt, float32 on the server",
    ]
