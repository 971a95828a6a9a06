"""Collectives of torch_npu's own process group between processes, and experts spread over them."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

SECONDS = 200


@pytest.mark.parametrize(("chip", "size"), [("a3", 4), ("a3", 2), ("a5", 4)])
def test_processes(chip: str, size: int, tmp_path: Path) -> None:
    """Who fails leaves the others waiting, so they end with it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(size)}
    command = [sys.executable, str(Path(__file__).with_name("hccl_worker.py")), chip]
    logs = [tmp_path / str(rank) for rank in range(size)]
    workers = []
    for rank, log in enumerate(logs):
        with log.open("w") as stream:
            workers.append(subprocess.Popen(command, env={**words, "RANK": str(rank)}, stderr=stream))
    end = time.monotonic() + SECONDS
    while None in (codes := [worker.poll() for worker in workers]) and not any(codes) and time.monotonic() < end:
        time.sleep(0.1)
    for worker in workers:
        worker.kill()
    assert codes == [0] * size, "\n".join(log.read_text()[-1500:] for log in logs)
