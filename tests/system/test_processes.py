"""Processes that a process starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

WORKER = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from convatlas.system.processes import exit_with_parent
if __name__ == "__main__":
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), exit_with_parent) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600).result()
"""


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    with subprocess.Popen([sys.executable, tmp_path / "worker.py"], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline()
        parent.kill()
        parent.communicate(timeout=60)  # the pipe ends when the worker, too, has ended
