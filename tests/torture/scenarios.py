"""The scenarios by name, in the order in which they run."""

from tests.torture.bits import damaged_bytes
from tests.torture.images import crash_images
from tests.torture.kills import killed_engines
from tests.torture.memory import steady_memory
from tests.torture.scenario import Scenario
from tests.torture.storage import failing_storage

SCENARIOS: dict[str, Scenario] = {
    "damage": damaged_bytes,
    "crash": crash_images,
    "kill": killed_engines,
    "storage": failing_storage,
    "memory": steady_memory,
}
