"""The schema: what a file means, and what is said about a file that means nothing."""

from __future__ import annotations

import json
import types

import pytest

from kvtier.config import Config, load, parse, settings
from kvtier.errors import ConfigError


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return folder


@pytest.fixture
def yaml_file(tmp_path):
    def write(text):
        path = tmp_path / "kvtier.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def told(path, **kwargs):
    """The error message of loading `path`, without its folder."""
    with pytest.raises(ConfigError) as error:
        load(path, **kwargs)
    return str(error.value).replace(f"{path.parent}/", "")


FULL = """
version: 1
host: {capacity: 64GiB}
disk:
  path: /nvme/kvtier
  capacity: 1TiB
  write: evict_only
  admit: 25%
  write_budget: 500GB/day
  write_burst: 50GB
  write_behind_after: 500ms
  sync_every: 1m
  durability: commit
  codec: raw
  promote_threads: 8
chunk: {tokens: 256}
offload: {generated: false}
log: {every: 1m, json: true}
"""


def test_every_key_of_a_full_file_arrives(yaml_file):
    config = load(yaml_file(FULL))
    disk = config.disk
    assert (config.version, config.host.capacity.n_bytes) == (1, 64 << 30)
    assert (str(disk.path), disk.capacity.n_bytes, disk.write) == ("/nvme/kvtier", 1 << 40, "evict_only")
    assert (disk.write_behind_after_s, disk.sync_every_s, disk.codec, disk.promote_threads) == (0.5, 60.0, "raw", 8)
    assert disk.durability == "commit"
    assert (disk.admit.share, disk.write_budget.n_bytes, disk.write_burst_bytes) == (0.25, 500 * 10**9, 50 * 10**9)
    assert (config.chunk.tokens, config.offload.generated, config.log.every_s, config.log.json) == (
        256,
        False,
        60.0,
        True,
    )


@pytest.mark.parametrize(
    "text", ["", "\n", "# nothing\n", "---\n", "host:\n", "disk:\n", "disk:\n  # path: x\nlog:\n", "disk: on"]
)
def test_what_is_not_written_is_the_default(yaml_file, text):
    assert load(yaml_file(text)) == Config()


def test_the_defaults_are_these(home):
    assert Config().to_tree() == {
        "version": 1,
        "host": {"capacity": "auto", "ttl": "off"},
        "disk": {
            "path": f"{home}/.cache/kvtier",
            "capacity": "auto",
            "ttl": "off",
            "write": "ahead",
            "admit": "all",
            "write_budget": "off",
            "write_burst": "20%",
            "write_behind_after": "2s",
            "sync_every": "5s",
            "durability": "interval",
            "codec": "auto",
            "load": "auto",
            "min_tokens": None,
            "promote_threads": 2,
        },
        "chunk": {"tokens": "auto"},
        "offload": {"generated": True},
        "log": {"every": "10s", "json": False},
        "trace": {"record": None, "capacity": "1GiB"},
        "integrity": {"hmac_key_file": None},
        "encryption": {"key_file": None},
    }


@pytest.mark.parametrize("text", ["disk: off", "disk: null", "disk: ~", "disk: 'off'", "disk: false", "disk: no"])
def test_off_and_null_switch_the_disk_tier_off(yaml_file, text):
    assert load(yaml_file(text)).disk is None


@pytest.mark.parametrize("value", ["off", "0", "'0'", "0s", "no"])
def test_the_log_line_can_be_switched_off(yaml_file, value):
    assert load(yaml_file(f"log: {{every: {value}}}")).log.every_s == 0.0


def test_a_trace_is_recorded_beside_the_file_that_asks_for_it(yaml_file):
    path = yaml_file("trace: {record: requests.jsonl, capacity: 5MB}")
    trace = load(path).trace
    assert (trace.record, trace.capacity_bytes) == (path.parent / "requests.jsonl", 5_000_000)


def test_a_key_file_lies_beside_the_file_that_names_it(yaml_file):
    path = yaml_file("integrity: {hmac_key_file: hmac.key}")
    assert load(path).integrity.hmac_key_file == path.parent / "hmac.key"
    assert load(yaml_file("encryption: {key_file: off}")).encryption.key_file is None


