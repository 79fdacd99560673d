"""The small pipeline in this process, and groups of ranks in others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from tests.options import tiny
from tests.options.ranks import Order, Report
from tests.options.running import Bench

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def bench() -> Iterator[Bench]:
    """Give one pipeline that caches, for all tests that only change its cache."""
    made = Bench(tiny.pipeline())
    yield made
    # cache-dit marks the class: another pipeline of it would count as cached.
    made.close()


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Order], list[Report]]]:
    """Give a function that carries out an order on as many ranks as it says."""
    log = tmp_path_factory.mktemp("ranks") / "log"
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.options.ranks"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        orders, answers = process.stdin, process.stdout

        def run(order: Order) -> list[Report]:
            orders.write(msgspec.json.encode(order) + b"\n")
            orders.flush()
            answer = answers.readline()
            assert answer, log.read_text("utf-8", errors="replace")[-3000:]
            return msgspec.json.decode(answer, type=list[Report])

        yield run
        orders.close()
