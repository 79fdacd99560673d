"""Previews as files in a folder, one for each step that has one."""

from __future__ import annotations

from pathlib import Path

from ditcast.v1.generation_pb2 import GenerationEvent
from ditcast_client.commands.command import UsageError

_ENDINGS = {"image/jpeg": ".jpg"}


class PreviewFiles:
    """Writes preview-0005.jpg and so on, of several outputs preview-0005-0.jpg, -1.jpg."""

    def __init__(self, folder: Path) -> None:
        """Take the folder, which is made if need be.

        Raises:
            UsageError: It cannot be.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise UsageError(f"cannot write to {folder}: {err.strerror}") from err
        self._folder = folder
        self._num_images = 1

    def take(self, event: GenerationEvent) -> None:
        """Write what an event shows; superseded previews come without data.

        Raises:
            UsageError: A file cannot be written.
        """
        if event.HasField("started"):
            self._num_images = event.started.parameters.num_images
        preview = event.preview
        if not preview.data:
            return
        output = f"-{preview.output_index}" if self._num_images > 1 else ""
        name = f"preview-{preview.step:04}{output}{_ENDINGS.get(preview.media_type, '')}"
        try:
            (self._folder / name).write_bytes(preview.data)
        except OSError as err:
            raise UsageError(f"cannot write {err.filename}: {err.strerror}") from err
