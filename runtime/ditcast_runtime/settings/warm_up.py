"""What the ranks run before they serve, written `WIDTHxHEIGHT[xFRAMES][@STEPS]`."""

from __future__ import annotations

import re
from dataclasses import dataclass

_FORM = re.compile(r"(\d{1,6})x(\d{1,6})(?:x(\d{1,6}))?(?:@(\d{1,6}))?")


@dataclass(frozen=True, slots=True)
class WarmUp:
    """One run of the warm-up."""

    width: int
    """Pixels."""
    height: int
    """Pixels."""
    num_frames: int | None = None
    """Frames of a video. None: the pipeline's own number, or a picture."""
    num_inference_steps: int = 2
    """Steps, from 1: two bring the pipeline into its stride, more are for what comes later."""

    @classmethod
    def parse(cls, text: str) -> WarmUp:
        """Read one.

        Raises:
            ValueError: it has another form.
        """
        match = _FORM.fullmatch(text.strip())
        if match is None:
            form = "WIDTHxHEIGHT[xFRAMES][@STEPS], such as 512x512@4"
            raise ValueError(f"{text!r:.40} is not {form}")
        width, height, frames, steps = match.groups()
        return cls(
            int(width), int(height), int(frames) if frames else None, int(steps) if steps else 2
        )

    def __str__(self) -> str:
        """Give it in the form in which it is read."""
        frames = f"x{self.num_frames}" if self.num_frames is not None else ""
        return f"{self.width}x{self.height}{frames}@{self.num_inference_steps}"
