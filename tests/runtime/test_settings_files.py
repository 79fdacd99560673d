"""Settings files: what they mean, that nothing is lost both ways, and what is refused."""

from __future__ import annotations

import json
import types
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ditcast_runtime.settings import (
    AUTO_DEGREE,
    DMD,
    MAX_FILE_BYTES,
    Acceleration,
    CacheSettings,
    ComponentQuantization,
    DBCache,
    DBPrune,
    Disabled,
    FoCa,
    ParallelismSettings,
    QuantizeSettings,
    SettingsError,
    SvdqKwargs,
    TaylorSeer,
    dump_acceleration,
    load_acceleration,
    parse_acceleration,
)

REFERENCE = Path(__file__).parents[1] / "data" / "reference_cache_dit_config.yaml"

WHOLE = st.integers(-(2**63) + 1, 2**63 - 1)
REAL = st.floats(allow_nan=False, allow_infinity=False)
WORD = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)
PLAN = st.dictionaries(WORD, WORD, max_size=3).map(lambda plan: tuple(sorted(plan.items())))
EXTRA = st.dictionaries(WORD, st.booleans() | WHOLE | REAL | WORD | st.none(), max_size=3).map(
    lambda extra: tuple(sorted(extra.items()))
)
DEGREE = st.sampled_from([AUTO_DEGREE, 1, 2, 3, 8, 2**31 - 1])

FIELDS: dict[object, st.SearchStrategy[Any]] = {
    int: WHOLE,
    float: REAL,
    str: WORD,
    bool: st.booleans(),
    tuple[int, ...]: st.lists(WHOLE, max_size=5).map(tuple),
    tuple[str, ...]: st.lists(WORD, max_size=3).map(tuple),
    tuple[tuple[str, str], ...]: PLAN,
}


