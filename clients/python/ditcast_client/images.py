"""Input pictures of a request: from files, bytes, or messages of the contract."""

from __future__ import annotations

import os
from pathlib import Path

from ditcast.v1.generation_pb2 import InputImage, InputImageRole

Picture = str | os.PathLike[str] | bytes | InputImage
"""A file's name, the bytes of one, or a message, which alone can have a role."""


def input_image(
    source: Picture,
    role: InputImageRole.ValueType = InputImageRole.INPUT_IMAGE_ROLE_UNSPECIFIED,
    parameter: str = "",
) -> InputImage:
    """Give the message for a picture; files are read here, the server opens none.

    Args:
        source: What to send; a message is given back as it is.
        role: What the picture is for. Unspecified: the image to start from.
        parameter: The pipeline's parameter that takes it. Empty: the one that the role stands for.

    Raises:
        OSError: The file cannot be read.
    """
    if isinstance(source, InputImage):
        return source
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    return InputImage(data=data, role=role, parameter=parameter)
