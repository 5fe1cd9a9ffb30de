"""README.md and docs/ name only what exists, and their tables are what the code says."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from kvtier.config import Config, settings
from kvtier.kvshape import KvShape
from kvtier.observe.hitlog import format_line
from kvtier.observe.metrics import METRICS
from kvtier.observe.stats import Gauges, Stats
from kvtier.sizing import chunk_tokens

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DESIGN = ROOT / "docs" / "design.md"
DOCS = [README, *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = [ROOT, ROOT / "kvtier", ROOT / "docs"]  # what a path in the text may start from
BLOCK_TOKENS = 16  # of the README's table

FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(r"(?:[\w.-]+/)*[\w.-]+\.(?:py|yaml|md|toml|sh)")
READERS_OWN = {"kvtier.yaml"}  # files that a reader makes


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(path: Path) -> str:
    return FENCE.sub("", path.read_text())


def table(text: str, first_heading: str) -> list[list[str]]:
    """Cells of the table whose first heading it is, without its heading."""
    match = re.search(rf"^\| {re.escape(first_heading)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert match is not None, f"no table that begins with {first_heading!r}"
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in match[1].splitlines()]


@pytest.fixture(scope="module")
def check_links() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_links", ROOT / "tools" / "check_links.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def make_targets() -> frozenset[str]:
    return frozenset(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("doc", DOCS, ids=name)
def test_links_paths_and_make_targets_exist(doc: Path, check_links: ModuleType, make_targets: frozenset[str]) -> None:
    assert list(check_links.dead_references(doc, make_targets)) == []


def test_dead_references_are_noticed(tmp_path: Path, check_links: ModuleType) -> None:
    doc = tmp_path / "doc.md"
    doc.write_text("# Here\n[a](gone.md) [b](#there) [c](#here) `docs/gone.md` `tools/check_links.py` `make nothing`\n")
    named = [what.partition(": no such")[0] for what in check_links.dead_references(doc, frozenset({"test"}))]
    assert named == ["link to gone.md", "link to #there", "`docs/gone.md`", "make nothing"]


@pytest.mark.parametrize("doc", DOCS, ids=name)
def test_files_named_by_a_part_of_their_path_exist(doc: Path) -> None:
    paths = {span for span in re.findall(r"`([^`\n]+)`", prose(doc)) if PATH.fullmatch(span)} - READERS_OWN
    missing = [path for path in paths if not any((folder / path).exists() for folder in FOLDERS)]
    # An ADR may speak of the engine's own files.
    assert [path for path in missing if not path.startswith("offloading")] == []


def test_readme_documents_every_configuration_key_and_no_other() -> None:
    assert [row[0].strip("`") for row in table(README.read_text(), "key")] == [setting.key for setting in settings()]


def test_readme_links_every_example_configuration() -> None:
    linked = {target for target in LINK.findall(README.read_text()) if target.startswith("configs/")}
    assert linked == {name(path) for path in (ROOT / "configs").glob("*.yaml")}


@pytest.mark.parametrize("row", table(README.read_text(), "model"), ids=lambda row: row[0])
def test_readme_sizes_are_what_kvtier_computes(row: list[str]) -> None:
    n_layers, n_heads, head_size, per_token, per_gib, chunk = (int(cell.replace(",", "")) for cell in row[1:])
    model = {"num_hidden_layers": n_layers, "num_attention_heads": 128, "torch_dtype": "bfloat16"}
    if "MLA" in row[0]:
        model |= {"kv_lora_rank": head_size - 64, "qk_rope_head_dim": 64}
    else:
        model |= {"num_key_value_heads": n_heads, "head_dim": head_size // 2}
    shape = KvShape.of_config(model)
    assert isinstance(shape, KvShape)
    assert shape.bytes_per_token == per_token
    assert (1 << 30) // per_token == per_gib
    assert chunk_tokens(Config(), block_tokens=BLOCK_TOKENS, bytes_per_token=per_token) == chunk


def test_design_counts_failures_under_names_that_exist() -> None:
    one_of_each = Stats(**{field: 1 for field in Stats.__slots__ if field not in ("hit_tokens", "miss_tokens")})
    gauges = Gauges(1, 1, 1, 1, 1, 1, 1, 1, 1.0, 1.0, 1.0, 1, disk_on=True)
    known = set(re.findall(r"[a-z_]+", format_line(one_of_each, gauges, 10))) | {"disk_on"}
    known |= {metric.name.removeprefix("kvtier_") for metric in METRICS}
    named = {word for row in table(DESIGN.read_text(), "fault") for word in re.findall(r"`([a-z_]+)`", row[2])}
    assert named <= known
