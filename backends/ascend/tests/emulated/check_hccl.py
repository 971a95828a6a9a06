"""Collectives of torch_npu's own process group between four processes, and experts spread over them."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

SIZE, SECONDS = 4, 200


@pytest.mark.parametrize("chip", ["a3", "a5"])
def test_four_processes(chip: str, tmp_path: Path) -> None:
    """Who fails leaves the others waiting, so they end with it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(SIZE)}
    command = [sys.executable, str(Path(__file__).with_name("hccl_worker.py")), chip]
    logs = [tmp_path / str(rank) for rank in range(SIZE)]
    workers = []
    for rank, log in enumerate(logs):
        with log.open("w") as stream:
            workers.append(subprocess.Popen(command, env={**words, "RANK": str(rank)}, stderr=stream))
    end = time.monotonic() + SECONDS
    while None in (codes := [worker.poll() for worker in workers]) and not any(codes) and time.monotonic() < end:
        time.sleep(0.1)
    for worker in workers:
        worker.kill()
    assert codes == [0] * SIZE, "\n".join(log.read_text()[-1500:] for log in logs)
