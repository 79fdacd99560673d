"""`ditcast generate`."""

from __future__ import annotations

import argparse
import asyncio
import json
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from google.protobuf import json_format

from ditcast.v1.acceleration_pb2 import CacheConfig
from ditcast.v1.diffusion_service_pb2 import GenerateRequest
from ditcast.v1.generation_pb2 import (
    AdapterWeight,
    DisconnectPolicy,
    InputImageRole,
    OutputFormat,
    OutputOptions,
    Priority,
    ProgressOptions,
)
from ditcast_client import exits
from ditcast_client.client import Client
from ditcast_client.commands.command import UsageError, access, add_address
from ditcast_client.commands.output_files import FORMATS, place, resolve, write
from ditcast_client.commands.preview_files import PreviewFiles
from ditcast_client.fields import GenerateFields, request_from
from ditcast_client.images import Picture, input_image
from ditcast_client.interrupt import cancelling_on_interrupt
from ditcast_client.receipts import write_receipt
from ditcast_client.result import Result
from ditcast_client.views import View, choose_view

_PRIORITIES: Final = {
    "low": Priority.PRIORITY_LOW,
    "normal": Priority.PRIORITY_NORMAL,
    "high": Priority.PRIORITY_HIGH,
}
_POLICIES: Final = {
    "cancel": DisconnectPolicy.DISCONNECT_POLICY_CANCEL,
    "continue": DisconnectPolicy.DISCONNECT_POLICY_CONTINUE,
}
_PICTURES: Final = {
    "image": InputImageRole.INPUT_IMAGE_ROLE_IMAGE,
    "mask": InputImageRole.INPUT_IMAGE_ROLE_MASK,
    "control": InputImageRole.INPUT_IMAGE_ROLE_CONTROL,
    "last_frame": InputImageRole.INPUT_IMAGE_ROLE_LAST_FRAME,
}
"""Options that name files of pictures, with the role of each."""

_PLAIN_FIELDS: Final = (
    "request_id",
    "negative_prompt",
    "width",
    "height",
    "num_inference_steps",
    "guidance_scale",
    "true_cfg_scale",
    "seed",
    "num_images",
    "sigmas",
    "num_frames",
    "fps",
)
"""Options that are fields of the request as they are; None: left to the server."""


_FILES: Final[dict[str, Any]] = {"type": Path, "action": "append", "metavar": "FILE"}
"""Of an option that names a file, and may be repeated."""


class Generate:
    """Generate from a prompt, with a live progress bar, and write the outputs to files."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("prompt", help="what is to be seen")
        _add_output(parser)
        _add_request(parser)
        _add_previews(parser)
        add_address(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Generate, write and report."""
        path, form = resolve(options.output, options.format)
        request = build_request(options, form)
        client = Client(options.address, **access(options))
        receipt = place(options.receipt)
        previews = PreviewFiles(options.preview_folder) if options.preview_folder else None
        view = choose_view(options.address, as_json=options.json)
        with view:
            result = asyncio.run(_generate(client, request, view, previews))
            view.finish(result, write(result.outputs, path))
        if receipt is not None:
            _write_receipt(result, receipt)
        return exits.DONE


def build_request(options: argparse.Namespace, form: OutputFormat.ValueType) -> GenerateRequest:
    """Build the request that the options ask for.

    Raises:
        UsageError: A value is not what its option takes.
    """
    _refuse_combinations(options)
    fields = GenerateFields(
        prompt=options.prompt,
        output=OutputOptions(format=form, quality=options.quality),
        validate_only=options.validate_only,
        shadow_comparison=options.shadow,
        priority=_PRIORITIES[options.priority],
    )
    for name in _PLAIN_FIELDS:
        if getattr(options, name) is not None:
            fields[name] = getattr(options, name)
    if pictures := _pictures(options):
        fields["images"] = pictures
    if options.on_disconnect is not None:
        fields["on_disconnect"] = _POLICIES[options.on_disconnect]
    if options.adapter:
        fields["adapters"] = [_adapter(text) for text in options.adapter]
    if options.pipeline_kwargs is not None:
        fields["pipeline_kwargs"] = _json_object(options.pipeline_kwargs)
    if options.cache is not None:
        fields["cache"] = read_cache(options.cache)
    try:
        fields |= _progress(options)
        if options.timeout is not None:
            fields["timeout"] = timedelta(seconds=options.timeout)
        return request_from(fields)
    except (OverflowError, TypeError, ValueError) as err:
        raise UsageError(str(err)) from err


async def _generate(
    client: Client, request: GenerateRequest, view: View, previews: PreviewFiles | None
) -> Result:
    async with client, client.generate(request) as generation:
        with cancelling_on_interrupt(generation):
            async for event in generation:
                view.show(event)
                if previews is not None:
                    previews.take(event)
        return await generation.result()


def _adapter(text: str) -> AdapterWeight:
    name, colon, weight = text.partition(":")
    try:
        return AdapterWeight(name=name, weight=float(weight) if colon else None)
    except ValueError as err:
        raise UsageError(f"--adapter {text}: it must be NAME or NAME:WEIGHT") from err


