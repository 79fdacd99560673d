"""Draws 24 prompts, without selection: `python -m ditcast_runtime.starter.contact_sheet`."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from ditcast_runtime.config import STARTER_MODEL
from ditcast_runtime.starter.painter import Manner, Painter
from ditcast_runtime.starter.scenes import Picture
from ditcast_runtime.starter.text_encoder import NULL_PROMPT

PROMPTS = (
    "a large red circle on a white background",
    "a small blue star on a yellow background",
    "a large green square",
    "a purple triangle on a black background",
    "a large orange ring on a white background",
    "a white cross on a red background",
    "a small blue star left of a green square on a yellow background",
    "a large red circle above a small black cross on a white background",
    "a yellow ring right of a purple triangle on a black background",
    "an orange star below a white circle on a blue background",
    "a small green triangle left of a large red ring",
    "a large blue square above a large orange circle on a white background",
    "a black star on an orange background",
    "a small white ring on a purple background",
    "a large yellow star on a blue background",
    "a red square left of a red circle on a white background",
    "a green cross above a yellow cross on a purple background",
    "a large purple circle right of a small orange triangle",
    "red circle",
    "blue star",
    "a big yellow triangle on a green background",
    "A black ring above a red star on a white background",
    "a white square left of a black square on a green background",
    "an orange cross",
)
FIRST_SEED = 42
_COLUMNS = 6
_SIDE = 160
_GAP = 8
_CAPTION_HEIGHT = 34


def contact_sheet(painter: Painter, steps: int = 20) -> Image.Image:
    """Paint all prompts, with seeds counted up from `FIRST_SEED`, and lay them out."""
    seeds = list(range(FIRST_SEED, FIRST_SEED + len(PROMPTS)))
    manner = Manner(steps=steps, negative_prompt=NULL_PROMPT)
    return lay_out(painter.paint(list(PROMPTS), seeds, manner), list(PROMPTS))


def lay_out(pictures: list[Picture], captions: list[str]) -> Image.Image:
    """Put pictures into rows of six, each over its caption."""
    rows = -(-len(pictures) // _COLUMNS)
    cell, line = _SIDE + _GAP, _SIDE + _CAPTION_HEIGHT + _GAP
    sheet = Image.new("RGB", (_COLUMNS * cell + _GAP, rows * line + _GAP), (200, 200, 200))
    pencil = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        corner = (_GAP + index % _COLUMNS * cell, _GAP + index // _COLUMNS * line)
        sheet.paste(Image.fromarray(picture).resize((_SIDE, _SIDE)), corner)
        text = "\n".join(textwrap.wrap(caption, 28))
        pencil.multiline_text((corner[0], corner[1] + _SIDE + 1), text, "black", font, spacing=0)
    return sheet


def main() -> None:
    """Draw the sheet of a pipeline folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=STARTER_MODEL, help="a pipeline folder")
    parser.add_argument("--output", type=Path, default=Path("contact-sheet.png"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    painter = Painter.load(options.model, torch.device(options.device))
    contact_sheet(painter, options.steps).save(options.output, optimize=True)


if __name__ == "__main__":
    main()