def test_two_keys_at_once_are_refused(yaml_file):
    with pytest.raises(ConfigError, match="both set: encryption authenticates too"):
        load(yaml_file("integrity: {hmac_key_file: a}\nencryption: {key_file: b}"))


@pytest.mark.parametrize("value", ["off", "null", "no"])
def test_recording_can_be_switched_off(yaml_file, value):
    assert load(yaml_file(f"trace: {{record: {value}}}")).trace.record is None


@pytest.mark.parametrize("value", ["auto", "10%"])
def test_the_bound_of_a_trace_is_in_bytes(yaml_file, value):
    with pytest.raises(ConfigError, match=r"trace\.capacity"):
        load(yaml_file(f"trace: {{capacity: {value}}}"))


def test_the_break_even_of_loading_can_be_set():
    disk = parse({"disk": {"load": "min_tokens", "min_tokens": 512}}).disk
    assert disk is not None
    assert (disk.load, disk.min_tokens) == ("min_tokens", 512)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("disk: {load: min_tokens}", "`disk.load` is 'min_tokens': say how many in `disk.min_tokens`"),
        (
            "disk: {min_tokens: 512}",
            "`disk.min_tokens` is 512, but `disk.load` is 'auto': make that min_tokens, or leave `disk.min_tokens` out",
        ),
        (
            "disk: {load: min_tokens, min_tokens: 0}",
            "`disk.min_tokens` is 0: expected a whole number of tokens, at least 1, together with `load: min_tokens`",
        ),
        ("disk: {load: 512}", "`disk.load` is 512: expected auto, always, never or min_tokens"),
    ],
)
def test_a_break_even_of_loading_that_means_nothing_is_refused(yaml_file, text, message):
    assert told(yaml_file(text)) == f"kvtier.yaml: {message}"


def test_auto_is_the_same_as_leaving_chunk_tokens_out():
    assert parse({"chunk": {"tokens": "auto"}}).chunk.tokens is None


@pytest.mark.parametrize(
    "text",
    [FULL, "", "disk: off", "log: {every: off}", "disk: {path: x, write_behind_after: 0}", "host: {capacity: 12.5%}"],
)
def test_a_tree_survives_json_and_means_the_same_elsewhere(yaml_file, text, monkeypatch):
    config = load(yaml_file(text))
    tree = json.loads(json.dumps(config.to_tree()))
    monkeypatch.setenv("HOME", "/elsewhere")
    assert parse(tree) == config


def test_any_mapping_can_be_parsed_and_is_left_as_it_is():
    inner = types.MappingProxyType({"tokens": "auto"})
    assert parse(types.MappingProxyType({"chunk": inner})) == Config()


