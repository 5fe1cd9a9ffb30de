"""Thousands of requests as people send them, without a defect: names, dates and ids in questions, growing chats."""

from __future__ import annotations

import json
import random
from typing import Any

from kvtier.lint.pieces import Cutter
from kvtier.lint.read import parse
from kvtier.lint.report import report
from kvtier.lint.tokens import ByteCounter
from kvtier.lint.tree import PrefixTree

SYSTEM = "\n".join(f"Rule {i}: be brief, be polite, and never promise what the data do not say." for i in range(12))
ASKED = (
    "Where is my order {id}? It should have come on {day}.",
    "Hi, I'm {name}. My parcel {id} is late, can you check?",
    "{name} ({mail}) wants the invoice of {day} again.",
    "Step {n}: {words}",
    "On {day} at {time} I got this: {words}. Why?",
    "{words}",
    "{words}? My e-mail is {mail}.",
    "Translate to French: {words}",
    'What is wrong with {{"id": "{id}", "day": "{day}", "note": "{words}"}}',
    "[1] {words}\n[2] {words2}\nWhich of the two is better, and why?",
)
ANSWERED = (
    "Sorry to hear that. Job_{id} started at {time}.",
    "It is on its way.",
    "{words}",
    "Done on {day}, see {id}.",
)
NAMES = ["Maria Keller", "Tom Ode", "Aiko Tanaka", "Priya Nair", "Wei Zhang", "Ines Lopez", "Karl Brandt", "Ana Silva"]
WORDS = [
    "parcel", "late", "blue", "vase", "broken", "label", "refund", "street", "island", "claim", "depot", "again",
    "please", "why", "never", "wrong", "box",
]  # fmt: skip


def said(rng: random.Random, templates: tuple[str, ...]) -> str:
    return rng.choice(templates).format(
        id=f"NW-{rng.randrange(10**6):06}",
        day=f"2026-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02}",
        time=f"{rng.randrange(24):02}:{rng.randrange(60):02}",
        name=rng.choice(NAMES),
        mail=f"{rng.choice(WORDS)}{rng.randrange(100)}@example.org",
        n=rng.randrange(30),
        words=" ".join(rng.choices(WORDS, k=rng.randrange(3, 25))),
        words2=" ".join(rng.choices(WORDS, k=rng.randrange(3, 25))),
    )


def conversations(n: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    records = []
    for _ in range(n):
        messages = [{"role": "system", "content": SYSTEM}]
        for _ in range(rng.randrange(1, 5)):
            messages.append({"role": "user", "content": said(rng, ASKED)})
            records.append({"messages": list(messages)})
            messages.append({"role": "assistant", "content": said(rng, ANSWERED)})
    rng.shuffle(records)
    return records


def test_nothing_is_found_in_what_people_ask():
    tree = PrefixTree(Cutter(ByteCounter()))
    for line, record in enumerate(conversations(1500, seed=3), start=1):
        tree.add(parse(json.dumps(record).encode(), line))
    found = report(tree.tally, file="x", counted_with="x")
    assert not found.findings
    assert found.hit_rate > 0.7


def test_the_same_noise_around_a_clock_does_not_hide_it():
    tree = PrefixTree(Cutter(ByteCounter()))
    for line, record in enumerate(conversations(300, seed=4), start=1):
        record["messages"][0] = {
            "role": "system",
            "content": f"Now: 2026-03-02 09:{line // 60:02}:{line % 60:02}\n{SYSTEM}",
        }
        tree.add(parse(json.dumps(record).encode(), line))
    (finding,) = report(tree.tally, file="x", counted_with="x").findings
    assert finding.site.shown == "Now: ..."
    assert finding.hit_rate_after > 0.7
