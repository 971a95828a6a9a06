"""Collectives of torch_npu's own process group between four processes, and experts spread over them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SIZE = 4


@pytest.mark.parametrize("chip", ["a3", "a5"])
def test_four_processes(chip: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(SIZE)}
    program = str(Path(__file__).with_name("hccl_worker.py"))
    workers = [
        subprocess.Popen(
            [sys.executable, program, chip], env={**words, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True
        )
        for rank in range(SIZE)
    ]
    ends = [worker.communicate(timeout=200)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * SIZE, "\n".join(end[-1500:] for end in ends)
