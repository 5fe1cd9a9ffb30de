"""Coverage-guided fuzzing of everything that reads bytes from outside: `make fuzz ARGS="frame 600"`.

Target and seconds; without them each target for a minute. Atheris instruments the package and libFuzzer does the rest:
a finding is printed with its traceback and left as a file crash-*, in the folder that this prints.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.targets import TARGETS


def main() -> int:
    args = sys.argv[1:]
    names = args[:1] if args[:1] and args[0] in TARGETS else list(TARGETS)
    seconds = int(args[-1]) if args and args[-1].isdecimal() else 60
    if args and args[0] not in TARGETS and not args[0].isdecimal():
        print(f"no target {args[0]}; there are {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="kvtier-fuzz-"))
    print(f"corpus and findings: {folder}")
    failed = []
    for name in names:
        (folder / name).mkdir()
        for number, seed in enumerate(TARGETS[name].seeds()):
            (folder / name / f"seed-{number}").write_bytes(seed)
        limits = [
            f"-max_total_time={seconds}",
            "-rss_limit_mb=2048",
            "-timeout=20",
            "-max_len=8192",
            "-print_final_stats=1",
        ]
        command = [sys.executable, "-m", "tests.fuzz.targets", name, *limits]
        prefix = f"-artifact_prefix={folder}/{name}-"
        print(f"== {name}, {seconds} s", flush=True)
        if subprocess.run([*command, prefix, str(folder / name)], check=False).returncode:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else f"nothing found in {', '.join(names)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
