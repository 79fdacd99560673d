"""Flags, file and variables: what wins, and what is refused before anything starts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from ditcast_runtime.config import STARTER_MODEL
from ditcast_runtime.errors import ConfigError
from ditcast_runtime.settings import DBCache
from ditcast_service.checks import CHOICES, RANGES
from ditcast_service.config import FIELDS, ServerConfig, load, parser

REFERENCE = Path(__file__).parents[1] / "data" / "reference_cache_dit_config.yaml"


def refused(arguments: list[str], environment: dict[str, str] | None = None) -> dict[str, str]:
    """Load what cannot be served; give the reasons by field."""
    with pytest.raises(ConfigError) as error:
        load(arguments, environment or {})
    return {problem.field: problem.reason for problem in error.value.problems}


def test_flags_win_over_the_file_and_the_file_over_variables(tmp_path: Path) -> None:
    """Each source fills in what those above it leave out; the rest are the dataclass's defaults."""
    file = tmp_path / "server.yaml"
    file.write_text("queue_capacity: 2\nmax_images: 2\ninsecure: true\n")
    variables = {f"DITCAST_{name}": "3" for name in ("QUEUE_CAPACITY", "MAX_IMAGES", "MAX_FRAMES")}
    config = load(["--config", str(file), "--queue-capacity", "1"], variables)
    assert (config.queue_capacity, config.max_images, config.max_frames) == (1, 2, 3)
    assert config.insecure
    assert config.grace == ServerConfig().grace


def test_the_file_may_be_named_by_a_variable(tmp_path: Path) -> None:
    """DITCAST_CONFIG stands in for --config."""
    file = tmp_path / "server.yaml"
    file.write_text("listen: ['127.0.0.1:0', 'unix:/tmp/ditcast-test']\n")
    config = load([], {"DITCAST_CONFIG": str(file), "DITCAST_ADDRESS": "the client's own"})
    assert config.listen == ("127.0.0.1:0", "unix:/tmp/ditcast-test")


def test_several_texts_are_given_alike_in_all_ways(tmp_path: Path) -> None:
    """With commas or by repetition; only a list in the file may hold names with commas."""
    several = ("127.0.0.1:1", f"unix:{tmp_path}/a")
    text = ",".join(several)
    file = tmp_path / "server.yaml"
    for content in (f"listen: '{text}'\n", f"listen: {list(several)}\n"):
        file.write_text(content)
        assert load(["--config", str(file)], {}).listen == several
    assert load(["--listen", text], {}).listen == several
    assert load([f"--listen={several[0]}", "--listen", several[1]], {}).listen == several
    assert load([], {"DITCAST_LISTEN": text}).listen == several
    (tmp_path / "a,b").mkdir()
    file.write_text(f"adapter_folder: ['{tmp_path}/a,b']\n")
    assert load(["--config", str(file)], {}).adapter_folder == (f"{tmp_path}/a,b",)
    assert (
        "'b' is no folder" in refused(["--adapter-folder", f"{tmp_path}/a,b"])["--adapter-folder"]
    )


def test_every_unknown_name_is_an_error_with_the_nearest_known(tmp_path: Path) -> None:
    """A typo never means the default."""
    file = tmp_path / "server.yaml"
    file.write_text("queue_capasity: 2\n")
    problems = refused(["--config", str(file), "--wrold-size", "2"], {"DITCAST_MAX_IMAGE": "1"})
    assert "did you mean --world-size" in problems["--wrold-size"]
    assert "did you mean queue_capacity" in problems[f"{file}: queue_capasity"]
    assert "did you mean DITCAST_MAX_IMAGES" in problems["DITCAST_MAX_IMAGE"]


