"""`ditcast configure` and the client's calls behind it, against a real server."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from tests.service.changing import CURRENT, INITIAL
from tests.service.conftest import Served

from ditcast.v1 import acceleration_pb2 as pb
from ditcast_client import Aborted, Client, DeadlineExceeded, NotFound
from ditcast_client.commands import configuration_files
from ditcast_client.commands.assignments import read_assignments
from ditcast_client.commands.command import UsageError
from ditcast_client.commands.configuration_files import read_cache_dit
from ditcast_runtime.settings import DBCache, TaylorSeer
from ditcast_service.translate.acceleration import configuration_to_proto

REFERENCE = Path(__file__).parents[1] / "data" / "reference_cache_dit_config.yaml"
CONTRACT = {"cache": {"db_cache": {"fn_compute_blocks": 1}}, "defaults": {"width": 64}}


@pytest.fixture
def current(served: Served) -> Served:
    """Serve with the configuration of these tests in force."""
    served.engine.initial_configuration = INITIAL
    served.engine.configuration = CURRENT
    served.engine.history = {INITIAL.revision: INITIAL, CURRENT.revision: CURRENT}
    return served


async def ditcast(served: Served, *arguments: str, folder: Path) -> tuple[int, str, str]:
    """Run `ditcast configure` to its end, and give exit code, output and errors."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "ditcast_client", "configure", *arguments),
        cwd=folder,
        env={**os.environ, "DITCAST_ADDRESS": served.address},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), timeout=60)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_set_changes_one_value(current: Served, tmp_path: Path) -> None:
    """--set changes what it names, and the command says which revision is in force."""
    value = "cache.db_cache.residual_diff_threshold=0.2"
    code, out, err = await ditcast(current, "--set", value, folder=tmp_path)
    assert (code, err) == (0, "")
    assert "cache.db_cache.residual_diff_threshold" in out
    assert "applied_live" in out
    assert out.endswith("revision 5 is in force\n")
    method = current.engine.configuration.cache.method
    assert method == DBCache(fn_compute_blocks=4, residual_diff_threshold=0.2)
    code, out, _ = await ditcast(current, "--set", value, folder=tmp_path)
    assert (code, out) == (0, "nothing changes: revision 5 is in force\n")


async def test_unset_goes_back_to_the_start(current: Served, tmp_path: Path) -> None:
    """--unset takes a value back to what the server started with."""
    arguments = ("--unset", "cache.db_cache.residual_diff_threshold", "--set", "defaults.width=64")
    assert (await ditcast(current, *arguments, folder=tmp_path))[0] == 0
    found = configuration_to_proto(current.engine.configuration)
    assert found.cache.db_cache.residual_diff_threshold == 0.1
    assert found.defaults.width == 64


async def test_set_into_another_method_is_refused(current: Served, tmp_path: Path) -> None:
    """A value of a method that is not in force does not switch to it in passing."""
    value = "cache.db_prune.fn_compute_blocks=2"
    code, _, err = await ditcast(current, "--set", value, folder=tmp_path)
    assert code == 2
    assert err == ("refused:\n  cache.db_prune.fn_compute_blocks: the current method is db_cache\n")


async def test_a_dry_run_shows_all_outcomes(current: Served, tmp_path: Path) -> None:
    """--dry-run changes nothing, and its exit code says whether something stands in the way."""
    good = ("--set", "defaults.width=64", "--dry-run")
    code, out, _ = await ditcast(current, *good, folder=tmp_path)
    assert code == 0
    assert out.endswith("it would become revision 5\n")
    bad = ("--set", "attention_backend=native", "--set", "cache.db_cache.fn_compute_blocks=9")
    code, out, _ = await ditcast(current, *good, *bad, folder=tmp_path)
    assert code == 2
    for part in ("applied_live", "needs_reload", "rejected", "8 blocks", "would be refused"):
        assert part in out
    assert current.engine.configuration == CURRENT


async def test_a_reload_is_asked_for(current: Served, tmp_path: Path) -> None:
    """Without --allow-reload what needs one is refused, and the message says what to do."""
    arguments = ("--set", "attention_backend=native")
    code, _, err = await ditcast(current, *arguments, folder=tmp_path)
    assert code == 2
    assert "attention_backend: " in err
    assert "allow_reload" in err
    code, out, _ = await ditcast(current, *arguments, "--allow-reload", "--json", folder=tmp_path)
    assert code == 0
    [outcome] = json.loads(out)["outcomes"]
    assert outcome == {"path": "attention_backend", "outcome": "OUTCOME_APPLIED_BY_RELOAD"}


