"""Makes a model whose heads many ranks can share, for world sizes that the embedded one refuses.

Run as `python -m tests.campaigns.model FOLDER HEADS`, so that the campaigns need not import torch.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.distributed import shipped

ROOT = Path(__file__).parents[2]
_DEFAULTS = "defaults: {width: 96, height: 96, num_inference_steps: 8}\n"


def flags(world_size: int, folder: Path) -> tuple[str, ...]:
    """Give the flags of a server that so many ranks can run."""
    if shipped.HEADS % world_size == 0:
        return ("--world-size", str(world_size))
    model = folder / f"model-of-{world_size}"
    if not model.exists():
        command = [sys.executable, "-m", "tests.campaigns.model", str(model), str(2 * world_size)]
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    return ("--world-size", str(world_size), "--model", str(model))


def main(folder: str, heads: str) -> None:
    """Make it."""
    from tests.options import tiny

    tiny.pipeline(int(heads)).save_pretrained(folder)
    (Path(folder) / "ditcast.yaml").write_text(_DEFAULTS, "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
