"""The demo's verdict: it fails when a tier did not do its part, and says what is true when it did."""

from dataclasses import replace
from typing import Any

import pytest

from integration.demo.report import Act, Answers, Disk, Run, failures, sentence, table
from integration.demo.workload import make_workload
from integration.vllm.client import Reply, parse_metrics


def reply(ttft_s: float = 0.2, cached: int = 4992, tokens: tuple[int, ...] = (7, 8)) -> Reply:
    return Reply("text", tokens, prompt_tokens=5000, cached_tokens=cached, ttft_s=ttft_s, total_s=1.0)


def good_run() -> Run:
    answers = Answers()
    answers.expect(0, reply())
    answers.check("act 2", 0, reply())
    return Run(
        cold=Act("1 cold", (reply(3.0, 0), reply(2.0, 1920)), {"device": 1920}),
        warm=Act("1 device cache", (reply(0.1),), {"device": 4992}),
        host=Act("2 host RAM", (reply(0.2),), {"host": 4992}),
        disk=Act("3 disk", (reply(0.5),), {"disk": 4992}),
        restart=Act("4 after restart", (reply(0.6),), {"disk": 4992}),
        restart_first_disk_tokens=4992,
        answers=answers,
        tier=Disk(raw_bytes=1450, stored_bytes=1000, file_bytes=2000),
    )


def test_a_run_in_which_every_tier_served_has_no_failures() -> None:
    assert failures(good_run()) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"cold": Act("1 cold", (reply(3.0, 1920),), {"disk": 1920})}, "act 1 was to be cold"),
        ({"host": Act("2 host RAM", (reply(0.2, 0),), {"host": 0})}, "2 host RAM: host served 0%"),
        ({"disk": Act("3 disk", (reply(0.2),), {"host": 4992})}, "3 disk: disk served 0%"),
        ({"restart": Act("4 after restart", (reply(4.0),), {"disk": 4992})}, "no faster than cold"),
        ({"restart_first_disk_tokens": 0}, "the first request found nothing on disk"),
        ({"answers": Answers()}, "no answer could be compared"),
        ({"tier": Disk(1000, 1000, 2000)}, "no compression"),
    ],
)
def test_an_act_that_did_not_show_its_claim_is_named(change: dict[str, Any], complaint: str) -> None:
    found = failures(replace(good_run(), **change))
    assert len(found) == 1
    assert complaint in found[0]


def test_another_answer_to_a_full_repeat_is_a_failure() -> None:
    run = good_run()
    run.answers.check("act 3", 0, reply(tokens=(7, 9)))
    assert [line for line in failures(run) if "act 3, document 1" in line]


def test_an_answer_over_another_number_of_cached_tokens_is_not_compared() -> None:
    answers = Answers()
    answers.expect(0, reply(cached=4992))
    answers.check("act 2", 0, reply(cached=1920, tokens=(1, 2)))
    assert (answers.compared, answers.skipped, answers.different) == (0, 1, [])


def test_the_table_gives_counts_and_rates_of_each_source() -> None:
    row = " ".join(table(good_run().acts).splitlines()[-1].split())
    assert row == "4 after restart 1 0.60 s 5,000 0 0 4,992 0.0% 0.0% 99.8% 99.8%"


def test_the_sentence_carries_the_measured_times() -> None:
    text = sentence(good_run())
    for figure in ("5,000 prompt tokens", "2.50 s", "0.20 s", "0.50 s", "0.60 s", "4,992 tokens", "100%", "1 repeated"):
        assert figure in text


def test_the_workload_is_the_same_every_time_and_its_documents_differ() -> None:
    workload = make_workload(3)
    assert workload == make_workload(3)
    assert len(set(workload.documents)) == 3
    assert make_workload(2).documents == workload.documents[:2]


def test_metrics_are_read_with_their_labels() -> None:
    scrape = parse_metrics(
        "# TYPE vllm:prompt_tokens_cached_by_source_total counter\n"
        'vllm:prompt_tokens_cached_by_source_total{engine="0",source="disk"} 128.0\n'
        'vllm:prompt_tokens_cached_by_source_total{engine="1",source="disk"} 2.5e2\n'
        "process_open_fds 12\n"
    )
    assert scrape.cached_by_source() == {"disk": 378}
    assert scrape.total("vllm:prompt_tokens_cached_by_source_total", engine="0") == 128
    assert scrape.total("process_open_fds") == 12