@pytest.mark.parametrize(
    ("flag", "value", "reason"),
    [
        ("--queue-capacity", "many", "no whole number"),
        ("--queue-capacity", "1.5", "no whole number"),
        ("--queue-capacity", "0", "1 to 100000"),
        ("--world-size", "65", "1 to 64"),
        ("--grace", "nan", "no finite number"),
        ("--grace", "-1", "0 to"),
        ("--chunk-bytes", "2000000", "1024 to 1048576"),
        ("--dtype", "int3", "none of auto"),
        ("--device", "tpu", "none of auto"),
        ("--log-level", "loud", "none of debug"),
        ("--min-side", "5000", "more than max_side"),
        ("--max-pixels", "100", "less than min_side"),
        ("--model", "/no/such/folder", "neither a folder"),
        ("--model", "../../nowhere", "neither a folder"),
        ("--listen", "nonsense", "HOST:PORT"),
        ("--listen", "127.0.0.1:99999", "HOST:PORT"),
        ("--listen", "unix:/no/such/folder/socket", "no folder"),
        ("--listen", "0.0.0.0:50051", "--insecure"),
        ("--listen", "[::]:50051", "--insecure"),
        ("--listen", "example.org:50051", "--insecure"),
        ("--metrics-listen", "0.0.0.0:9464", "--insecure"),
        ("--metrics-listen", "unix:/tmp/socket", "HOST:PORT"),
        ("--config", "/no/such/file", "cannot read"),
    ],
)
def test_a_value_that_cannot_be_is_refused(flag: str, value: str, reason: str) -> None:
    """The flag, the value's fault and the bound are named."""
    assert reason in refused([flag, value])[flag]


def test_all_problems_are_said_at_once() -> None:
    """An operator repairs everything in one go."""
    problems = refused(
        ["--grace", "x", "--dtype", "y", "--model", "z", "--nope"], {"DITCAST_X": ""}
    )
    assert set(problems) == {"--grace", "--dtype", "--model", "--nope", "DITCAST_X"}


def test_a_problem_names_where_the_value_came_from(tmp_path: Path) -> None:
    """Key of the file and variable are named as the operator wrote them."""
    file = tmp_path / "server.yaml"
    file.write_text("world_size: 0\n")
    problems = refused(["--config", str(file)], {"DITCAST_MAX_IMAGES": "0"})
    assert set(problems) == {f"{file}: world_size", "DITCAST_MAX_IMAGES"}


def test_loopback_and_sockets_need_no_permission_and_others_do() -> None:
    """Only --insecure opens the service to other machines, as there is no TLS yet."""
    for address in ("127.0.0.1:0", "[::1]:0", "localhost:0", "unix:/tmp/x"):
        assert load(["--listen", address], {}).listen == (address,)
    assert load(["--listen", "0.0.0.0:0", "--insecure"], {}).listen == ("0.0.0.0:0",)


def test_ranks_of_others_attach_with_a_secret_and_by_a_socket(tmp_path: Path) -> None:
    """What is missing of it is said; beyond this machine the address takes TLS or permission."""
    secret = tmp_path / "secret"
    secret.write_text("x" * 32)
    unix = ("--control-listen", f"unix:{tmp_path}/ranks")
    known = ("--control-secret", str(secret))
    loaded = load([*unix, "--control-listen", "127.0.0.1:0", *known], {})
    assert loaded.control_listen == (unix[1], "127.0.0.1:0")
    wide = [*unix, "--control-listen", "10.0.0.1:50052", *known]
    assert "without TLS" in refused(wide)["--control-listen"]
    assert load([*wide, "--insecure"], {}).control_secret == secret
    assert "unix:/path" in refused(["--control-listen", "127.0.0.1:0", *known])["--control-listen"]
    assert "missing" in refused([*unix])["--control-secret"]
    assert "missing" in refused([*known])["--control-listen"]
    secret.write_text("x" * 31)
    assert "less than 32 bytes" in refused([*unix, *known])["--control-secret"]