@pytest.mark.parametrize("name", ["new.yaml", "new.json"])
async def test_a_file_changes_what_it_sets(current: Served, tmp_path: Path, name: str) -> None:
    """--file takes the contract's Configuration; with --replace the rest is as told nothing."""
    (tmp_path / name).write_text(json.dumps(CONTRACT))  # JSON is YAML, too.
    assert (await ditcast(current, "--file", name, folder=tmp_path))[0] == 0
    found = current.engine.configuration
    assert found.cache.method == DBCache(fn_compute_blocks=1, residual_diff_threshold=0.3)
    assert (found.defaults.width, found.defaults.num_inference_steps) == (64, 30)
    assert (await ditcast(current, "--file", name, "--replace", folder=tmp_path))[0] == 0
    found = current.engine.configuration
    assert found.cache.method == DBCache(fn_compute_blocks=1)
    assert (found.defaults.width, found.defaults.num_inference_steps) == (64, None)


async def test_rollback(current: Served, tmp_path: Path) -> None:
    """--rollback brings an earlier configuration back under a new revision."""
    code, out, _ = await ditcast(current, "--rollback", "1", folder=tmp_path)
    assert code == 0
    assert out.endswith("revision 5 is in force\n")
    assert current.engine.configuration.cache == INITIAL.cache
    assert current.engine.configuration.defaults == INITIAL.defaults
    code, _, err = await ditcast(current, "--rollback", "3", folder=tmp_path)
    assert (code, err) == (2, "refused: No configuration is kept under revision 3.\n")


async def test_expected_revision(current: Served, tmp_path: Path) -> None:
    """Another revision in force is refused, and named."""
    arguments = ("--set", "defaults.width=64", "--expected-revision", "3")
    code, _, err = await ditcast(current, *arguments, folder=tmp_path)
    assert code == 2
    assert "revision 3, but 4 is in force" in err


async def test_time_limit(current: Served, tmp_path: Path) -> None:
    """Behind a long generation the exit code says that the time ran out, nothing changed."""
    current.engine.between_generations.clear()
    arguments = ("--set", "defaults.width=64", "--timeout", "0.5")
    code, _, err = await ditcast(current, *arguments, folder=tmp_path)
    assert (code, err) == (4, "time limit: The time limit passed, and nothing was changed.\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "nothing is to change"),
        (["--set", "defaults.width"], "PATH=VALUE"),
        (["--set", "defaults.widht=64"], "there is no 'widht'; did you mean width?"),
        (["--set", "defaults.width=wide"], "'wide' is no whole number"),
        (["--set", "defaults.width=9999999999"], "out of range"),
        (["--set", "defaults.width=64", "--unset", "defaults.width"], "both set and unset"),
        (["--set", "defaults.width=64", "--rollback", "1"], "exclude each other"),
        (["--set", "defaults.width=64", "--replace"], "--replace goes with --file"),
        (["--set", "defaults.width=64", "--timeout", "0"], "over 0"),
        (["--set", "defaults.width=64", "--timeout", "nan"], "--timeout"),
        (["--set", "defaults.width=64", "--expected-revision", "-1"], "--expected-revision"),
        (["--rollback", "-1"], "-1 is no revision"),
        (["--file", "nowhere.yaml"], "cannot read nowhere.yaml"),
        (["--file", "list.json"], "no keys at its top"),
        (["--file", "unknown.json"], "cahce"),
        (["--file", "broken.yaml"], "is no Configuration"),
        (["--file", "cache-dit.yaml"], "--cache-dit-file"),
    ],
)
async def test_bad_usage_is_refused_before_anything_is_sent(
    current: Served, tmp_path: Path, arguments: Sequence[str], says: str
) -> None:
    """What cannot be is said at once, with exit code 2."""
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "unknown.json").write_text('{"cahce": {}}')
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "cache-dit.yaml").write_text(REFERENCE.read_text())
    code, _, err = await ditcast(current, *arguments, folder=tmp_path)
    assert code == 2
    assert says in err
    assert "Traceback" not in err
    assert current.engine.configuration == CURRENT


ASSIGNED = [
    ("cache.db_cache.fn_compute_blocks=4", {"cache": {"db_cache": {"fn_compute_blocks": 4}}}),
    (
        "cache.db_cache.enable_separate_cfg=True",
        {"cache": {"db_cache": {"enable_separate_cfg": True}}},
    ),
    (
        "cache.db_cache.steps_computation_policy=static",
        {"cache": {"db_cache": {"steps_computation_policy": "STEPS_COMPUTATION_POLICY_STATIC"}}},
    ),
    (
        "cache.db_cache.steps_computation_mask=1,0,1",
        {"cache": {"db_cache": {"steps_computation_mask": [1, 0, 1]}}},
    ),
    (
        "cache.db_cache.steps_computation_mask=[1, 0]",
        {"cache": {"db_cache": {"steps_computation_mask": [1, 0]}}},
    ),
    ("cache.disabled={}", {"cache": {"disabled": {}}}),
    ('cache={"db_cache": {}}', {"cache": {"db_cache": {}}}),
    (
        'parallelism.extra_parallel_modules=["vae"]',
        {"parallelism": {"extra_parallel_modules": ["vae"]}},
    ),
    (
        'parallelism.extra_parallel_kwargs={"a": 1}',
        {"parallelism": {"extra_parallel_kwargs": {"a": 1}}},
    ),
    (
        'quantize.precision_plan={"to_q": "int8_weight_only"}',
        {"quantize": {"precision_plan": {"to_q": "int8_weight_only"}}},
    ),
    ("defaults.negative_prompt=a=b", {"defaults": {"negative_prompt": "a=b"}}),
    ("defaults.negative_prompt=", {"defaults": {"negative_prompt": ""}}),
    ("defaults.true_cfg_scale=4", {"defaults": {"true_cfg_scale": 4.0}}),
]


