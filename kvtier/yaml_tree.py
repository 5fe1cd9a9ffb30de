"""YAML text -> a tree of plain values, and the words for them in error messages. The only importer of yaml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import yaml

from kvtier.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML without what a configuration has no use for: a key twice, and merge keys (which can grow without bound)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse before PyYAML lets the last one win."""
        seen: dict[str, yaml.Mark] = {}
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(problem="merge keys (<<) are not supported", problem_mark=key.start_mark)
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="expected a name before the colon", problem_mark=key.start_mark)
            if key.value in seen:
                first = seen[key.value].line + 1
                problem = f"key `{shown(key.value)}` is there twice, first on line {first}"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen[key.value] = key.start_mark
        return super().construct_mapping(node, deep)


def tree_of(raw: bytes, origin: str) -> Mapping[str, object]:
    """The tree of a YAML document; {} for an empty one."""
    try:
        loader = _Loader(raw.decode("utf-8-sig"))
        node = loader.get_single_node()
        if node is None or _is_empty(node):
            return {}
        tree = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        problem = ": ".join(part for part in (error.context, error.problem) if part) or "not YAML"
        raise ConfigError(f"{origin}{place}: {problem}") from error
    except yaml.reader.ReaderError as error:
        line = raw.decode("utf-8-sig").count("\n", 0, error.position) + 1
        raise ConfigError(f"{origin}:{line}: a control character, which YAML does not allow") from error
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{origin}:{line}: not UTF-8 text") from error
    except RecursionError as error:
        raise ConfigError(f"{origin}: nested too deeply for a configuration") from error
    except (ValueError, ArithmeticError, LookupError, AttributeError, TypeError) as error:
        # PyYAML's constructors let these through, for example from 2020-99-99 or `!!int ""`.
        raise ConfigError(f"{origin}: a value does not fit its YAML type: {str(error)!a}") from error
    if isinstance(node, yaml.MappingNode) and isinstance(tree, dict):
        for key, value in node.value:
            if key.value == "disk" and _is_empty(value):
                tree["disk"] = {}  # every key below it commented out means the defaults; an explicit null means off
    return cast("Mapping[str, object]", tree)


def _is_empty(node: yaml.Node) -> bool:
    """Whether nothing at all is written there, which YAML reads as null."""
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null" and not node.value


def shape_of(value: object) -> str:
    """A value for an error message: bounded, printable, whatever it is."""
    if isinstance(value, Mapping):
        return "a group of keys"
    if isinstance(value, (list, tuple, set)):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "empty", True: "true", False: "false"}[value]
    if isinstance(value, int) and abs(value) >= 10**18:
        return "a huge number"
    text = ascii(value) if isinstance(value, (str, int, float)) else type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."


def shown(name: object) -> str:
    """A key for an error message: as it is when it is a word, else as a value."""
    text = name if isinstance(name, str) and name.isprintable() else shape_of(name) if name is not None else "null"
    return text if len(text) <= 200 else text[:197] + "..."