def _pictures(options: argparse.Namespace) -> list[Picture]:
    """Read the files, in the order of the roles and then of the command line."""
    try:
        return [
            input_image(path, role)
            for name, role in _PICTURES.items()
            for path in getattr(options, name) or ()
        ]
    except OSError as err:
        raise UsageError(f"cannot read {err.filename}: {err.strerror}") from err


def _progress(options: argparse.Namespace) -> GenerateFields:
    """Give the field where something is asked for; a value out of int32 is a ValueError."""
    if not options.preview_every and options.preview_max_side is None:
        return {}
    asked = ProgressOptions(
        preview_every_n_steps=options.preview_every, preview_max_side=options.preview_max_side
    )
    return {"progress": asked}


def _refuse_combinations(options: argparse.Namespace) -> None:
    if options.validate_only and options.receipt is not None:
        raise UsageError("--receipt: what is only validated has no receipt")
    if options.preview_folder is not None and not options.preview_every:
        raise UsageError("--preview-folder: say how often, with --preview-every")


def _write_receipt(result: Result, path: Path) -> None:
    try:
        write_receipt(result.receipt, path)
    except OSError as err:
        raise UsageError(f"cannot write {err.filename}: {err.strerror}") from err


def _json_object(text: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as err:
        raise UsageError(f"--pipeline-kwargs is not JSON: {err}") from err
    if not isinstance(value, dict):
        raise UsageError("--pipeline-kwargs must be a JSON object")
    return value


def read_cache(path: Path) -> CacheConfig:
    """Read a CacheConfig of the contract, in JSON.

    Raises:
        UsageError: It cannot be read, or is none.
    """
    try:
        return json_format.Parse(path.read_bytes(), CacheConfig())
    except OSError as err:
        raise UsageError(f"cannot read {path}: {err.strerror}") from err
    except (json_format.ParseError, UnicodeDecodeError) as err:
        raise UsageError(f"{path} is not a CacheConfig in JSON: {err}") from err


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="file to write, replaced if there; several outputs become FILE-0, FILE-1, ... "
        "before its ending (default: out.png, or out.mp4 of a pipeline that makes videos)",
    )
    parser.add_argument("--format", choices=FORMATS, help="form (default: by the file's ending)")
    parser.add_argument("--quality", type=int, help="of jpeg, webp and mp4, 1 to 100")
    parser.add_argument("--json", action="store_true", help="print one event a line, as JSON")
    parser.add_argument(
        "--receipt", type=Path, metavar="FILE", help="write the receipt, for `ditcast replay`"
    )


def _add_previews(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preview-every", type=int, default=0, metavar="N", help="a preview after every N steps"
    )
    parser.add_argument(
        "--preview-max-side", type=int, metavar="PIXELS", help="longest side (default: 256)"
    )
    parser.add_argument(
        "--preview-folder",
        type=Path,
        metavar="FOLDER",
        help="where previews are written, as preview-0005.jpg and so on",
    )


def _add_request(parser: argparse.ArgumentParser) -> None:
    """Declare what the request says; whatever is left out, the server decides."""
    parser.add_argument("--negative-prompt", metavar="TEXT", help="what is not to be seen")
    parser.add_argument("--width", type=int, metavar="PIXELS")
    parser.add_argument("--height", type=int, metavar="PIXELS")
    parser.add_argument("--steps", type=int, dest="num_inference_steps", metavar="N")
    parser.add_argument("--guidance-scale", type=float, metavar="X")
    parser.add_argument("--true-cfg-scale", type=float, metavar="X")
    parser.add_argument("--seed", type=int, metavar="N", help="of the first output")
    parser.add_argument("--num-images", type=int, metavar="N")
    parser.add_argument("--image", **_FILES, help="picture to start from or to edit")
    parser.add_argument("--mask", **_FILES, help="what of it may change: white changes")
    parser.add_argument("--control", **_FILES, help="picture that steers, as edges or a pose")
    parser.add_argument("--last-frame", **_FILES, help="picture that a video ends with")
    parser.add_argument("--num-frames", type=int, metavar="N", help="of a video")
    parser.add_argument("--fps", type=float, metavar="X", help="frames a second of a video")
    parser.add_argument("--sigmas", type=_numbers, metavar="X,X,...", help="noise levels, falling")
    parser.add_argument(
        "--pipeline-kwargs", metavar="JSON", help="further arguments of the pipeline, an object"
    )
    parser.add_argument(
        "--cache", type=Path, metavar="FILE", help="CacheConfig for this request alone, as JSON"
    )
    parser.add_argument(
        "--adapter",
        action="append",
        metavar="NAME[:WEIGHT]",
        help="a loaded LoRA adapter, and how strongly it acts, -10 to 10; may be repeated",
    )
    parser.add_argument(
        "--shadow",
        action="store_true",
        help="make the same without a cache right after, and say how near the output is to it",
    )
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="its time limit")
    parser.add_argument("--priority", choices=_PRIORITIES, default="normal")
    parser.add_argument("--request-id", metavar="ID", help="idempotency key (default: a new one)")
    parser.add_argument(
        "--on-disconnect",
        choices=_POLICIES,
        help="whether it goes on when this command is gone, to be watched later (Ctrl-C cancels)",
    )
    parser.add_argument(
        "--validate-only", action="store_true", help="check and resolve, generate nothing"
    )
