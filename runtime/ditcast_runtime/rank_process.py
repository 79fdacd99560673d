"""The entry point of a rank that the service starts: `python -m ditcast_runtime.rank_process`.

It is bound to the life of the service before it imports anything that takes long.
"""

from __future__ import annotations

import os
import sys

from ditcast_runtime.environment import die_with_the_parent, uncollected_imports


def main() -> int:
    """Bind this process to the service, then become a rank; give the exit code."""
    die_with_the_parent()
    # torch, diffusers and cache-dit take seconds: a service that was killed meanwhile would be
    # outlived by as much.
    with uncollected_imports():
        from ditcast_runtime import rank  # noqa: PLC0415

    return rank.main()


if __name__ == "__main__":
    # Skips the interpreter's teardown, in which gloo's threads may wait for ranks that are gone.
    code = main()
    sys.stderr.flush()
    os._exit(code)