@pytest.mark.parametrize(("text", "expected"), ASSIGNED)
def test_values_are_of_the_type_of_their_field(text: str, expected: dict[str, object]) -> None:
    """Numbers, words, lists and messages are read as the contract has them."""
    configuration, paths = read_assignments([text], [])
    assert configuration == json_format.ParseDict(expected, pb.Configuration())
    assert paths == (text.partition("=")[0],)


@pytest.mark.parametrize(
    "texts",
    [
        ["cache.disabled={}", "cache.db_cache.fn_compute_blocks=1"],
        ["defaults.width.x=1"],
        ["cache.db_cache.steps_computation_policy=sometimes"],
        ["cache.db_cache.enable_separate_cfg=1"],
        ["cache.disabled=nothing"],
        ["=1"],
    ],
)
def test_values_that_cannot_be(texts: list[str]) -> None:
    """A value of another type, a path into a value, and two methods at once are refused."""
    with pytest.raises(UsageError, match="--set"):
        read_assignments(texts, [])


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the server's reader in the entry-point group."""
    target = "ditcast_service.cache_dit_file:read"
    found = EntryPoints([EntryPoint("cache-dit", target, configuration_files.GROUP)])
    monkeypatch.setattr("importlib.metadata.entry_points", found.select)


@pytest.mark.usefixtures("installed")
async def test_a_file_of_cache_dit_replaces_its_sections(current: Served) -> None:
    """The reference file is taken as it is; sections that it has not stay as they are."""
    configuration, paths = read_cache_dit(REFERENCE)
    assert "cache" in paths
    assert "defaults" not in paths
    configuration.cache.db_cache.fn_compute_blocks = 8
    async with Client(current.address) as client:
        response = await client.configure(configuration, update_mask=["cache"])
    assert response.configuration.cache.db_cache.residual_diff_threshold == 0.12
    assert response.configuration.defaults.num_inference_steps == 30


@pytest.mark.usefixtures("installed")
def test_a_wrong_file_of_cache_dit_names_its_keys(tmp_path: Path) -> None:
    """What is wrong with the file is said as the server says it."""
    path = tmp_path / "wrong.yaml"
    path.write_text("cache_config: {Fn_compute_block: 1}")
    with pytest.raises(UsageError, match="did you mean Fn_compute_blocks"):
        read_cache_dit(path)


def test_a_client_alone_says_what_cache_dits_format_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the server's packages the message says what to install."""
    monkeypatch.setattr("importlib.metadata.entry_points", EntryPoints().select)
    with pytest.raises(UsageError, match=r"pip install 'ditcast\[server\]'"):
        read_cache_dit(REFERENCE)


def test_a_client_alone_reads_json_and_says_what_yaml_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSON always works; YAML says that it needs pyyaml."""
    monkeypatch.setitem(sys.modules, "yaml", None)
    for name in ("new.json", "new.yaml"):
        (tmp_path / name).write_text(json.dumps(CONTRACT))
    expected: Message = json_format.ParseDict(CONTRACT, pb.Configuration())
    assert configuration_files.read_configuration(tmp_path / "new.json") == expected
    with pytest.raises(UsageError, match="pip install pyyaml"):
        configuration_files.read_configuration(tmp_path / "new.yaml")


async def test_the_clients_calls(current: Served) -> None:
    """Errors are typed: the revision in force, a time that ran out, a revision that is not kept."""
    asked = pb.Configuration(defaults=pb.GenerationDefaults(width=64))
    async with Client(current.address) as client:
        with pytest.raises(Aborted) as aborted:
            await client.configure(asked, expected_revision=1)
        assert aborted.value.current_revision == 4
        with pytest.raises(NotFound):
            await client.configuration(revision=2)
        current.engine.between_generations.clear()
        with pytest.raises(DeadlineExceeded) as late:
            await client.configure(asked, timeout=timedelta(seconds=0.5))
        assert late.value.reason == "NOT_APPLIED"
        current.engine.between_generations.set()
        assert (await client.configure(asked)).configuration.revision == 5
        earlier = await client.configuration(revision=4)
        back = await client.configure(earlier, update_mask=["*"])
        assert back.configuration.cache.taylor_seer.taylorseer_order == 2
        assert current.engine.configuration.cache.calibrator == TaylorSeer(
            taylorseer_order=2,
            enable_encoder_calibrator=False,
            calibrator_cache_type="hidden_states",
        )
