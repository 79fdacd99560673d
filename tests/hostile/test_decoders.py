"""The decoders that strangers' bytes reach answer or refuse, and raise nothing else."""

from __future__ import annotations

import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.campaigns.hostile.decoders import DECODERS

ROOT = Path(__file__).parents[2]
MUTATIONS = 400
SECONDS = 300


def mutated(source: random.Random, data: bytes) -> bytes:
    """Change some bytes, or move, drop or repeat some."""
    place, end = sorted(source.randrange(len(data) + 1) for _ in range(2))
    match source.randrange(4):
        case 0:
            return data[:place] + data[end:]
        case 1:
            return data[:end] + data[place:end][:64] * source.randrange(1, 9) + data[end:]
        case 2:
            return data[:place] + source.randbytes(source.randrange(1, 5)) + data[end:]
        case _:
            return data[:place] + source.randbytes(1) + data[place + 1 :]


@pytest.mark.parametrize("name", DECODERS)
def test_seeds_and_what_chance_makes_of_them_are_answered(name: str) -> None:
    """The same bytes each time: what is sound, and mutations of it one after another."""
    source = random.Random(6)  # noqa: S311 (to be repeated)
    decoder = DECODERS[name]
    for seed in decoder.seeds():
        decoder.feed(seed)
        data = seed
        for number in range(MUTATIONS // 8):
            data = mutated(source, seed if number % 4 == 0 else data)
            decoder.feed(data)


@pytest.mark.soak
@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.skipif(
    find_spec("atheris") is None, reason="atheris, of the extra `fuzz`, is not installed"
)
@pytest.mark.parametrize("name", DECODERS)
def test_a_fuzzer_that_watches_coverage_finds_nothing(name: str, tmp_path: Path) -> None:
    """For five minutes each; what it finds is left in a file that its output names."""
    command = [sys.executable, "-m", "tests.campaigns.hostile.fuzz", name, "--seconds"]
    done = subprocess.run(
        [*command, str(SECONDS), "--corpus", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
