"""Makes an inpainting pipeline of the embedded model: the same weights behind another call.

Run as `python inpaint_model.py FOLDER`.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from ditcast_runtime.config import STARTER_MODEL


def make(folder: Path) -> None:
    """Copy the model, and name the other pipeline in its index."""
    shutil.copytree(STARTER_MODEL, folder)
    path = folder / "model_index.json"
    index = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(index | {"_class_name": "QwenImageInpaintPipeline"}), "utf-8")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
