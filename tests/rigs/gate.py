"""A LoadGate on the test's clock: chunks are measured; requests are judged, wait, and probe. No bytes, no threads."""

from bisect import bisect_right

from kvtier.observe.load import SAMPLE_S, WINDOW
from kvtier.observe.rate import Cost, PrefillRate
from kvtier.policy.gate import LoadGate
from kvtier.residency import Chain, Resident, State
from kvtier.types import ChunkKey

CHUNK = 1 << 20
TOKENS = 100
FREE_COPIES = 1e15


THOUSAND_A_SECOND = Cost(1e-3, 0.0, 0.0)


def gate(prefill: Cost | None = THOUSAND_A_SECOND, copies: float = FREE_COPIES, **settings) -> LoadGate:
    """At 1,000 tokens a second a chunk takes 0.1 s to recompute: the break-even is 10 chunks a second."""
    made = LoadGate(chunk_bytes=CHUNK, tokens_per_chunk=TOKENS, prefill=PrefillRate(prefill), **settings)
    made.device.byte_s = 1 / copies
    return made


def measure(gate: LoadGate, chunk_s: float, n: int = WINDOW, begins_s: float = 0.0, *, probe: bool = False) -> None:
    """`n` chunks, one after the other, each a sample."""
    assert chunk_s >= SAMPLE_S or probe
    for i in range(n):
        gate.load_started(begins_s + i * chunk_s, probe=probe)
        gate.load_ended(begins_s + (i + 1) * chunk_s, CHUNK)


def asks(gate: LoadGate, n_chunks: int, *, now_s: float = 0.0, n_before: int = 0, promised: int = 0) -> Chain:
    """A request that could find `n_chunks` more is judged."""
    chain = Chain(n_chunks=n_chunks + promised, n_before=n_before)
    for i in range(promised):
        key = ChunkKey(b"%d" % i)
        chain.promises[key] = Resident(key, i, State.READY, 0.0)
    gate.judge(chain, now_s)
    return chain


def loads(gate: LoadGate, n_chunks: int, **of_request) -> bool:
    return bool(asks(gate, n_chunks, **of_request).may_promote)


def waiting(gate: LoadGate, n_chunks: int, now_s: float = 100.0) -> Chain:
    """A request whose `n_chunks` are being promoted, as it begins to wait."""
    chain = asks(gate, n_chunks, now_s=now_s)
    assert chain.may_promote
    for _ in range(n_chunks):
        gate.load_started(now_s, probe=False)
    chain.pending = n_chunks
    assert gate.waits(chain, now_s)
    return chain


def land(gate: LoadGate, chain: Chain, n_chunks: int, now_s: float) -> None:
    for _ in range(n_chunks):
        gate.load_ended(now_s, CHUNK)
    chain.pending -= n_chunks


def waits_s(gate: LoadGate, n_chunks: int) -> float:
    """How long a request waits for `n_chunks` of which none comes."""
    chain = waiting(gate, n_chunks)
    return bisect_right(range(200_000), 0, key=lambda n: not gate.waits(chain, 100.0 + n / 10_000)) / 10_000


def probes(gate: LoadGate, now_s: float, n_chunks: int = 10) -> bool:
    return gate.judge(Chain(n_chunks=n_chunks), now_s)


def shut(**settings) -> LoadGate:
    """A gate that knows the disk is slow, and has had a probe at 100 s that agreed."""
    g = gate(**settings)
    measure(g, 1.0)
    assert probes(g, 99.0)
    measure(g, 1.0, n=1, begins_s=99.0, probe=True)
    return g
