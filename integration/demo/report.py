"""What the acts showed: counts of each act in; verdicts, a table and one sentence out. No I/O."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from integration.vllm.client import Reply

DEVICE, HOST, DISK = "device", "host", "disk"
SOURCES = (DEVICE, HOST, DISK)
LEAST_SHARE = 0.5
"""What a tier has to serve of the prompt tokens in the act that is about it."""


@dataclass(frozen=True, slots=True)
class Act:
    """Replies of one act in order, and the prompt tokens that each cache served during it."""

    name: str
    replies: tuple[Reply, ...]
    cached: Mapping[str, int]

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens asked in this act."""
        return sum(reply.prompt_tokens for reply in self.replies)

    @property
    def ttft_s(self) -> float:
        """Median time to first token."""
        return statistics.median(reply.ttft_s for reply in self.replies)

    def share(self, source: str) -> float:
        """Prompt tokens that `source` served, 0 to 1."""
        return self.cached.get(source, 0) / self.prompt_tokens


@dataclass(frozen=True, slots=True)
class Disk:
    """The disk tier at the end: KV bytes before and after compression, and what the files take."""

    raw_bytes: int
    stored_bytes: int
    file_bytes: int

    @property
    def ratio(self) -> float:
        """How many times smaller the frames are than the KV in them; 0 when there is none."""
        return self.raw_bytes / self.stored_bytes if self.stored_bytes else 0.0


@dataclass(slots=True)
class Answers:
    """Compares greedy answers to the same prompt: `expect` notes what the device cache gave, `check` what came later.

    Only answers that had as many tokens from a cache are compared: another split between loaded and computed tokens is
    another order of roundings, with kvtier and without.
    """

    compared: int = 0
    skipped: int = 0
    different: list[str] = field(default_factory=list)
    _known: dict[int, Reply] = field(default_factory=dict)

    def expect(self, document: int, reply: Reply) -> None:
        """The answer that later ones for `document` must equal."""
        self._known[document] = reply

    def check(self, where: str, document: int, reply: Reply) -> None:
        """Compare `reply` token for token."""
        known = self._known[document]
        if reply.cached_tokens != known.cached_tokens:
            self.skipped += 1
            return
        self.compared += 1
        if reply.token_ids != known.token_ids:
            self.different.append(f"{where}, document {document + 1}: {reply.text!r} instead of {known.text!r}")


@dataclass(frozen=True, slots=True)
class Run:
    """What the report is computed from. `restart_first_disk_tokens`: the disk's part of the first request after it."""

    cold: Act
    warm: Act
    host: Act
    disk: Act
    restart: Act
    restart_first_disk_tokens: int
    answers: Answers
    tier: Disk

    @property
    def acts(self) -> tuple[Act, ...]:
        """In the order they were played."""
        return (self.cold, self.warm, self.host, self.disk, self.restart)


def failures(run: Run) -> list[str]:
    """What the acts were to show and did not, one line each; empty when the demo succeeded."""
    found = []
    if run.cold.cached.get(HOST, 0) + run.cold.cached.get(DISK, 0):
        found.append("act 1 was to be cold, but tokens came from host or disk")
    for act, source, least in ((run.host, HOST, 0.5), (run.disk, DISK, 0.5), (run.restart, DISK, 0.5)):
        if act.share(source) < least:
            found.append(
                f"{act.name}: {source} served {act.share(source):.0%} of the prompt tokens, not {least:.0%} or more"
            )
        if act.ttft_s >= run.cold.ttft_s:
            found.append(f"{act.name}: {act.ttft_s:.2f} s to the first token is no faster than cold")
    if not run.restart_first_disk_tokens:
        found.append("after the restart the first request found nothing on disk")
    if not run.answers.compared:
        found.append("no answer could be compared: no repeat had as many cached tokens as in act 1")
    found += [f"another answer than from the device cache: {line}" for line in run.answers.different]
    if run.tier.ratio <= 1:
        found.append(
            f"the disk tier holds {run.tier.stored_bytes} bytes for {run.tier.raw_bytes} bytes of KV: no compression"
        )
    return found


def table(acts: Sequence[Act]) -> str:
    """One row for each act: requests, median TTFT, prompt tokens, cached tokens and hit rate by source."""
    head = ("act", "requests", "TTFT", "prompt tok", "device", "host", "disk", "device", "host", "disk", "all")
    rows = []
    for act in acts:
        cached = [act.cached.get(source, 0) for source in SOURCES]
        rates = [*(act.share(source) for source in SOURCES), sum(cached) / act.prompt_tokens]
        rows.append(
            (
                act.name,
                str(len(act.replies)),
                f"{act.ttft_s:.2f} s",
                f"{act.prompt_tokens:,}",
                *(f"{count:,}" for count in cached),
                *(f"{rate:.1%}" for rate in rates),
            )
        )
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [_group_line(widths), _row(head, widths), "  ".join("-" * width for width in widths)]
    return "\n".join(line.rstrip() for line in [*lines, *(_row(row, widths) for row in rows)])


def disk_line(disk: Disk) -> str:
    """Compression and size of the disk tier."""
    return (
        f"disk tier: {disk.raw_bytes / 2**20:.0f} MiB of KV in {disk.stored_bytes / 2**20:.0f} MiB of frames"
        f" (x{disk.ratio:.2f}), files {disk.file_bytes / 2**20:.0f} MiB"
    )


def sentence(run: Run) -> str:
    """What the run showed, in one plain sentence."""
    tokens = 100 * round(run.cold.prompt_tokens / len(run.cold.replies) / 100)
    return (
        f"About {tokens:,} prompt tokens waited {run.cold.ttft_s:.2f} s for the first token when a document was new,"
        f" {run.host.ttft_s:.2f} s when host RAM still had it and {run.disk.ttft_s:.2f} s from disk;"
        f" after a SIGKILL and a restart the first request found {run.restart_first_disk_tokens:,} tokens on disk and"
        f" {run.restart.share(DISK):.0%} of all prompt tokens came from there ({run.restart.ttft_s:.2f} s),"
        f" and all {run.answers.compared} repeated answers were the same, token for token."
    )


def _group_line(widths: Sequence[int]) -> str:
    gap = 2
    before = sum(widths[:4]) + 4 * gap
    tokens = sum(widths[4:7]) + 2 * gap
    rates = sum(widths[7:]) + 3 * gap
    return " " * before + f" {'cached tokens':-^{tokens - 2}} " + " " * gap + f" {'hit rate':-^{rates - 2}} "


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = (
        cell.ljust(width) if index == 0 else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join((first, *rest))