def test_auto_path_follows_an_absolute_xdg_cache_home(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    assert str(Config().disk.path) == "/var/cache/me/kvtier"


def test_auto_path_ignores_a_relative_xdg_cache_home(monkeypatch, home):
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert Config().disk.path == home / ".cache/kvtier"


def test_a_relative_path_starts_at_the_folder_of_the_file(yaml_file, tmp_path, monkeypatch):
    path = yaml_file("disk: {path: ../x/./y}")
    monkeypatch.chdir("/")
    assert load(path).disk.path == tmp_path.parent / "x/y"


def test_a_tilde_in_a_path_is_the_home_folder(yaml_file, home):
    assert load(yaml_file("disk: {path: ~/kv}")).disk.path == home / "kv"


def test_a_configuration_cannot_be_changed_in_place():
    with pytest.raises(AttributeError):
        Config().host.capacity = "1GiB"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("disk: {capcity: 1GiB}", "kvtier.yaml: unknown key `disk.capcity`; did you mean `disk.capacity`?"),
        ("hots: {}", "kvtier.yaml: unknown key `hots`; did you mean `host`?"),
        ("capacity: 1GiB", "kvtier.yaml: unknown key `capacity`; did you mean `host.capacity`?"),
        ("host: {tokens: 16}", "kvtier.yaml: unknown key `host.tokens`; did you mean `chunk.tokens`?"),
        (
            "zstd: 3",
            (
                "kvtier.yaml: unknown key `zstd`; at the top may be: "
                "version, host, disk, chunk, offload, log, trace, integrity, encryption"
            ),
        ),
        ("log: {zstd: 3}", "kvtier.yaml: unknown key `log.zstd`; there may be: every, json"),
        (
            "3: 3",
            (
                "kvtier.yaml: unknown key `3`; at the top may be: "
                "version, host, disk, chunk, offload, log, trace, integrity, encryption"
            ),
        ),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_valid_one(yaml_file, text, message):
    assert told(yaml_file(text)) == message


SIZE = "expected bytes with a unit (64GiB, 500MB), a percentage (10%) or auto"
TIME = "expected a time with a unit (500ms, 30s, 5m)"
ADMIT = "expected all, second_use, or a percentage of chains (25%)"
PER_DAY = "expected bytes a day (500GB/day) or off"
BURST = "expected bytes with a unit (64GiB, 500MB) or a percentage (20%), at most half of `disk.write_budget`"
VERSION = "; this kvtier reads version 1: see CHANGELOG for what changed, or leave the key out"
DISK = (
    "path, capacity, ttl, write, admit, write_budget, write_burst, write_behind_after, sync_every, durability, codec, "
    "load, min_tokens, promote_threads"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("host: {capacity: 64G}", "`host.capacity`: '64G' is ambiguous: write 64GiB (1024-based) or 64GB (1000-based)"),
        ("host: {capacity: 64}", f"`host.capacity` is 64: it has no unit: {SIZE}"),
        ("host: {capacity: 110%}", "`host.capacity`: '110%' is no share: expected more than 0% and at most 100%"),
        ("disk: {capacity: off}", f"`disk.capacity` is false: {SIZE}"),
        ("host: 64GiB", "`host` is '64GiB': expected keys below it (capacity, ttl)"),
        ("disk: [1]", f"`disk` is a list: expected keys below it ({DISK}), on or off"),
        ("disk: {admit: some}", f"`disk.admit`: 'some' admits nothing: {ADMIT}"),
        ("disk: {admit: 101%}", f"`disk.admit`: '101%' is no share: {ADMIT}"),
        ("disk: {write_budget: 500GB}", f"`disk.write_budget`: '500GB' is no budget: {PER_DAY}"),
        (
            "disk: {write_budget: 500G/day}",
            "`disk.write_budget`: '500G' is ambiguous: write 500GiB (1024-based) or 500GB (1000-based)",
        ),
        ("disk: {write_budget: 0B/day}", f"`disk.write_budget`: '0B/day' is no budget: {PER_DAY}, more than 0"),
        ("disk: {write_burst: auto}", f"`disk.write_burst` is 'auto': {BURST}"),
        ("disk: {write_burst: 60%}", f"`disk.write_burst` is '60%': {BURST}"),
        ("disk: {write_budget: 1GB/day, write_burst: 501MB}", f"`disk.write_burst` is '501MB': {BURST}"),
        ("disk: {write: always}", "`disk.write` is 'always': expected ahead or evict_only"),
        ("disk: {promote_threads: 0}", "`disk.promote_threads` is 0: expected a whole number from 1 to 64"),
        ("disk: {promote_threads: 2.0}", "`disk.promote_threads` is 2.0: expected a whole number from 1 to 64"),
        ("disk: {promote_threads: yes}", "`disk.promote_threads` is true: expected a whole number from 1 to 64"),
        ("disk: {write_behind_after: 2}", f"`disk.write_behind_after` is 2: it has no unit: {TIME}"),
        ("disk: {write_behind_after: off}", f"`disk.write_behind_after` is false: {TIME}"),
        ("disk: {sync_every: 0}", f"`disk.sync_every` is '0s': {TIME}, more than 0"),
        ("disk: {durability: always}", "`disk.durability` is 'always': expected interval or commit"),
        ("disk: {path: ''}", "`disk.path` is '': expected a directory or auto"),
        ("disk: {path: {a: b}}", "`disk.path` is a group of keys: expected a directory or auto"),
        ("disk: {path: ~}", "`disk.path` is empty: expected a directory or auto"),
        ("chunk: {tokens: some}", "`chunk.tokens` is 'some': expected a whole number of tokens, at least 1, or auto"),
        ("offload: {generated: 1}", "`offload.generated` is 1: expected true or false"),
        ("log: {every: 10}", f"`log.every` is 10: it has no unit: {TIME}, 0 or off"),
        ("version: 2", f"`version` is 2{VERSION}"),
        ("version: '1'", f"`version` is '1'{VERSION}"),
        ("- a", "expected keys and values, got a list"),
    ],
)
def test_a_wrong_value_is_quoted_with_its_key_and_what_was_expected(yaml_file, text, message):
    assert told(yaml_file(text)) == f"kvtier.yaml: {message}"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("host: [", "kvtier.yaml:1:8: "),
        ("host:\n\tcapacity: 1GiB", "kvtier.yaml:2:1: "),
        ("host: {}\n--- \nlog: {}", "kvtier.yaml:2:1: "),
        ("host: {}\nlog: \x07", "kvtier.yaml:2: "),
        (b"host: {}\n\xff\xfe", "kvtier.yaml:2: not UTF-8"),
        ("log: !!python/name:os.system ''", "kvtier.yaml:1:6: "),
        ("a: &a {b: 1}\nlog: {<<: *a}", "kvtier.yaml:2:7: merge keys (<<) are not supported"),
        ("? [a]\n: b", "kvtier.yaml:1:3: "),
    ],
)
def test_what_is_not_yaml_is_shown_where_it_stands(yaml_file, text, place):
    assert told(yaml_file(text)).startswith(place)