def of(cls: type, **special: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Make instances of one of the settings' classes with any values of the right types."""
    hints = {name: hint for name, hint in typing.get_type_hints(cls).items() if name[0] != "_"}
    chosen = {
        name: special[name] if name in special else any_of(hint) for name, hint in hints.items()
    }
    return st.builds(cls, **chosen)


def any_of(hint: object) -> st.SearchStrategy[Any]:
    """Make values of a type, a union being any of its members."""
    if isinstance(hint, types.UnionType):
        return st.one_of([any_of(member) for member in typing.get_args(hint)])
    return st.none() if hint is type(None) else FIELDS[hint]


SVDQ = st.none() | of(SvdqKwargs)
COMPONENTS = st.lists(
    of(ComponentQuantization, svdq_kwargs=SVDQ), max_size=3, unique_by=lambda entry: entry.component
).map(lambda entries: tuple(sorted(entries, key=lambda entry: entry.component)))
METHODS = st.just(Disabled()) | of(DBCache) | of(DBPrune)
CALIBRATORS = st.none() | of(TaylorSeer) | of(DMD) | of(FoCa)
PARALLELISM = of(
    ParallelismSettings,
    ulysses_degree=DEGREE,
    ring_degree=DEGREE,
    tensor_parallel_degree=DEGREE,
    extra_parallel_kwargs=EXTRA,
)
QUANTIZE = of(QuantizeSettings, components_to_quantize=COMPONENTS, svdq_kwargs=SVDQ)
ACCELERATIONS = st.builds(
    Acceleration,
    cache=st.builds(CacheSettings, method=METHODS, calibrator=CALIBRATORS),
    parallelism=st.none() | PARALLELISM,
    quantize=st.none() | QUANTIZE,
    attention_backend=st.none() | WORD,
)
THOROUGH = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def problems_of(data: object) -> dict[str, str]:
    """Give the places and reasons of what is wrong with a file's content."""
    with pytest.raises(SettingsError) as caught:
        parse_acceleration(data, "settings.yaml")
    assert caught.value.problems
    for problem in caught.value.problems:
        assert f"settings.yaml: {problem.field}: {problem.reason}" in str(caught.value)
    return {problem.field: problem.reason for problem in caught.value.problems}


@given(ACCELERATIONS)
@THOROUGH
def test_a_dump_means_the_same(acceleration: Acceleration) -> None:
    """Whatever can be set survives the way into cache-dit's format and back, bit for bit."""
    assert parse_acceleration(dump_acceleration(acceleration)) == acceleration


@given(ACCELERATIONS)
@THOROUGH
def test_yaml_and_json_lose_nothing(acceleration: Acceleration) -> None:
    """The format survives a YAML file, whose keys get sorted, and a JSON file."""
    dumped = dump_acceleration(acceleration)
    assert parse_acceleration(yaml.safe_load(yaml.safe_dump(dumped))) == acceleration
    assert parse_acceleration(json.loads(json.dumps(dumped))) == acceleration


@given(ACCELERATIONS)
@THOROUGH
def test_settings_travel_to_the_ranks(acceleration: Acceleration) -> None:
    """A message frame gives the same settings back, the kinds of method and calibrator included."""
    frame = msgspec.msgpack.encode(acceleration)
    assert msgspec.msgpack.decode(frame, type=Acceleration) == acceleration
    assert hash(msgspec.msgpack.decode(frame, type=Acceleration)) == hash(acceleration)


def test_the_reference_file_loads_unchanged() -> None:
    """The reference configuration gives exactly these settings."""
    assert load_acceleration(REFERENCE) == Acceleration(
        cache=CacheSettings(
            method=DBCache(
                fn_compute_blocks=1,
                residual_diff_threshold=0.12,
                warmup_interval=2,
                max_continuous_cached_steps=2,
            ),
            calibrator=TaylorSeer(enable_encoder_calibrator=False),
        ),
        parallelism=ParallelismSettings(
            ulysses_degree=2,
            attention_backend="native",
            extra_parallel_modules=("text_encoder", "vae"),
        ),
    )


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json", ".JSON"])
def test_a_file_is_read_by_its_suffix(tmp_path: Path, suffix: str) -> None:
    """JSON is read where the name says so, and YAML elsewhere."""
    dumped = dump_acceleration(load_acceleration(REFERENCE))
    as_json = suffix.lower() == ".json"
    path = tmp_path / f"settings{suffix}"
    path.write_text(json.dumps(dumped) if as_json else yaml.safe_dump(dumped))
    assert load_acceleration(path) == load_acceleration(REFERENCE)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({}, Acceleration(cache=CacheSettings(method=DBCache()))),
        (
            {"Fn_compute_blocks": 1, "enable_dmd": True},
            Acceleration(
                cache=CacheSettings(method=DBCache(fn_compute_blocks=1), calibrator=DMD())
            ),
        ),
        ({"attention_backend": "native"}, Acceleration(attention_backend="native")),
        ({"cache_config": None}, Acceleration()),
        ({"cache_config": {"cache_type": "NONE"}}, Acceleration()),
        ({"cache_config": {}}, Acceleration(cache=CacheSettings(method=DBCache()))),
        (
            {"cache_config": {"cache_type": "DBPrune", "non_prune_block_ids": [0, 1]}},
            Acceleration(cache=CacheSettings(method=DBPrune(non_prune_block_ids=(0, 1)))),
        ),
        (
            {"cache_config": {"cache_type": None, "max_warmup_steps": None}},
            Acceleration(cache=CacheSettings(method=DBCache())),
        ),
        (
            {"cache_config": {"steps_computation_mask": "fast", "num_inference_steps": 28}},
            Acceleration(
                cache=CacheSettings(
                    method=DBCache(steps_computation_mask="fast", num_inference_steps=28)
                )
            ),
        ),
        (
            {"cache_config": {"taylorseer_order": 2, "enable_taylorseer": False}},
            Acceleration(cache=CacheSettings(method=DBCache())),
        ),
    ],
)
def test_forms_of_caching(data: dict[str, object], expected: Acceleration) -> None:
    """The sections, the flat legacy form, and their absence mean what they mean to cache-dit."""
    assert parse_acceleration(data) == expected


