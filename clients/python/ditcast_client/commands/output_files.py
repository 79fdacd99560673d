"""Where outputs are written: forms by ending of the file's name, and names for several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ditcast.v1.generation_pb2 import OutputFormat
from ditcast_client.commands.command import UsageError
from ditcast_client.outputs import Output

FORMATS: Final = {
    "png": OutputFormat.OUTPUT_FORMAT_PNG,
    "jpeg": OutputFormat.OUTPUT_FORMAT_JPEG,
    "webp": OutputFormat.OUTPUT_FORMAT_WEBP,
    "mp4": OutputFormat.OUTPUT_FORMAT_MP4,
    "raw-rgb8": OutputFormat.OUTPUT_FORMAT_RAW_RGB8,
    "latent-safetensors": OutputFormat.OUTPUT_FORMAT_LATENT_SAFETENSORS,
}
_ENDINGS: Final = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
    ".mp4": "mp4",
    ".rgb": "raw-rgb8",
    ".safetensors": "latent-safetensors",
}


_MEDIA_TYPES: Final = {
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/webp": ".webp",
    "video/mp4": ".mp4",
    "application/octet-stream": ".rgb",
}


def resolve(path: Path | None, name: str | None) -> tuple[Path | None, OutputFormat.ValueType]:
    """Settle where to write and in what form; one follows from the other.

    With neither the form is the server's default, and the file is called by what comes.

    Raises:
        UsageError: The ending names no form, or the place cannot be written to.
    """
    if path is None and name is None:
        return None, OutputFormat.OUTPUT_FORMAT_UNSPECIFIED
    if path is None:
        path = Path("out" + next(ending for ending, form in _ENDINGS.items() if form == name))
    _refuse_folder(path)
    name = name or _ENDINGS.get(path.suffix.lower())
    if name is None:
        raise UsageError(f"{path}: no form has this ending; use --format, or {' '.join(_ENDINGS)}")
    place(path)
    return path, FORMATS[name]


def place(path: Path | None) -> Path | None:
    """See to it that a file can be written there, before anything is asked for.

    Raises:
        UsageError: It cannot.
    """
    if path is None:
        return None
    _refuse_folder(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise UsageError(f"cannot write to {path.parent}: {err.strerror}") from err
    return path


def write(outputs: Sequence[Output], path: Path | None) -> list[Path]:
    """Write the outputs: one under the name itself, several as name-0, name-1 and so on.

    Args:
        outputs: What to write.
        path: The name; None: out, with the ending of the outputs' form.

    Raises:
        UsageError: A file cannot be written.
    """
    if path is None:
        media_type = outputs[0].media_type if outputs else ""
        path = Path("out" + _MEDIA_TYPES.get(media_type, ""))
    try:
        if len(outputs) == 1:
            return [outputs[0].save(path)]
        names = [path.with_stem(f"{path.stem}-{output.output_index}") for output in outputs]
        return [output.save(name) for output, name in zip(outputs, names, strict=True)]
    except OSError as err:
        raise UsageError(f"cannot write {err.filename}: {err.strerror}") from err


def _refuse_folder(path: Path) -> None:
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a file")
