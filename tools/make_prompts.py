"""Write a file of synthetic prompts for `kvtier lint`: five applications, four of which break their own prefix.

Everything follows from the seed: the same arguments give the same bytes. The applications are a help desk with a clock
at the head of its system prompt, an agent whose tools come in changing order, a search service whose documents do, a
batch job with a request id, and a clean chat whose questions differ and nothing else.
"""

import argparse
import json
import random
import re
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

_WORDS = re.findall(
    r"\w+",
    "parcel claim label courier depot window refund voucher address sender receiver scan weight volume customs invoice "
    "delivery return damage delay route driver locker branch counter pickup notice receipt carton pallet seal tariff",
)
_VERBS = re.findall(
    r"\w+", "check confirm record compare explain repeat forward reject approve measure collect announce"
)
_START_S = 1_772_442_000


def main() -> int:
    """Write the file."""
    parser = argparse.ArgumentParser(description="Write synthetic prompts for kvtier lint.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--rules", type=int, default=40, help="sentences of each system prompt (40: about 500 tokens)")
    args = parser.parse_args()
    with args.file.open("w", encoding="utf-8") as out:
        for record in records(args.requests, seed=args.seed, n_rules=args.rules):
            out.write(json.dumps(record) + "\n")
    return 0


def records(n_requests: int, *, seed: int, n_rules: int) -> Iterator[dict[str, object]]:
    """The requests in order of time; the application of each is drawn."""
    rng = random.Random(seed)  # noqa: S311 - text, not secrets
    rules = {app.__name__: _rules(rng, n_rules) for app in _APPS}
    at = float(_START_S)
    for _ in range(n_requests):
        at += rng.expovariate(0.5)
        app = rng.choice(_APPS)
        yield {"timestamp": round(at, 3), "tenant": app.__name__, **app(rng, rules[app.__name__], at)}


def _desk(rng: random.Random, rules: str, at: float) -> dict[str, object]:
    seconds = int(at) % 86_400
    clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return _chat(f"Current time: 2026-03-02 {clock}\n{rules}", _question(rng))


def _agent(rng: random.Random, rules: str, at: float) -> dict[str, object]:
    del at
    return {"tools": rng.sample(_TOOLS, len(_TOOLS)), **_chat(rules, _question(rng))}


def _search(rng: random.Random, rules: str, at: float) -> dict[str, object]:
    del at
    first = rng.randrange(0, len(_DOCUMENTS), 4)
    found = rng.sample(_DOCUMENTS[first : first + 4], 4)
    text = "\n".join(f"<document>{document}</document>" for document in found)
    return _chat(rules, f"{text}\nQuestion: {_question(rng)}")


def _batch(rng: random.Random, rules: str, at: float) -> dict[str, object]:
    del at
    return {
        "prompt": f"Request ID: {uuid.UUID(int=rng.getrandbits(128), version=4)}\n{rules}\n\nText: {_question(rng)}"
    }


def _clean(rng: random.Random, rules: str, at: float) -> dict[str, object]:
    del at
    return _chat(rules, _question(rng))


def _chat(system: str, user: str) -> dict[str, object]:
    return {"messages": [{"role": "system", "content": system}, {"role": "user", "content": user}]}


def _sentence(rng: random.Random) -> str:
    words = rng.sample(_WORDS, 6)
    rest = " ".join(words[3:])
    return f"Always {rng.choice(_VERBS)} the {words[0]} and the {words[1]} before the {words[2]} of a {rest}."


def _rules(rng: random.Random, n_rules: int) -> str:
    return "\n".join(_sentence(rng) for _ in range(n_rules))


def _question(rng: random.Random) -> str:
    return f"Why does the {' '.join(rng.choices(_WORDS, k=30))}, and can you {rng.choice(_VERBS)} it?"


def _tool(name: str) -> dict[str, object]:
    value = {"type": "string", "description": f"number of the {name} as printed on the label"}
    schema = {"type": "object", "properties": {name: value}, "required": [name]}
    function = {"name": f"find_{name}", "description": f"Find a {name} and its history", "parameters": schema}
    return {"type": "function", "function": function}


_TOOLS = [_tool(name) for name in _WORDS[:5]]
_DOCUMENTS = [_rules(random.Random(i), 4) for i in range(48)]  # noqa: S311 - text, not secrets
_APPS: tuple[Callable[[random.Random, str, float], dict[str, object]], ...] = (_desk, _agent, _search, _batch, _clean)


if __name__ == "__main__":
    sys.exit(main())
