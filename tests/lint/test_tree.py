"""What the tree counts, against a plain reckoning over whole prompts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.lint import tree as tree_module
from kvtier.lint.causes import Cause, Site
from kvtier.lint.pieces import Cutter
from kvtier.lint.read import Request, Turn
from kvtier.lint.report import Limits, Report, report
from kvtier.lint.tally import Tally
from kvtier.lint.tokens import ByteCounter
from kvtier.lint.tree import PrefixTree

STATIC = "\n".join(f"Rule {word}: keep the answer short and polite." for word in ("alpha", "beta", "gamma", "delta"))
LINES = st.sampled_from(["alpha", "beta", "Time: 10:00:01", "Time: 10:00:02", "gamma  delta", "gamma delta", ""])


class LineCounter:
    """A token per piece of text: hit rates can be reckoned by hand."""

    name = "lines"

    def count(self, text: str) -> int:
        return 1 if text.strip() else 0


def tally(prompts: Sequence[str], *, tenants: Sequence[str] | None = None, isolate: bool = False) -> Tally:
    tree = PrefixTree(Cutter(LineCounter()), isolate_tenants=isolate)
    for line, prompt in enumerate(prompts, start=1):
        tree.add(Request(line, (Turn("prompt", prompt),), None, tenants[line - 1] if tenants else None))
    return tree.tally


def judged(prompts: Sequence[str]) -> Report:
    return report(tally(prompts), file="x", counted_with="lines", limits=Limits(tokens=1))


@given(st.lists(st.lists(LINES, min_size=1, max_size=6), min_size=1, max_size=8))
def test_hits_and_gains_never_exceed_what_there_is(prompts: list[list[str]]):
    known = tally(["\n".join(lines) for lines in prompts])
    assert known.hit_tokens + sum(known.gains.values()) <= known.tokens
    assert all(site.affected <= known.requests for site in known.sites.values())


@given(st.lists(st.lists(st.sampled_from(["alpha", "beta", "gamma"]), min_size=1, max_size=5), min_size=1, max_size=8))
def test_without_changing_values_a_hit_is_the_longest_prefix_sent_before(prompts: list[list[str]]):
    expected = 0
    for i, lines in enumerate(prompts):
        shared = (sum(1 for _ in itertools.takewhile(bool, map(str.__eq__, lines, old))) for old in prompts[:i])
        expected += max(shared, default=0)
    known = tally(["\n".join(lines) for lines in prompts])
    assert known.hit_tokens == expected
    assert not known.gains


@given(st.permutations(["Time: 10:00:01", "Time: 10:00:02", "Time: 10:00:03"]))
def test_the_order_of_requests_changes_neither_hits_nor_gains(clocks: list[str]):
    known = tally([f"{clock}\n{STATIC}\n{i}" for i, clock in enumerate(clocks)])
    assert known.hit_tokens == 3 - 1  # "Time:" of the second and the third
    assert sum(known.gains.values()) == 2 * 4


def test_the_value_itself_is_never_gained():
    known = judged([f"Time: 10:00:0{i}\n{STATIC}" for i in range(3)])
    assert known.hit_rate_after == (2 + 2 * 4) / (3 * 6)


def test_two_causes_one_behind_the_other_pay_only_together():
    found = judged([f"Time: 10:00:0{i}\nAttempt: {i}\n{STATIC}" for i in range(4)])
    first, second = found.findings
    assert {first.cause, second.cause} == {Cause.TIMESTAMP, Cause.COUNTER}
    counter = next(finding for finding in found.findings if finding.cause is Cause.COUNTER)
    assert counter.hit_rate_after == found.hit_rate
    assert second.hit_rate_with_above == found.hit_rate_after > first.hit_rate_after > found.hit_rate


def test_an_old_time_before_an_old_question_it_never_met_is_the_fault_of_the_time():
    prompts = [
        f"Time: {clock}\n{STATIC}\nask {question}" for clock, question in (("1:01", 1), ("1:02", 2), ("1:01", 2))
    ]
    assert set(tally(prompts).sites) == {Site(Cause.TIMESTAMP, "Time:", "prompt")}


def test_isolated_tenants_share_nothing():
    prompts, tenants = [STATIC] * 2, ["a", "b"]
    assert tally(prompts, tenants=tenants).hit_tokens == 4
    assert tally(prompts, tenants=tenants, isolate=True).hit_tokens == 0


def test_nodes_count_the_requests_that_pass():
    root = tally([f"{STATIC}\nask {i}" for i in range(5)]).root
    node, passes = root, []
    while node.children:
        (node,) = node.children
        passes.append(node.passes)
    assert (root.passes, passes) == (5, [5] * 4)


def test_nothing_is_blamed_on_what_user_and_model_said():
    tree = PrefixTree(Cutter(LineCounter()))
    for line, clock in enumerate(("10:01", "10:02", "10:03"), start=1):
        said = (
            Turn("system", "be brief"),
            Turn("user", f"it is {clock}"),
            Turn("assistant", STATIC),
            Turn("user", "x"),
        )
        tree.add(Request(line, said, None, None))
    assert not tree.tally.gains


def test_what_few_requests_have_is_forgotten_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tree_module, "MAX_NODES", 30)
    monkeypatch.setattr(tree_module, "MAX_SITES", 3)
    monkeypatch.setattr(tree_module, "MAX_GAINS", 3)
    prompts = []
    for i in range(60):
        prompts.append(f"Time: 10:00:{i:02}\n{STATIC}\nask {i}")
        prompts += [f"Odd {'x' * i} time: 10:00:{j:02}\nrule" for j in range(2)]
    tree = PrefixTree(Cutter(LineCounter()))
    for line, prompt in enumerate(prompts, start=1):
        tree.add(Request(line, (Turn("prompt", prompt),), None, None))
        assert len(tree.tally.sites) <= 3
        assert len(tree.tally.gains) <= 3
    (finding,) = report(tree.tally, file="x", counted_with="lines", limits=Limits(tokens=1)).findings
    assert (finding.site.label, finding.requests) == ("Time:", 59)
    assert max(child.passes for child in tree.tally.root.children) == 60


def test_deep_text_is_kept_in_few_pieces_and_shared_nearly_whole():
    lines = [f"line {i} of a long and dull report" for i in range(4000)]
    prompts = ["\n".join([*lines[:n], "the end"]) for n in (4000, 3000, 4000)]
    known = tally(prompts)
    assert known.n_pieces < 1200
    assert 6600 < known.hit_tokens <= 7001
    assert known.tokens == 11003


def clocks_first(i: int) -> str:
    return f"Time: 10:00:{i:02}\n{STATIC}\nask {'why ' * i}"


def clocks_last(i: int) -> str:
    return f"{STATIC}\nask {'why ' * i}\nTime: 10:00:{i:02}"


def shuffled_tools(i: int) -> str:
    tools = [f"- find_{name}(number): finds a {name} by its number" for name in ("parcel", "claim", "depot", "order")]
    shuffled = list(itertools.permutations(tools))[i % 24]
    return "\n".join(["Your tools:", *shuffled, STATIC, f"ask {'why ' * i}"])


def sorted_tools(i: int) -> str:
    head, *tools, ask = shuffled_tools(i).split("\n")
    return "\n".join([head, *sorted(tools[:4]), *tools[4:], ask])


@pytest.mark.parametrize(("now", "rewritten"), [(clocks_first, clocks_last), (shuffled_tools, sorted_tools)])
def test_the_promised_hit_rate_comes_true_when_prompts_are_rewritten(
    now: Callable[[int], str], rewritten: Callable[[int], str]
):
    def hit_rates(prompt: Callable[[int], str]) -> Report:
        tree = PrefixTree(Cutter(ByteCounter()))
        for line in range(1, 41):
            tree.add(Request(line, (Turn("prompt", prompt(line)),), None, None))
        return report(tree.tally, file="x", counted_with="bytes")

    before, after = hit_rates(now), hit_rates(rewritten)
    assert before.hit_rate_after > before.hit_rate + 0.2
    assert after.hit_rate == pytest.approx(before.hit_rate_after, abs=0.03)
    assert not after.findings


@pytest.mark.parametrize("lead", ["", "\n\n", "Text:  "])
def test_a_long_line_is_shared_up_to_where_it_differs(lead: str):
    same = " ".join(["word"] * 100)
    known = tally([f"{lead}{same} {'x' * i} and so on \nend" for i in range(1, 4)])
    assert known.hit_tokens >= 2 * 3  # three pieces of up to 128 characters
    assert not known.gains


@pytest.mark.parametrize("other", ["a  x", "a\tx", "a\u00a0x", "a x ", " a x", "\na x"])
def test_other_spaces_are_named_as_the_only_difference(other: str):
    known = tally(["a x\nb\nc", f"{other}\nb\nc"])
    assert (known.hit_tokens, sum(known.gains.values())) == (0, 3)
    assert set(known.sites) == {Site(Cause.WHITESPACE, "", "prompt")}
