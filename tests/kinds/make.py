"""Makes models of the kinds, the same each time: `python -m tests.kinds.make FOLDER NAME...`.

On their own, so that the tests need not import torch.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from tests.kinds.builders.registry import builders
from tests.kinds.kinds import BY_NAME, Kind


def main() -> None:
    """Write each into a folder of its name."""
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    known = builders()
    for name in names:
        torch.manual_seed(0)
        made: Any = known[name]()  # diffusers types the call alone
        made.save_pretrained(folder / name)
        usual = yaml.safe_dump({"defaults": _defaults(BY_NAME[name])})
        (folder / name / "ditcast.yaml").write_text(usual, "utf-8")


def _defaults(kind: Kind) -> dict[str, int]:
    # The pipelines' own are meant for large models and take a CPU minutes.
    size = {"width": kind.width, "height": kind.height}
    return size if kind.num_frames is None else {**size, "num_frames": kind.num_frames}


if __name__ == "__main__":
    main()
