"""A process that has imported vLLM once and forks a copy of itself for every Engine: seconds saved per engine start.

vLLM's CPU platform spawns its processes, and each would import everything again (7 s of CPU each on 2 cores). Here they
are forked from the copy instead. The server tests and the demo start vLLM the way users do.
"""

import json
import multiprocessing
import os
import signal
import socket
import sys

from integration.vllm import engine_main


def main() -> None:
    """Serve forks over the socket whose descriptor is the first argument, until its other end is closed."""
    import vllm  # noqa: PLC0415 - the point of this process
    import vllm.model_executor.models.llama  # noqa: PLC0415
    import vllm.v1.engine.core  # noqa: PLC0415
    import vllm.v1.worker.cpu_worker  # noqa: PLC0415, F401

    spawn = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: spawn("fork" if method == "spawn" else method)  # type: ignore[assignment]
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    door = socket.socket(fileno=int(sys.argv[1]))
    while True:
        request, fds, _, _ = socket.recv_fds(door, 1 << 16, 3)
        if not request:
            return
        pid = os.fork()
        if pid == 0:
            _become_engine(door, json.loads(request), *fds)
        for fd in fds:
            os.close(fd)
        door.sendall(pid.to_bytes(4, "big"))


def _become_engine(door: socket.socket, env: dict[str, str], calls: int, answers: int, log: int) -> None:
    code = 1
    try:
        door.close()
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(env)
        engine_main.main(calls, answers)
        code = 0
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
