"""Who knows the group's secret is let in; strangers of every sort are not, and hold up nobody."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import trustme
from structlog.testing import capture_logs
from tests.hosts.attaching import SECRET, converse, hello, place, post, read_to_end

from ditcast_runtime.attach import Applicant, Attached
from ditcast_runtime.errors import ConfigError
from ditcast_runtime.hosts import handshake
from ditcast_runtime.hosts.attachments import MAX_HALF_OPEN, Recruit
from ditcast_runtime.hosts.handshake import (
    Challenge,
    HandshakeFailed,
    Hello,
    Proof,
    Refused,
    Secret,
    Welcome,
)
from ditcast_runtime.hosts.place import Place

OTHER = Secret(b"another group's secret, 9876543210")


def leave(*ends: Attached | Recruit) -> None:
    """Close what a test has opened."""
    for each in ends:
        each.end.close()


@pytest.fixture(autouse=True)
def no_descriptor_left() -> Iterator[None]:
    """Whoever was refused, and whoever was not, leaves nothing behind."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (a count)
    yield
    assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208 (a count)


async def test_rank_zero_is_one_of_the_services_own_host(tmp_path: Path) -> None:
    """Whatever number its launcher gave it: only there can pixels be passed in memory."""
    async with post(tmp_path, world_size=3) as here:
        gathering = asyncio.create_task(here.attachments.gather(7))
        ranks = [
            await here.attach(0, by=here.tcp, world_size=3),
            await here.attach(2, world_size=3),
            await here.attach(1, by=here.tcp, world_size=3),
        ]
        recruits = await gathering
        assert [recruit.hello.rank for recruit in recruits] == [2, 0, 1]
        assert [bool(recruit.peer) for recruit in recruits] == [False, True, True]
        assert {rank.epoch for rank in ranks} == {7}
        recruits[1].end.setblocking(True)  # noqa: FBT003 (a standard name)
        recruits[1].end.sendall(b"to the first")
        assert ranks[0].end.recv(64) == b"to the first"
        leave(*ranks, *recruits)


async def test_another_secret_is_refused_and_holds_up_nobody(tmp_path: Path) -> None:
    """It is told nothing, the log says why, and the group forms without it."""
    async with post(tmp_path, world_size=1) as here:
        gathering = asyncio.create_task(here.attachments.gather(1))
        with capture_logs() as said, pytest.raises(HandshakeFailed, match="the secret"):
            await here.attach(0, secret=OTHER, world_size=1, limit=0)
        assert any(line.get("reason") == "it does not know the secret" for line in said)
        rank = await here.attach(0, world_size=1)
        [recruit] = await gathering
        rank.end.close()
        recruit.end.close()


async def test_silent_strangers_hold_up_nobody(tmp_path: Path) -> None:
    """More of them than may shake hands at a time: the oldest make room for who speaks."""
    async with post(tmp_path, world_size=1) as here:
        gathering = asyncio.create_task(here.attachments.gather(1))
        strangers = [here.knock() for _ in range(3 * MAX_HALF_OPEN)]
        rank = await here.attach(0, by=here.tcp, world_size=1)
        assert len(here.attachments._half_open) <= MAX_HALF_OPEN
        for stranger in strangers[:MAX_HALF_OPEN]:
            assert await read_to_end(stranger) == b""
        for stranger in strangers:
            stranger.close()
        # A rank by TCP alone: nobody of this host is there to be rank 0.
        assert not gathering.done()
        gathering.cancel()
        rank.end.close()