@pytest.mark.parametrize(
    ("switch", "calibrator"),
    [
        ("enable_taylorseer", TaylorSeer(enable_encoder_calibrator=False)),
        ("enable_dmd", DMD(enable_encoder_calibrator=True)),
        ("enable_foca", FoCa(enable_encoder_calibrator=False)),
    ],
)
def test_an_unset_encoder_switch_means_what_it_means_in_files(
    switch: str, calibrator: TaylorSeer | DMD | FoCa
) -> None:
    """Files and classes of cache-dit differ in this default, and a file keeps the file's."""
    assert parse_acceleration({"cache_config": {switch: True}}).cache.calibrator == calibrator


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"ulysses_size": "auto"}, ParallelismSettings(ulysses_degree=AUTO_DEGREE)),
        (
            {"ulysses_size": "Auto", "tp_size": 2},
            ParallelismSettings(ulysses_degree=AUTO_DEGREE, tensor_parallel_degree=2),
        ),
        ({"tp_size": 2}, ParallelismSettings(tensor_parallel_degree=2)),
        (
            {"attention_backend": "native"},
            ParallelismSettings(ulysses_degree=AUTO_DEGREE, attention_backend="native"),
        ),
        ({"ulysses": 2, "ring": 3}, ParallelismSettings(ulysses_degree=2, ring_degree=3)),
        ({"tp": 2, "tp_size": 2}, ParallelismSettings(tensor_parallel_degree=2)),
        (
            {"ulysses_size": 2, "parallel_kwargs": {"experimental_ulysses_anything": True}},
            ParallelismSettings(ulysses_degree=2, ulysses_anything=True),
        ),
        (
            {"parallel_kwargs": {"ulysses_size": 2, "extra_parallel_modules": ["vae"]}},
            ParallelismSettings(ulysses_degree=2, extra_parallel_modules=("vae",)),
        ),
        (
            {"ring_size": 2, "extra_parallel_kwargs": {"b": 1, "a": True}, "use_ray": False},
            ParallelismSettings(ring_degree=2, extra_parallel_kwargs=(("a", True), ("b", 1))),
        ),
    ],
)
def test_forms_of_parallelism(section: dict[str, object], expected: ParallelismSettings) -> None:
    """Degrees, "auto", the short names and the older nested form give these settings."""
    assert parse_acceleration({"parallelism_config": section}).parallelism == expected


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({}, QuantizeSettings()),
        (
            {"components_to_quantize": ["vae", "transformer"]},
            QuantizeSettings(
                components_to_quantize=(
                    ComponentQuantization(component="transformer"),
                    ComponentQuantization(component="vae"),
                )
            ),
        ),
        (
            {"components_to_quantize": {"vae": {"quant_type": "int8_per_row"}}},
            QuantizeSettings(
                components_to_quantize=(
                    ComponentQuantization(component="vae", quant_type="int8_per_row"),
                )
            ),
        ),
        (
            {"svdq_kwargs": {"few_shot_steps": None, "fused_mlp": True}, "exclude_layers": []},
            QuantizeSettings(
                exclude_layers=(), svdq_kwargs=SvdqKwargs(few_shot_steps=None, fused_mlp=True)
            ),
        ),
        (
            {"precision_plan": {"to_q": "int8_per_row", "to_k": "float8_per_row"}},
            QuantizeSettings(precision_plan=(("to_k", "float8_per_row"), ("to_q", "int8_per_row"))),
        ),
    ],
)
def test_forms_of_quantisation(section: dict[str, object], expected: QuantizeSettings) -> None:
    """Components as a list or a mapping, plans and nested options give these settings."""
    assert parse_acceleration({"quantize_config": section}).quantize == expected


@pytest.mark.parametrize(
    ("data", "field", "reason"),
    [
        (
            {"cache_config": {"Fn_compute_block": 1}},
            "cache_config.Fn_compute_block",
            "Fn_compute_blocks?",
        ),
        (
            {"cache_config": {"fn_compute_blocks": 1}},
            "cache_config.fn_compute_blocks",
            "Fn_compute_blocks?",
        ),
        ({"cache_config": {"zzz": 1}}, "cache_config.zzz", "unknown key"),
        ({"cache_config": {7: 1}}, "cache_config.7", "unknown key"),
        ({"cache_confg": {}}, "cache_confg", "cache_config?"),
        ({"residual_dif_threshold": 1}, "residual_dif_threshold", "residual_diff_threshold?"),
        (
            {"parallelism_config": {"ulysses_degree": 2}},
            "parallelism_config.ulysses_degree",
            "ulysses_size?",
        ),
        (
            {"parallelism_config": {"tensor_parallel_degree": 2}},
            "parallelism_config.tensor_parallel_degree",
            "tp_size?",
        ),
        (
            {"parallelism_config": {"parallel_kwargs": {"ulyses_async": True}}},
            "parallelism_config.parallel_kwargs.ulyses_async",
            "ulysses_async?",
        ),
        ({"quantize_config": {"quant_typ": "x"}}, "quantize_config.quant_typ", "quant_type?"),
        (
            {"quantize_config": {"svdq_kwargs": {"fuse_mlp": True}}},
            "quantize_config.svdq_kwargs.fuse_mlp",
            "fused_mlp?",
        ),
        (
            {"quantize_config": {"components_to_quantize": {"vae": {"quanttype": "x"}}}},
            "quantize_config.components_to_quantize.vae.quanttype",
            "quant_type?",
        ),
        (
            {"cache_config": {}, "Fn_compute_blocks": 1},
            "Fn_compute_blocks",
            "cache_config.Fn_compute_blocks?",
        ),
        (
            {"cache_config": {"cache_type": "NONE", "Fn_compute_blocks": 1}},
            "cache_config.Fn_compute_blocks",
            "unknown key",
        ),
    ],
)
def test_unknown_keys(data: object, field: str, reason: str) -> None:
    """An unknown key is refused with its place and the nearest key that is known there."""
    found = problems_of(data)
    assert list(found) == [field]
    assert found[field].endswith(reason)


