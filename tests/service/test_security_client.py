"""Our own client at the door: certificates and tokens from files, in Python and on the line."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.service.test_security import CALLERS, OPERATOR, STUDIO, Door, door

from ditcast_client import Client
from ditcast_client.access import TokenFile, tls
from ditcast_client.errors import DigestMismatch, DitcastError


def run(made: Door, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line against the server, and wait."""
    return subprocess.run(
        [sys.executable, "-m", "ditcast_client", *arguments, "--address", made.address],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | environment,
    )


async def test_the_client_shows_its_token_in_every_call(tmp_path: Path) -> None:
    """Streams and single answers alike; a token file that is rotated is read again."""
    async with door(tmp_path, tokens=True, certificates=False) as made:
        file = tmp_path / "token"
        file.write_text(f"{STUDIO}\n")
        credentials = tls(tmp_path / "ca.pem")
        async with Client(made.address, credentials=credentials, token=TokenFile(file)) as client:
            with contextlib.suppress(DigestMismatch):  # Of the fake engine's receipt.
                await client.generate(prompt="x").result()
            await client.configuration()
            (tmp_path / "callers.yaml").write_text(CALLERS.replace(STUDIO, "quite another token"))
            with pytest.raises(DitcastError):
                await client.configuration()
            file.write_text("quite another token")
            await client.configuration()
        assert made.engine.identities == ["studio"]


async def test_the_client_shows_its_certificate(tmp_path: Path) -> None:
    """With files in PEM, as they are given on the command line too."""
    async with door(tmp_path, tokens=False, certificates=True) as made:
        issued = made.authority.issue_cert("press.example.org")
        issued.private_key_pem.write_to_path(str(tmp_path / "own.key"))
        issued.cert_chain_pems[0].write_to_path(str(tmp_path / "own.pem"))
        credentials = tls(tmp_path / "ca.pem", tmp_path / "own.pem", tmp_path / "own.key")
        async with Client(made.address, credentials=credentials) as client:
            with contextlib.suppress(DigestMismatch):  # Of the fake engine's receipt.
                await client.generate(prompt="x").result()
        assert made.engine.identities == ["press.example.org"]


async def test_commands_take_files_and_variables(tmp_path: Path) -> None:
    """--tls-ca and --token-file, or their variables; exit codes as always."""
    async with door(tmp_path, tokens=True, certificates=False) as made:
        (tmp_path / "studio").write_text(STUDIO)
        (tmp_path / "operator").write_text(OPERATOR)
        ca, studio = ("--tls-ca", f"{tmp_path}/ca.pem"), ("--token-file", f"{tmp_path}/studio")
        variables = {
            "DITCAST_TLS_CA": f"{tmp_path}/ca.pem",
            "DITCAST_TOKEN_FILE": f"{tmp_path}/operator",
        }
        shown = await asyncio.to_thread(run, made, "info", *ca, *studio)
        assert shown.returncode == 0, shown.stderr
        admins = await asyncio.to_thread(run, made, "list", **variables)
        assert admins.returncode == 0, admins.stderr
        change = ("configure", "--set", "cache.db_cache.max_warmup_steps=3")
        refused = await asyncio.to_thread(run, made, *change, *ca, *studio)
        assert refused.returncode == 2
        assert "lack the scope admin" in refused.stderr
        nobody = await asyncio.to_thread(run, made, "info", *ca)
        assert nobody.returncode == 2
        missing = await asyncio.to_thread(run, made, "info", "--token-file", f"{tmp_path}/none")
        assert missing.returncode == 2
        assert "cannot read" in missing.stderr
