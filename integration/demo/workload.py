"""What the demo asks: a shared system prompt, long documents, questions about each; a seed goes in, text comes out.

The same seed gives the same text on every machine, so nothing is downloaded and two runs can be compared.
"""

import random
from dataclasses import dataclass

from integration.vllm.client import Message

SYSTEM_WORDS = 1650
"""About 2,000 tokens of SmolLM2's tokenizer with the words below; a document of DOCUMENT_WORDS about 3,000."""
DOCUMENT_WORDS = 2430
QUESTIONS = (
    "Summarize the report above in one sentence.",
    "Which part should the crew look at first?",
)

_PLACES = (
    "the north quay",
    "berth four",
    "the grain terminal",
    "dry dock two",
    "the pilot station",
    "the coal pier",
    "the container yard",
    "the ferry landing",
    "the fuel jetty",
    "the old warehouse",
)
_PARTS = (
    "mooring winch",
    "gantry crane",
    "fire pump",
    "ballast valve",
    "tide gauge",
    "conveyor belt",
    "shore generator",
    "fender",
    "hydraulic ram",
    "navigation light",
    "hatch cover",
    "cooling line",
    "slewing gear",
    "radio mast",
)
_FINDINGS = (
    "showed light corrosion along the lower edge",
    "ran warmer than the manual allows",
    "was found in good order",
    "leaked a little oil at the seal",
    "made an uneven noise under load",
    "had been painted over without a record",
    "lost pressure within an hour",
    "answered the remote control with a delay",
    "carried a worn bearing",
    "had a loose cable behind the cover",
)
_ACTIONS = (
    "replaced it before the evening tide",
    "tightened the bolts and measured again",
    "ordered a spare from the depot",
    "asked the maker for advice",
    "took it out of service until Monday",
    "cleaned it and noted the reading",
    "left it running under observation",
    "logged the fault and informed the harbor office",
    "fitted a new gasket from stock",
    "agreed to inspect it again next month",
)
_PEOPLE = (
    "Inspector Alder",
    "the duty engineer",
    "Mrs. Whitlock",
    "the night crew",
    "Captain Rowe",
    "the electrician",
    "Mr. Okafor",
    "the harbor master",
    "the apprentice",
    "Dr. Lindqvist",
)
_TIMES = (
    "Early in the morning",
    "Shortly before noon",
    "After the rain had stopped",
    "During the second shift",
    "On the way back",
    "While the ferry was loading",
    "At low water",
    "Towards the evening",
)
_DUTIES = (
    "answer in plain words",
    "name the part and the place",
    "quote a reading only if the report gives it",
    "say so when the report is silent",
    "keep the order of events",
    "leave out opinions about people",
    "treat a missing date as unknown",
    "prefer the later of two entries",
    "mention open repairs first",
    "give distances in meters",
    "spell the names as the report does",
    "never guess a cause",
)
_REASONS = (
    "because crews read the answer on a small screen",
    "because insurers compare it with the log",
    "so that the next shift can act on it",
    "since an error here has delayed ships before",
    "because the archive keeps it for ten years",
    "so that two readers reach the same conclusion",
)


@dataclass(frozen=True, slots=True)
class Workload:
    """A system prompt that every conversation shares and one document for each conversation."""

    system: str
    documents: tuple[str, ...]

    def opening(self, document: int) -> list[Message]:
        """Messages of a conversation's first turn."""
        return [
            {"role": "system", "content": self.system},
            {"role": "user", "content": f"{self.documents[document]}\n\n{QUESTIONS[0]}"},
        ]

    def follow_up(self, document: int, first_answer: str) -> list[Message]:
        """Messages of the second turn: the first one, its answer and another question."""
        return [
            *self.opening(document),
            {"role": "assistant", "content": first_answer},
            {"role": "user", "content": QUESTIONS[1]},
        ]


def make_workload(n_documents: int, seed: int = 20) -> Workload:
    """The workload of `seed`: the first documents are the same whatever `n_documents` is."""
    return Workload(
        _handbook(random.Random(f"{seed}/system")),
        tuple(_report(number, random.Random(f"{seed}/{number}")) for number in range(n_documents)),
    )


def _handbook(rng: random.Random) -> str:
    lines = ["You are the records assistant of a harbor. You answer questions about inspection reports. Your rules:"]
    n_words, number = len(lines[0].split()), 0
    while n_words < SYSTEM_WORDS:
        number += 1
        first, second = rng.sample(_DUTIES, 2)
        subject = f"{rng.choice(_PLACES)} or a {rng.choice(_PARTS)}"
        rule = f"{number}. When a question is about {subject}, {first} and {second}, {rng.choice(_REASONS)}."
        lines.append(rule)
        n_words += len(rule.split())
    return "\n".join(lines)


def _report(number: int, rng: random.Random) -> str:
    paragraphs = [f"Inspection report {number + 1}, {rng.choice(_PLACES)}, written by {rng.choice(_PEOPLE)}."]
    n_words = len(paragraphs[0].split())
    while n_words < DOCUMENT_WORDS:
        paragraph = " ".join(_sentence(rng) for _ in range(rng.randint(4, 7)))
        paragraphs.append(paragraph)
        n_words += len(paragraph.split())
    return "\n\n".join(paragraphs)


def _sentence(rng: random.Random) -> str:
    part, place, person = rng.choice(_PARTS), rng.choice(_PLACES), rng.choice(_PEOPLE)
    finding, action = rng.choice(_FINDINGS), rng.choice(_ACTIONS)
    form = rng.randrange(4)
    if form == 0:
        return f"{rng.choice(_TIMES)} the {part} at {place} {finding}, and {person} {action}."
    if form == 1:
        return f"The {part} at {place} {finding}; {person} {action}."
    if form == 2:
        return f"According to {person}, the {part} {finding} for {rng.randint(2, 40)} minutes."
    return f"{rng.choice(_TIMES)} we went on to {place}, where {person} said that the {part} {finding}."