async def test_a_handshake_has_a_time_limit(tmp_path: Path) -> None:
    """Silence ends it, and so does one byte at a time."""
    async with post(tmp_path, handshake_timeout=0.2) as here:
        with capture_logs() as said, here.knock() as slow:
            slow.sendall(handshake.pack(hello())[:1])
            assert await read_to_end(here.knock()) == b""
            assert await read_to_end(slow) == b""
        reasons = [line["reason"] for line in said if line["event"] == "nobody was attached"]
        assert reasons == ["it took too long"] * 2


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xff",
        b"\x00\x00",
        b"\x00\x04\xc1\xc1\xc1\xc1",
        handshake.pack(Proof(mac=bytes(32))),
        handshake.pack(Welcome(mac=bytes(32))),
        handshake.pack(msgspec.structs.replace(hello(), nonce=b"short")),
        handshake.pack(msgspec.structs.replace(hello(), rank=-1)),
        handshake.pack(msgspec.structs.replace(hello(), release="x" * 400)),
    ],
)
async def test_garbage_is_answered_by_the_end_of_the_connection(
    tmp_path: Path, garbage: bytes
) -> None:
    """Nothing that the service says goes to whoever cannot even begin; a rank is let in after."""
    async with post(tmp_path, world_size=1) as here:
        gathering = asyncio.create_task(here.attachments.gather(1))
        stranger = here.knock()
        stranger.sendall(garbage)
        assert await read_to_end(stranger) == b""
        rank = await here.attach(0, world_size=1)
        [recruit] = await gathering
        rank.end.close()
        recruit.end.close()


async def test_what_was_heard_on_the_wire_lets_nobody_in(tmp_path: Path) -> None:
    """A rank's own words, said again, prove nothing: the service's random bytes are new."""
    async with post(tmp_path) as here:
        gathering = asyncio.create_task(here.attachments.gather(1))
        first = hello()
        proof, welcome = await asyncio.to_thread(converse, here.knock(), first)
        assert isinstance(handshake.unpack(welcome[handshake.LENGTH.size :]), Welcome)
        _, nothing = await asyncio.to_thread(converse, here.knock(), first, proof)
        assert nothing == b""
        gathering.cancel()


def test_a_rank_believes_no_service_that_has_another_secret(tmp_path: Path) -> None:
    """Nor one that has none, and sends the rank's own proof back."""
    listener = socket.create_server(("127.0.0.1", 0))

    def pretend() -> None:
        for _ in range(2):
            end, _ = listener.accept()
            with end:
                end.recv(512)
                said = Challenge(epoch=1, alive_timeout=1.0, nonce=handshake.nonce())
                end.sendall(handshake.pack(said))
                proof = handshake.unpack(end.recv(512)[handshake.LENGTH.size :])
                assert isinstance(proof, Proof)
                end.sendall(handshake.pack(Welcome(mac=proof.mac)))

    thread = threading.Thread(target=pretend)
    thread.start()
    try:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        for secret in (SECRET, OTHER):
            applicant = Applicant([address], secret, place(0), None)
            with pytest.raises(HandshakeFailed, match="this is not the service"):
                applicant.attach(0)
    finally:
        thread.join()
        listener.close()


async def test_a_second_process_of_a_rank_waits_until_the_first_is_gone(tmp_path: Path) -> None:
    """It is told why, and tries again."""
    async with post(tmp_path) as here:
        gathering = asyncio.create_task(here.attachments.gather(3))
        first = await here.attach(1)
        with pytest.raises(HandshakeFailed, match="another process is this rank already"):
            await here.attach(1, limit=0)
        second = asyncio.create_task(here.attach(1))
        first.end.close()
        ranks = [await second, await here.attach(0)]
        recruits = await gathering
        leave(*ranks, *recruits)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (hello(0, world_size=3), "it is one of 3 ranks, and the group has 2"),
        (hello(2), "it is one of 2 ranks, and the group has 2"),
        (msgspec.structs.replace(hello(), release="0.0.1"), "it is ditcast 0.0.1"),
    ],
)
async def test_a_rank_of_another_group_or_release_is_told_so(
    tmp_path: Path, changed: Hello, reason: str
) -> None:
    """It knows the secret, so it may know the reason."""
    async with post(tmp_path) as here:
        gathering = asyncio.create_task(here.attachments.gather(1))
        _, answer = await asyncio.to_thread(converse, here.knock(), changed)
        refused = handshake.unpack(answer[handshake.LENGTH.size :])
        assert isinstance(refused, Refused)
        assert refused.reason.startswith(reason)
        assert not here.attachments._waiting
        gathering.cancel()


