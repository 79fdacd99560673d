"""Every command in docs/HOSTS.md is accepted by what it is given to.

What stands under Slurm and Kubernetes needs hardware, and says so.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from tests.docs.commands import ROOT, commands

from ditcast_runtime import attach
from ditcast_service.config import FIELDS, load

PAGE = ROOT / "docs" / "HOSTS.md"
TEXT = PAGE.read_text("utf-8")


def calls(program: str) -> Iterator[list[str]]:
    """List the arguments of each call of a program in the examples."""
    for line in commands(PAGE):
        words = shlex.split(line.removeprefix("until ").partition(";")[0])
        if words[0] == program:
            yield words[1:]


def test_the_service_can_be_started_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the secret that the first command makes, and certificates."""
    monkeypatch.chdir(tmp_path)
    Path("secret").write_text("x" * 44)
    issued = trustme.CA().issue_cert("10.0.0.1")
    issued.private_key_pem.write_to_path("server.key")
    issued.cert_chain_pems[0].write_to_path("server.pem")
    [arguments] = calls("ditcast")
    config = load(arguments[1:], {})
    assert config.control_listen == ("unix:ranks.sock", "10.0.0.1:50052")


def test_torchrun_and_the_ranks_take_their_arguments() -> None:
    """One command line for all hosts, but for the address and who hosts the rendezvous."""
    from torch.distributed.run import get_args_parser

    found = []
    for arguments in calls("torchrun"):
        parsed = get_args_parser().parse_args(arguments)
        assert (parsed.module, parsed.training_script) == (True, "ditcast_runtime.attach")
        given = attach._parser().parse_args(parsed.training_script_args)
        assert given.service == ["unix:ranks.sock", "10.0.0.1:50052"]
        assert parsed.max_restarts > 0
        found.append({**vars(parsed), "local_addr": "", "rdzv_conf": ""})
    assert len(found) == 2
    assert found[0] == found[1]


def test_every_setting_of_it_is_told() -> None:
    """No flag of attaching is left out, and none is told that there is not."""
    own = {"handshake_timeout", "attach_notice", "control_listen", "control_secret"}
    for field in FIELDS:
        if field.name in own:
            assert field.flag in TEXT
    options = {each for action in attach._parser()._actions for each in action.option_strings}
    assert all(option in TEXT for option in options - {"-h", "--help"})