@pytest.mark.parametrize(
    ("data", "field", "reason"),
    [
        (
            {"cache_config": {"Fn_compute_blocks": True}},
            "cache_config.Fn_compute_blocks",
            "got bool",
        ),
        (
            {"cache_config": {"Fn_compute_blocks": 1.0}},
            "cache_config.Fn_compute_blocks",
            "got float",
        ),
        ({"cache_config": {"Fn_compute_blocks": "1"}}, "cache_config.Fn_compute_blocks", "got str"),
        (
            {"cache_config": {"Fn_compute_blocks": 2**70}},
            "cache_config.Fn_compute_blocks",
            "64 bits",
        ),
        ({"cache_config": {"enable_taylorseer": 1}}, "cache_config.enable_taylorseer", "got int"),
        ({"cache_config": {"dmd_ridge": "1e-8"}}, "cache_config.dmd_ridge", "1.0e-8"),
        (
            {"cache_config": {"steps_computation_mask": [1, "0"]}},
            "cache_config.steps_computation_mask[1]",
            "got str",
        ),
        ({"cache_config": [1]}, "cache_config", "got a list"),
        ({"cache_config": "fast"}, "cache_config", "got text"),
        ({"cache_config": 3}, "cache_config", "got 3"),
        ({"cache_config": {"cache_type": "FBCache"}}, "cache_config.cache_type", "DBPrune"),
        ({"cache_config": {"cache_type": []}}, "cache_config.cache_type", "none of"),
        ({"attention_backend": 1}, "attention_backend", "got int"),
        ({"parallelism_config": {"ulysses_size": 0}}, "parallelism_config.ulysses_size", "from 1"),
        ({"parallelism_config": {"tp_size": True}}, "parallelism_config.tp_size", "from 1"),
        ({"parallelism_config": {"ring_size": "all"}}, "parallelism_config.ring_size", "auto"),
        (
            {"parallelism_config": {"parallel_kwargs": 1}},
            "parallelism_config.parallel_kwargs",
            "got 1",
        ),
        (
            {"parallelism_config": {"extra_parallel_kwargs": {"a": [1]}}},
            "parallelism_config.extra_parallel_kwargs.a",
            "got array",
        ),
        ({"quantize_config": {"exclude_layers": "mod"}}, "quantize_config.exclude_layers", "array"),
        (
            {"quantize_config": {"components_to_quantize": "vae"}},
            "quantize_config.components_to_quantize",
            "array",
        ),
        (
            {"quantize_config": {"components_to_quantize": []}},
            "quantize_config.components_to_quantize",
            "no component",
        ),
        ({"quantize_config": {"filter_fn": "f"}}, "quantize_config.filter_fn", "function"),
    ],
)
def test_wrong_values(data: object, field: str, reason: str) -> None:
    """A value of the wrong type is refused: a truth value is no number, and text is none."""
    found = problems_of(data)
    assert list(found) == [field]
    assert reason in found[field]


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (
            {"cache_config": {"enable_taylorseer": True, "enable_dmd": True}},
            "cache_config.enable_dmd",
        ),
        (
            {"cache_config": {"enable_taylorseer": True, "calibrator_cache_type": "residual"}},
            "cache_config.calibrator_cache_type",
        ),
        (
            {"parallelism_config": {"ulysses": 2, "ulysses_size": 4}},
            "parallelism_config.ulysses",
        ),
        (
            {
                "parallelism_config": {
                    "attention_backend": "native",
                    "parallel_kwargs": {"attention_backend": "flash"},
                }
            },
            "parallelism_config.parallel_kwargs.attention_backend",
        ),
        (
            {
                "parallelism_config": {
                    "parallel_kwargs": {
                        "experimental_ulysses_async": True,
                        "ulysses_async": False,
                    }
                }
            },
            "parallelism_config.parallel_kwargs.experimental_ulysses_async",
        ),
    ],
)
def test_contradictions(data: object, field: str) -> None:
    """Two options that cannot both hold are refused, rather than one winning in silence."""
    assert list(problems_of(data)) == [field]


@pytest.mark.parametrize("key", ["use_ray", "ray_address", "ray_num_workers"])
def test_ray_is_refused(key: str) -> None:
    """cache-dit's other way to start ranks is a feature that is not there."""
    with pytest.raises(SettingsError) as caught:
        parse_acceleration({"parallelism_config": {"ulysses_size": 2, key: True}})
    assert [(problem.field, problem.kind) for problem in caught.value.problems] == [
        (f"parallelism_config.{key}", "unsupported")
    ]


