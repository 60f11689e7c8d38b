"""Load test of `convatlas serve`: requests per second, latency, memory, and how many requests are refused or lost.

    python benchmarks/serve_load.py MODEL IMAGES [--clients 200] [--slow 64] [--seconds 60] [--batch 16] [--queue 1024]

Starts the server in a process of its own. Each client has one connection and sends one image after the other. Slow
clients send large files (an image and 31 MB of padding) at an even pace, each for 20 s. A request is lost if it gets no
response at all; a refusal (503) is a response. At the end the server is stopped by SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from convatlas.data.readers.image_files import images_in

HEAD = "POST /predict?top=1 HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n"
MAX_IMAGES = 100
"""Number of different images that are sent."""

SLOW_BYTES, SLOW_S, SLOW_PARTS = 31_000_000, 20.0, 100
"""Size of a slow upload, its duration, and in how many parts it is sent."""

STOP_TIMEOUT_S = 60


@dataclass
class Outcome:
    """Number of requests by HTTP status or reason of loss, and the latency in seconds of those with a response."""

    counts: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        return ", ".join(f"{number:,} x {what}" for what, number in sorted(self.counts.items()))


async def send_images(port: int, bodies: list[bytes], first: int, deadline: float, outcome: Outcome) -> None:
    """Send images over one connection until the deadline."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    number = first
    while time.perf_counter() < deadline:
        body = bodies[number % len(bodies)]
        number += 1
        start = time.perf_counter()
        try:
            writer.write(HEAD.format(len(body)).encode() + body)
            await writer.drain()
            status = await read_response(reader)
        except (OSError, IndexError, ValueError, asyncio.IncompleteReadError) as error:
            outcome.counts[f"lost ({type(error).__name__})"] += 1
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            continue
        outcome.counts[str(status)] += 1
        outcome.latencies.append(time.perf_counter() - start)
    writer.close()


async def read_response(reader: asyncio.StreamReader) -> int:
    """Read one HTTP response; return its status."""
    status = int((await reader.readline()).split()[1])
    length = 0
    while (line := await reader.readline()) not in (b"\r\n", b""):
        name, _, value = line.partition(b":")
        length = int(value) if name.lower() == b"content-length" else length
    await reader.readexactly(length)
    return status


async def send_slowly(port: int, image: bytes, deadline: float, outcome: Outcome) -> None:
    """Send large uploads slowly, one after the other, until the deadline; a started one is finished."""
    part = bytes(SLOW_BYTES // SLOW_PARTS)
    while time.perf_counter() < deadline:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        status = asyncio.create_task(read_response(reader))
        try:
            writer.write(HEAD.format(len(image) + SLOW_PARTS * len(part)).encode() + image)
            for _ in range(SLOW_PARTS):
                if status.done():
                    break
                writer.write(part)
                await writer.drain()
                await asyncio.wait([status], timeout=SLOW_S / SLOW_PARTS)
            outcome.counts[str(await status)] += 1
        except (OSError, IndexError, ValueError, asyncio.IncompleteReadError) as error:
            outcome.counts[f"lost ({type(error).__name__})"] += 1
        writer.close()
        await asyncio.sleep(1)  # as Retry-After asks for


async def watch_memory(process: int, samples: list[int]) -> None:
    """Append the resident memory of a process in bytes, ten times a second (Linux)."""
    while True:
        samples.append(read_memory(process))
        await asyncio.sleep(0.1)


def read_memory(process: int) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 2**10 for line in lines if line.startswith("VmRSS:"))


async def run_clients(
    port: int, bodies: list[bytes], arguments: argparse.Namespace, process: int, samples: list[int]
) -> tuple[Outcome, Outcome]:
    """Run all clients; returns the outcomes of ordinary and of slow requests."""
    fast, slow = Outcome(), Outcome()
    watcher = asyncio.create_task(watch_memory(process, samples))
    deadline = time.perf_counter() + arguments.seconds
    clients = [send_images(port, bodies, number, deadline, fast) for number in range(arguments.clients)]
    clients += [send_slowly(port, bodies[0], deadline, slow) for _ in range(arguments.slow)]
    await asyncio.gather(*clients)
    watcher.cancel()
    return fast, slow


def start_server(model: str, batch: int, queue: int) -> tuple[subprocess.Popen[str], int]:
    """Start the server; return it and its port."""
    command = [sys.executable, "-m", "convatlas", "serve", model, "--port", "0"]
    command += ["--batch", str(batch), "--queue", str(queue)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    for line in server.stderr:
        print(line.strip())
        if "http://127.0.0.1:" in line:
            threading.Thread(target=server.stderr.read, daemon=True).start()  # a full pipe would stop the server
            return server, int(line.split("127.0.0.1:")[1].split()[0])
    raise SystemExit(f"the server did not start; exit code {server.wait()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("images", type=Path)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--slow", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--queue", type=int, default=1024)
    arguments = parser.parse_args()
    bodies = [path.read_bytes() for path in images_in(arguments.images)[:MAX_IMAGES]]
    server, port = start_server(arguments.model, arguments.batch, arguments.queue)
    asyncio.run(run_clients(port, bodies, argparse.Namespace(clients=4, slow=0, seconds=2), server.pid, []))
    samples: list[int] = []
    before = read_memory(server.pid)
    fast, slow = asyncio.run(run_clients(port, bodies, arguments, server.pid, samples))
    server.terminate()
    exit_code = server.wait(STOP_TIMEOUT_S)
    latencies = sorted(fast.latencies)
    print(f"{arguments.clients} clients, {arguments.seconds:.0f} s: {fast}")
    if arguments.slow:
        print(f"{arguments.slow} slow uploads of {SLOW_BYTES:,} bytes: {slow}")
    print(
        f"{len(latencies) / arguments.seconds:,.1f} requests/s; median {1000 * statistics.median(latencies):.0f} ms, "
        f"95th percentile {1000 * latencies[int(0.95 * len(latencies))]:.0f} ms; exit code of the server {exit_code}"
    )
    print(f"memory {before / 2**20:,.0f} MiB before, at most {(max(samples) - before) / 2**20:,.0f} MiB more")


if __name__ == "__main__":
    main()
