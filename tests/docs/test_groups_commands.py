"""Every command in docs/GROUPS.md is one that a server can be started with."""

from __future__ import annotations

import re
import shlex

import pytest
from tests.docs.reference import ROOT

from ditcast_runtime.errors import ConfigError
from ditcast_service.config import load

TEXT = (ROOT / "docs" / "GROUPS.md").read_text("utf-8")


def test_every_command_is_accepted() -> None:
    """With as many groups as it says."""
    blocks = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert lines
    for line in lines:
        serve, *arguments = shlex.split(line, comments=True)[1:]
        assert serve == "serve"
        assert load(arguments, {}).groups > 1


def test_ranks_that_others_start_make_one_group() -> None:
    """The refusal names the setting that is too much."""
    flags = ("--groups", "2", "--control-listen", "unix:ranks.sock")
    with pytest.raises(ConfigError) as error:
        load(flags, {})
    assert "--groups" in {problem.field for problem in error.value.problems}
