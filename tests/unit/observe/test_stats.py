"""Stats: intervals by subtraction, snapshots by copy."""

from dataclasses import fields
from itertools import count

from kvtier.observe.stats import Stats


def numbered() -> Stats:
    """Stats with another number in every place."""
    numbers = count(1)
    stats = Stats()
    for field in fields(stats):
        value = getattr(stats, field.name)
        setattr(stats, field.name, [next(numbers) for _ in value] if isinstance(value, list) else next(numbers))
    return stats


def test_copy_equals_the_original() -> None:
    assert numbered().copy() == numbered()


def test_copy_does_not_see_later_counting() -> None:
    stats = numbered()
    snapshot = stats.copy()
    stats.requests += 1
    stats.hit_tokens[0] += 1
    stats.miss_tokens[-1] += 1
    assert snapshot == numbered()


def test_difference_to_nothing_is_the_total() -> None:
    assert numbered() - Stats() == numbered()


def test_difference_to_itself_is_zero_everywhere() -> None:
    assert numbered() - numbered() == Stats()


def test_difference_holds_what_was_counted_in_between() -> None:
    stats = numbered()
    earlier = stats.copy()
    stats.asked_tokens += 100
    stats.hit_tokens[2] += 60
    stats.miss_tokens[1] += 40
    assert stats - earlier == Stats(asked_tokens=100, hit_tokens=[0, 0, 60], miss_tokens=[0, 40, 0, 0, 0, 0])


def test_subtraction_leaves_both_sides_alone() -> None:
    later, earlier = numbered(), numbered()
    _ = later - earlier
    assert (later, earlier) == (numbered(), numbered())
