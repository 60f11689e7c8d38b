"""Load test of `convatlas serve`: requests per second, latency, and how many requests are refused or lost.

    python benchmarks/serve_load.py MODEL IMAGES [--clients 200] [--seconds 60] [--batch 16] [--queue 1024]

Starts the server in a process of its own. Each client has one connection and sends one image after the other. A request
is lost if it gets no response at all; a refusal (503) is a response. At the end the server is stopped by SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from convatlas.data.readers.folder import images_in

HEAD = "POST /predict?top=1 HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n"
MAX_IMAGES = 100
"""Number of different images that are sent."""

STOP_TIMEOUT_S = 60


@dataclass
class Outcome:
    """Number of requests by HTTP status or reason of loss, and the latency in seconds of those with a response."""

    counts: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)


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


async def run_clients(port: int, bodies: list[bytes], clients: int, seconds: float) -> Outcome:
    outcome = Outcome()
    deadline = time.perf_counter() + seconds
    await asyncio.gather(*(send_images(port, bodies, number, deadline, outcome) for number in range(clients)))
    return outcome


def start_server(model: str, batch: int, queue: int) -> tuple[subprocess.Popen[str], int]:
    """Start the server; return it and its port."""
    command = [sys.executable, "-m", "convatlas", "serve", model, "--port", "0"]
    command += ["--batch", str(batch), "--queue", str(queue)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    for line in server.stderr:
        if "http://127.0.0.1:" in line:
            print(line.strip())
            return server, int(line.split("127.0.0.1:")[1].split()[0])
    raise SystemExit(f"the server did not start; exit code {server.wait()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("images", type=Path)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--queue", type=int, default=1024)
    arguments = parser.parse_args()
    bodies = [path.read_bytes() for path in images_in(arguments.images)[:MAX_IMAGES]]
    server, port = start_server(arguments.model, arguments.batch, arguments.queue)
    outcome = asyncio.run(run_clients(port, bodies, arguments.clients, arguments.seconds))
    server.terminate()
    exit_code = server.wait(STOP_TIMEOUT_S)
    latencies = sorted(outcome.latencies)
    counts = ", ".join(f"{number:,} x {what}" for what, number in sorted(outcome.counts.items()))
    print(f"{arguments.clients} clients, {arguments.seconds:.0f} s: {counts}")
    print(
        f"{len(latencies) / arguments.seconds:,.1f} requests/s; median {1000 * statistics.median(latencies):.0f} ms, "
        f"95th percentile {1000 * latencies[int(0.95 * len(latencies))]:.0f} ms; exit code of the server {exit_code}"
    )


if __name__ == "__main__":
    main()
