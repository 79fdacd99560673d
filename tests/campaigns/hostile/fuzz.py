"""`python -m tests.campaigns.hostile.fuzz settings --seconds 60`: atheris on one of the decoders.

Needs the extra `fuzz`. Exit code 0: nothing was found in that time. What is found is written to a
file, whose name the last lines say; given as an argument of its own it is tried again, alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import atheris

LONGEST_BYTES = 4096


def main(arguments: list[str]) -> None:
    """Fuzz until the time is over; never returns."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.hostile.fuzz")
    parser.add_argument("decoder")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, help="folder that keeps what reached new code")
    parser.add_argument("again", nargs="*", help="files to try once, in place of fuzzing")
    asked = parser.parse_args(arguments)
    with atheris.instrument_imports(include=["ditcast_runtime", "ditcast_service", "yaml", "PIL"]):
        from tests.campaigns.hostile.decoders import DECODERS
    decoder = DECODERS[asked.decoder]
    corpus = asked.corpus or Path(tempfile.mkdtemp(prefix="ditcast-fuzz-"))
    for number, seed in enumerate(decoder.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    limits = [f"-max_total_time={asked.seconds}", f"-seed={asked.seed}"]
    given = asked.again or [str(corpus)]
    options = [*limits, f"-max_len={LONGEST_BYTES}", "-rss_limit_mb=4096", "-timeout=20"]
    atheris.Setup([sys.argv[0], *options, *given], decoder.feed)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
