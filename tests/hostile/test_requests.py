"""Whatever a request holds, its end is the caller's to mend, and the server goes on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor import Descriptor
from tests.campaigns.hostile import campaign, paths, report
from tests.campaigns.hostile.messages import METHODS
from tests.campaigns.hostile.targets import STARTER, goes_on
from tests.campaigns.hostile.verdict import Verdict
from tests.campaigns.hostile.wire import Sent
from tests.distributed.servers import Server

from ditcast.v1 import diffusion_service_pb2 as pb

ROOT = Path(__file__).parents[2]
SEED = 20_261_126
GENERATE: Descriptor = pb.GenerateRequest.DESCRIPTOR
CONFIGURE: Descriptor = pb.ConfigureRequest.DESCRIPTOR


def test_500_hostile_requests_break_no_promise(victim: Server) -> None:
    """No INTERNAL, no UNKNOWN, no hang; refusals name fields that there are; no rank is lost.

    And each call is one line of the log, however it ended.
    """
    ranks = [rank.pid for rank in victim.ranks()]
    before = calls_logged(victim)
    counts = campaign.run(victim.addresses[1], STARTER.sound, 500, SEED, lambda _: None)
    assert {method for method, _, _ in counts.by_end} == set(METHODS)
    assert any(code == "OK" for method, code, _ in counts.by_end if method == "Generate")
    limit = time.monotonic() + 30
    while calls_logged(victim) < before + 500 and time.monotonic() < limit:
        time.sleep(0.1)  # Those that were left end a little later.
    assert calls_logged(victim) == before + 500
    goes_on(victim, STARTER, ranks)


def calls_logged(server: Server) -> int:
    """Count the lines on the ends of calls; each says which, how, how long and for whom."""
    lines = [entry for entry in server.entries() if entry.get("event") == "rpc ended"]
    assert all({"method", "code", "seconds", "peer"} <= line.keys() for line in lines)
    return len(lines)


@pytest.mark.parametrize("length", [0, 1, -1, -5_000, 2**40])
def test_arguments_that_no_check_knows_are_the_callers_to_mend(length: int, victim: Server) -> None:
    """The pipeline alone knows what they may be: it makes a picture, or refuses them by name."""
    request = pb.GenerateRequest()
    request.CopyFrom(STARTER.sound)
    request.pipeline_kwargs.fields["max_sequence_length"].number_value = length
    caller = campaign.Caller(victim.addresses[1])
    [verdict] = caller.burst([Sent("Generate", request.SerializeToString())])
    caller.close()
    assert verdict.fault == ""
    assert verdict.code in {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_20000_hostile_requests_break_no_promise(tmp_path: Path) -> None:
    """As above, for long, and with pictures: the command that prints a report."""
    command = [sys.executable, "-m", "tests.campaigns.hostile", "--requests", "20000"]
    done = subprocess.run(
        [*command, "--seed", "1", "--store", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    stored = json.loads((tmp_path / "hostile.json").read_text())
    assert sum(stored["requests"].values()) >= 20_000


def test_a_report_has_every_end_and_the_command_that_makes_it_again(tmp_path: Path) -> None:
    """Calls by RPC, status and reason, over all servers; as a table and as JSON."""
    found = {"one": campaign.Counts(), "other": campaign.Counts()}
    for counts in found.values():
        counts.take(Verdict("Generate", grpc.StatusCode.OK, "", ""))
    found["one"].take(Verdict("Configure", grpc.StatusCode.ABORTED, "REVISION_MISMATCH", ""))
    text = report.markdown(found, requests=3, seed=7)
    assert "--requests 3 --seed 7" in text
    assert "| Generate | OK |  | 2 |" in text
    report.store(text, found, 7, tmp_path)
    stored = json.loads((tmp_path / "hostile.json").read_text())
    assert stored["requests"] == {"one": 2, "other": 1}
    assert stored["ends"][0] == {
        "rpc": "Configure",
        "status": "ABORTED",
        "reason": "REVISION_MISMATCH",
        "calls": 1,
    }


@pytest.mark.parametrize(
    ("path", "request_kind"),
    [
        ("width", GENERATE),
        ("cache.db_cache.fn_compute_blocks", GENERATE),
        ("images[3].data", GENERATE),
        ("pipeline_kwargs.a.b[0]", GENERATE),
        ("adapters[0].weight", GENERATE),
        ("configuration.cache.db_cache", GENERATE),
        ("update_mask", CONFIGURE),
        ("cache.dmd", CONFIGURE),
        ("quantize.components_to_quantize.vae.quant_type", CONFIGURE),
        ("quantize.svdq_kwargs.few_shot_relax_stra...", CONFIGURE),
    ],
)
def test_paths_of_the_contract_are_known(path: str, request_kind: Descriptor) -> None:
    """The campaign knows a field of the contract when it sees one ..."""
    assert paths.exists(path, request_kind)


@pytest.mark.parametrize(
    ("path", "request_kind"),
    [
        ("", GENERATE),
        ("widht", GENERATE),
        ("width[0]", GENERATE),
        ("width.height", GENERATE),
        ("cache.db_cache.fn", GENERATE),
        ("model", GENERATE),
        ("cach...", CONFIGURE),
        ("configuration.width", CONFIGURE),
    ],
)
def test_other_paths_are_not(path: str, request_kind: Descriptor) -> None:
    """... and would notice a refusal that names none."""
    assert not paths.exists(path, request_kind)
