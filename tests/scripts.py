"""Scripts of the repository as modules."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

TERMINATED = """
import os, signal, sys
from convatlas.cli import app
from convatlas.train.loop import optim

step, count = optim.SGD.step, 0

def stop(*arguments):
    global count
    step(*arguments)
    count += 1
    if count == 5 and os.environ.get("RANK", "0") == "0":
        # of several ranks, torchrun gets it and passes it on to all
        os.kill(os.getppid() if "RANK" in os.environ else os.getpid(), signal.SIGTERM)

optim.SGD.step = stop
sys.argv = ["convatlas", *sys.argv[1:]]
app.main()
"""
"""The command, in a process or under torchrun, that gets SIGTERM after its fifth step."""


def launch(count: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script or module with torchrun on `count` ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), "--master-addr", "127.0.0.1",
        "--master-port", str(port), *arguments,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=False)


def load_script(path: Path) -> ModuleType:
    """Import a script from its file."""
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[path.stem] = module  # its dataclasses look themselves up
    found.loader.exec_module(module)
    return module