def test_all_problems_come_at_once() -> None:
    """One error names every problem of a file, whichever section it stands in."""
    data = {
        "cache_config": {
            "Fn_compute_blocks": "x",
            "zzz": 1,
            "enable_foca": True,
            "enable_dmd": True,
        },
        "parallelism_config": {"ulysses_size": -1},
        "quantize_config": {"verbose": 1},
        "attention_backend": [],
        "yyy": 1,
    }
    assert set(problems_of(data)) == {
        "cache_config.Fn_compute_blocks",
        "cache_config.zzz",
        "cache_config.enable_foca",
        "parallelism_config.ulysses_size",
        "quantize_config.verbose",
        "attention_backend",
        "yyy",
    }


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_what_is_no_mapping_is_refused(data: object) -> None:
    """A file that holds no mapping at the top is refused, an empty one too."""
    assert list(problems_of(data)) == ["(file)"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.yaml", b"cache_config:\n  max_warmup_steps: 1\n  max_warmup_steps: 2\n", "duplicate"),
        ("a.yaml", b"cache_config: {}\ncache_config: {}\n", "duplicate key 'cache_config'"),
        ("a.json", b'{"cache_config": {"a": 1, "a": 2}}', "duplicate key 'a'"),
        ("a.yaml", b"a: &a {b: 1}\nc:\n  <<: *a\n", "merge keys"),
        ("a.yaml", b"a: [\n", "while parsing"),
        ("a.yaml", b"a: !!python/object/apply:os.getcwd []\n", "could not determine"),
        ("a.yaml", b"? {a: 1}\n: 2\n", "unhashable"),
        ("a.yaml", b"a: 2024-99-99\n", "month"),
        ("a.yaml", b"a: \x00\n", "not allowed"),
        ("a.yaml", b"\xff\xfe\xff", "UTF-8"),
        ("a.yaml", b"[" * 50000, "nested too deeply"),
        ("a.json", b"[" * 200000, "nested too deeply"),
        ("a.json", b"{", "Expecting"),
        ("a.json", b"1" * 5000, "digits"),
        ("a.yaml", b"", "empty"),
        ("a.yaml", b" " * (MAX_FILE_BYTES + 1), "larger than"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    """Duplicate keys, broken, deep, huge and hostile files end in the one error with the name."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        load_acceleration(path)
    assert caught.value.source == str(path)
    assert [problem.field for problem in caught.value.problems] == ["(file)"]
    assert reason in caught.value.problems[0].reason


def test_a_value_that_grows_without_bound_is_cut_short(tmp_path: Path) -> None:
    """Aliases of aliases, which a few lines make larger than memory, end in a short message."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    path = tmp_path / "grows.yaml"
    path.write_text("\n".join([*lines, "cache_type: *a29", "Fn_compute_blocks: *a29"]))
    with pytest.raises(SettingsError) as caught:
        load_acceleration(path)
    assert len(str(caught.value)) < 10_000


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    """What cannot be opened ends in the same error as what cannot be read."""
    for path in (tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(SettingsError):
            load_acceleration(path)


def test_a_mark_at_the_start_is_no_key(tmp_path: Path) -> None:
    """Files that an editor saved with a byte order mark load as others do."""
    path = tmp_path / "marked.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + REFERENCE.read_bytes())
    assert load_acceleration(path) == load_acceleration(REFERENCE)


@given(
    st.recursive(
        st.none() | st.booleans() | WHOLE | st.floats() | WORD,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "cache_config",
                        "parallelism_config",
                        "quantize_config",
                        "attention_backend",
                        "Fn_compute_blocks",
                        "enable_dmd",
                        "cache_type",
                        "parallel_kwargs",
                        "ulysses",
                        "ulysses_size",
                        "svdq_kwargs",
                        "components_to_quantize",
                        "precision_plan",
                        "extra_parallel_kwargs",
                    ]
                )
                | WORD
                | WHOLE,
                inner,
                max_size=5,
            )
        ),
        max_leaves=20,
    )
)
@THOROUGH
def test_no_content_breaks_the_parser(data: object) -> None:
    """Any mappings, lists and scalars give settings or the one error, never another exception."""
    try:
        acceleration = parse_acceleration(data)
    except SettingsError as err:
        problems = err.problems
    else:
        assert isinstance(acceleration, Acceleration)
        return
    assert problems
    assert all(problem.reason for problem in problems)
