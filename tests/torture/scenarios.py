"""The scenarios by name, in the order in which they run."""

import importlib.util
from collections.abc import Iterator

from tests.torture.bits import damaged_bytes
from tests.torture.images import crash_images
from tests.torture.kills import killed_engines
from tests.torture.memory import steady_memory
from tests.torture.scenario import Row, Scenario, Setting
from tests.torture.storage import failing_storage


def killed_vllm(setting: Setting) -> Iterator[Row]:
    """kill -9 of a real vLLM"""
    if setting.short:
        yield Row("server", REAL_ENGINE, skipped="takes minutes; integration/vllm/test_server.py kills one")
    elif importlib.util.find_spec("vllm") is None:
        yield Row("server", REAL_ENGINE, skipped="vLLM is not installed")
    else:
        yield from importlib.import_module("integration.vllm.torture").killed_vllm(setting)


REAL_ENGINE = "SIGKILL of a real vLLM engine under load"

SCENARIOS: dict[str, Scenario] = {
    "damage": damaged_bytes,
    "crash": crash_images,
    "kill": killed_engines,
    "storage": failing_storage,
    "memory": steady_memory,
    "server": killed_vllm,
}
