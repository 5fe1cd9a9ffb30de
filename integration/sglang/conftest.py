"""Tests with a real SGLang on a CPU; `make e2e-sglang` runs them. Without SGLang there is nothing to collect."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
CPU = HERE / "cpu"

collect_ignore_glob = [] if importlib.util.find_spec("sglang") else ["test_*.py"]

if not collect_ignore_glob:
    # In this process and in those that it starts: stand-ins for what SGLang has no CPU build of.
    sys.path.insert(0, str(CPU))
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(HERE.parents[1]), str(CPU), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # for ninja
    os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