def test_a_key_written_twice_is_an_error_with_both_lines(yaml_file):
    text = "host:\n  capacity: 1GiB\n  capacity: 2GiB\n"
    assert told(yaml_file(text)) == "kvtier.yaml:3:3: key `capacity` is there twice, first on line 2"


@pytest.mark.parametrize("text", ["x: 2020-99-99", "x: !!int ''", "x: !!bool maybe", "[" * 5000, "log: &a {every: *a}"])
def test_traps_of_yaml_are_configuration_errors(yaml_file, text):
    assert told(yaml_file(text)).startswith("kvtier.yaml: ")


def test_nested_aliases_do_not_blow_up_the_message(yaml_file):
    bomb = "a: &a [x,x]\n" + "".join(
        f"{c}: &{c} [*{p},*{p}]\n" for p, c in zip("abcdefghijklmnopqrst", "bcdefghijklmnopqrstu", strict=True)
    )
    assert len(told(yaml_file(bomb + "log: *u"))) < 300


def test_a_number_too_large_to_print_is_still_an_error_message():
    with pytest.raises(ConfigError) as error:
        parse({"disk": {"promote_threads": 1 << 20_000}})
    assert str(error.value).startswith("configuration: `disk.promote_threads` is a huge number: ")


def test_a_missing_file_and_a_folder_are_named_with_the_reason(tmp_path):
    assert told(tmp_path / "none.yaml") == "none.yaml: cannot read it: No such file or directory"
    assert told(tmp_path).endswith("cannot read it: Is a directory")


def test_a_file_too_large_for_a_configuration_is_not_parsed(yaml_file):
    assert "larger than 1 MiB" in told(yaml_file("#" * ((1 << 20) + 1)))


def test_no_home_folder_is_an_error_with_the_remedy(yaml_file, monkeypatch):
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert told(yaml_file("")) == "kvtier.yaml: `disk.path` is 'auto': there is no home directory; name a directory"


def test_every_key_of_the_tree_is_described_once_and_nothing_else():
    def keys(tree, prefix=""):
        for name, value in tree.items():
            if isinstance(value, dict):
                yield from keys(value, f"{prefix}{name}.")
            else:
                yield prefix + name

    described = [setting.key for setting in settings()]
    assert sorted(described) == sorted([*keys(Config().to_tree()), "disk"])


def test_every_default_of_the_description_parses_to_the_default():
    for setting in settings():
        section, _, name = setting.key.partition(".")
        value = json.loads(setting.default) if setting.default in ("1", "2", "true", "false") else setting.default
        assert parse({section: {name: value} if name else value}) == Config(), setting