def test_the_reference_file_is_served_on_two_ranks_only() -> None:
    """Degrees are checked against the world size, with the product in the message."""
    config = load(["--cache-dit-config", str(REFERENCE), "--world-size", "2"], {})
    parallelism = config.acceleration.parallelism
    assert parallelism is not None
    assert (parallelism.ulysses_degree, parallelism.ulysses_anything) == (2, True)
    assert isinstance(config.acceleration.cache.method, DBCache)
    assert config.acceleration.cache.method.residual_diff_threshold == 0.12
    [reason] = refused(["--cache-dit-config", str(REFERENCE)]).values()
    assert "ulysses_degree 2 x ring_degree 1 x tensor_parallel_degree 1 = 2" in reason


def test_degrees_are_checked_against_the_heads_of_a_local_model() -> None:
    """The ranks must be able to share the heads of the embedded model."""
    config = json.loads((STARTER_MODEL / "transformer" / "config.json").read_text())
    heads = config["num_attention_heads"]
    unshared = next(ranks for ranks in range(2, heads + 2) if heads % ranks)
    [reason] = refused(["--world-size", str(unshared)]).values()
    assert f"{heads} heads" in reason


def test_more_blocks_than_the_model_has_are_refused_at_the_start(tmp_path: Path) -> None:
    """`Fn_compute_blocks` is checked against the layers of the embedded model."""
    file = tmp_path / "cache.yaml"
    file.write_text("cache_config:\n  Fn_compute_blocks: 99\n")
    [reason] = refused(["--cache-dit-config", str(file)]).values()
    assert "99" in reason


def test_a_wrong_key_of_the_cache_dit_file_is_named(tmp_path: Path) -> None:
    """Its problems come out with those of the flags."""
    file = tmp_path / "cache.yaml"
    file.write_text("cache_config:\n  fn_compute_block: 1\n")
    problems = refused(["--cache-dit-config", str(file), "--grace", "-1"])
    assert len(problems) == 2
    assert any("fn_compute_block" in field for field in problems)


def test_every_number_has_a_range_and_every_field_a_help() -> None:
    """Nothing numeric is unbounded, and `--help` says what each setting is for."""
    numeric = {field.name for field in FIELDS if field.kind in (int, float)}
    assert numeric == set(RANGES)
    assert set(CHOICES) <= {field.name for field in FIELDS}
    help_text = re.sub(r"\s+", " ", parser().format_help())
    for field in FIELDS:
        assert len(field.help) > 10
        assert field.flag in help_text


def test_defaults_are_within_their_ranges() -> None:
    """A server without any setting starts."""
    hints = typing.get_type_hints(ServerConfig)
    config = load([], {})
    assert all(low <= getattr(config, name) <= high for name, (low, high) in RANGES.items())
    assert all(getattr(config, name) in choices for name, choices in CHOICES.items())
    assert set(RANGES) <= set(hints)


def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "ditcast_service.serve", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_wrong_setting_ends_the_command_with_2_and_one_message() -> None:
    """Exit code 2, one line a problem, no traceback."""
    ended = serve("--grace", "-1", "--nope")
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert "--grace" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_help_ends_with_0() -> None:
    """`--help` is no mistake."""
    ended = serve("--help")
    assert ended.returncode == 0
    assert "--cache-dit-config" in ended.stdout


def test_missing_libraries_are_said_with_what_to_install() -> None:
    """Without the extra the command ends with 2 and names the extra."""
    program = (
        "import sys, importlib.util as u; found = u.find_spec\n"
        "u.find_spec = lambda name: None if name == 'torch' else found(name)\n"
        "from ditcast_service.serve import command\n"
        "sys.exit(command([]))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    assert "torch is not installed" in ended.stderr
    assert "pip install 'ditcast[server]'" in ended.stderr


def test_the_service_imports_neither_torch_nor_numpy() -> None:
    """Nothing in it can block on a device, and no rank waits to be started for what few need."""
    program = "import sys, ditcast_service.lifecycle; print(*{'numpy', 'torch'} & set(sys.modules))"
    said = subprocess.check_output([sys.executable, "-c", program], timeout=60)
    assert said.split() == []
