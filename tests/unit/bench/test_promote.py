"""How many processors a promotion needs to keep up with a peer."""

from kvtier.bench import promote
from kvtier.bench.base import GB, Timings


def test_cores_are_the_peers_gigabytes_a_second_times_our_processor_seconds_for_one() -> None:
    timings = Timings({"kvtier": [4.0, 5.0, 6.0], "odirect": [1.0, 2.0, 9.0]})  # the peer's middle round: 2 GB/s
    (result,) = promote._cores("cores", timings, "odirect", 0.75, int(4 * GB))
    assert (result.value, result.unit) == (1.5, "cores")


def test_without_the_peer_there_is_no_such_figure() -> None:
    assert not list(promote._cores("cores", Timings({"kvtier": [1.0]}), "odirect", 0.75, int(GB)))
