"""Namespace digests: what changes them, what does not, and that they stay what they are."""

from kvtier.keys import (
    ADAPTER_BYTES,
    FAMILY_BYTES,
    NO_ADAPTER,
    NO_TENANT,
    TENANT_BYTES,
    Namespace,
    adapter_digest,
    tenant_digest,
    tenant_of,
)
from kvtier.types import NAMESPACE_BYTES, ChunkKey, chunk_hash_of

FIELDS = {"model": "m", "dtype": "bfloat16", "layers": 30, "tp": 1}


def test_equal_fields_give_equal_families_whatever_their_order():
    assert Namespace(FIELDS).family("0") == Namespace(dict(reversed(FIELDS.items()))).family("0")


def test_any_field_changes_the_family():
    changes: list[dict[str, str | int]] = [
        FIELDS | {"model": "n"},
        FIELDS | {"tp": 2},
        FIELDS | {"new": ""},
        {k: v for k, v in FIELDS.items() if k != "tp"},
    ]
    families = {Namespace(fields).family("0") for fields in [FIELDS, *changes]}
    assert len(families) == len(changes) + 1


def test_a_number_and_its_digits_are_different_values():
    assert Namespace(FIELDS | {"tp": "1"}).family("0") != Namespace(FIELDS).family("0")


def test_fields_do_not_run_into_each_other():
    assert Namespace({"a": "b,c"}).family("0") != Namespace({"a": "b", "c": ""}).family("0")
    assert Namespace({"ab": "c"}).family("0") != Namespace({"a": "bc"}).family("0")


def test_the_epoch_changes_the_family_but_not_the_base():
    namespace = Namespace(FIELDS)
    assert len({namespace.family(epoch) for epoch in ("0", "1", "0-ab")}) == 3
    assert namespace.base() == Namespace(FIELDS).base()
    assert len(namespace.base()) == 2 * FAMILY_BYTES


def test_names_outside_ascii_are_digested():
    assert Namespace({"model": "\u6a21"}).family("0") != Namespace({"model": "\u578b"}).family("0")


def test_adapters_have_digests_of_their_own_and_the_base_model_has_zeros():
    assert len(adapter_digest(b"x")) == len(NO_ADAPTER) == ADAPTER_BYTES
    assert adapter_digest(b"x") != adapter_digest(b"y")
    assert set(NO_ADAPTER) == {0}


def test_a_key_is_namespace_then_chunk_hash():
    head = Namespace(FIELDS).family("0") + adapter_digest(b"x") + tenant_digest("salt")
    assert len(head) == NAMESPACE_BYTES
    key = ChunkKey(head + b"hash")
    assert key[:NAMESPACE_BYTES] == head
    assert chunk_hash_of(key) == b"hash"
    assert tenant_of(key) == tenant_digest("salt")


def test_tenants_have_digests_of_their_own_and_requests_without_a_salt_have_zeros():
    assert len(tenant_digest("a")) == len(NO_TENANT) == TENANT_BYTES
    assert tenant_digest("a") != tenant_digest("b")
    assert set(NO_TENANT) == {0}


def test_digests_are_the_ones_on_disk():
    # A change here turns every cache in the field cold.
    assert Namespace(FIELDS).canonical() == b'{"dtype":"bfloat16","layers":30,"model":"m","tp":1}'
    assert Namespace(FIELDS).family("0").hex() == "78075c4292b04655"
    assert Namespace(FIELDS).base() == "885f788334da4548"
    assert adapter_digest(b"x").hex() == "4adf4367f96e584f"
    assert tenant_digest("x").hex() == "2acbd72ad86cdef1"