async def test_while_a_group_runs_nobody_attaches_and_the_next_has_another_epoch(
    tmp_path: Path,
) -> None:
    """Ranks that are started again too early try until the service wants them."""
    async with post(tmp_path, world_size=1) as here:
        gathering = asyncio.create_task(here.attachments.gather(1))
        first = await here.attach(0, world_size=1)
        [running] = await gathering
        with pytest.raises(HandshakeFailed, match="the group is complete"):
            await here.attach(0, world_size=1, limit=0)
        early = asyncio.create_task(here.attach(0, world_size=1))
        running.end.close()
        [following] = await here.attachments.gather(2)
        second = await early
        assert (first.epoch, second.epoch) == (1, 2)
        leave(first, second, following)


async def test_the_log_says_who_is_missing(tmp_path: Path) -> None:
    """First the ranks that are not there, then that none of them is of this host."""
    async with post(tmp_path, attach_notice=0.05) as here:
        gathering = asyncio.create_task(here.attachments.gather(1))
        with capture_logs() as said:
            await asyncio.sleep(0.1)
            ranks = [await here.attach(rank, by=here.tcp) for rank in (0, 1)]
            await asyncio.sleep(0.1)
        missing = [line["missing"] for line in said if "missing" in line]
        assert missing[0] == "ranks 0, 1"
        assert "Unix socket" in missing[-1]
        gathering.cancel()
        await asyncio.wait({gathering})
        for rank in ranks:
            assert rank.end.recv(1) == b""
            rank.end.close()


async def test_tls_hides_what_goes_over_the_network(tmp_path: Path) -> None:
    """With it both ways work; without it, or with another authority, nobody attaches."""
    authority, stranger = trustme.CA(), trustme.CA()
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(own)
    good, bad = ssl.create_default_context(), ssl.create_default_context()
    authority.configure_trust(good)
    stranger.configure_trust(bad)
    async with post(tmp_path, tls=own) as here:
        gathering = asyncio.create_task(here.attachments.gather(1))
        with pytest.raises((OSError, HandshakeFailed)):
            await here.attach(1, by=here.tcp, limit=0)
        with pytest.raises(ssl.SSLError):
            await here.attach(1, by=here.tcp, tls=bad, limit=0)
        ranks = [await here.attach(0), await here.attach(1, by=here.tcp, tls=good)]
        recruits = await gathering
        recruits[1].end.settimeout(30)
        recruits[1].end.sendall(b"there")
        assert await asyncio.to_thread(ranks[1].end.recv, 64) == b"there"
        ranks[1].end.sendall(b"last words")
        await asyncio.to_thread(ranks[1].close)
        assert await asyncio.to_thread(recruits[1].end.recv, 64) == b"last words"
        assert await asyncio.to_thread(recruits[1].end.recv, 64) == b""
        leave(*ranks, *recruits)


async def test_a_socket_that_a_server_answers_on_is_not_taken_over(tmp_path: Path) -> None:
    """A second service would mute the first; a socket that was left behind is replaced."""
    async with post(tmp_path):
        with pytest.raises(ConfigError, match="a server answers"):
            async with post(tmp_path):
                pass
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "ranks"))
    async with post(tmp_path):
        assert (tmp_path / "ranks").stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "ranks").exists()


def test_a_short_secret_is_none(tmp_path: Path) -> None:
    """White space around it does not count; and its object shows nothing of it."""
    file = tmp_path / "secret"
    file.write_text(" " * 40 + "x" * 31 + "\n")
    with pytest.raises(ConfigError, match="less than 32 bytes"):
        Secret.read(file, "secret")
    with pytest.raises(ConfigError, match="cannot read"):
        Secret.read(tmp_path / "none", "secret")
    file.write_text("x" * 32 + "\n")
    read = Secret.read(file, "secret")
    challenge = Challenge(epoch=1, alive_timeout=1.0, nonce=handshake.nonce())
    first = hello()
    assert read.proof(first, challenge) == Secret(b"x" * 32).proof(first, challenge)
    assert "xx" not in repr(read)


def test_all_that_is_missing_of_a_launchers_variables_is_said() -> None:
    """A missing variable never becomes rank 0."""
    with pytest.raises(ConfigError) as error:
        Place.read({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "-1", "MASTER_PORT": "99999"})
    found = {problem.field for problem in error.value.problems}
    assert found == {"RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
