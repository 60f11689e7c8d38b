"""Many clients at once against `convatlas serve`: how many requests are answered, refused, lost, and how fast.

    python benchmarks/serve_load.py MODEL IMAGES [--clients 200] [--seconds 60] [--batch 16] [--queue 1024]

Starts the command in a process of its own; each client sends one image after the other on one connection. A request
is lost if it gets neither an answer nor a refusal (503). Afterwards the server is told to stop (SIGTERM).
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from convatlas.data.readers.folder import images_in

HEAD = "POST /predict?top=1 HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n"


async def client(
    port: int, bodies: list[bytes], number: int, until: float, told: Counter[str], taken: list[float]
) -> None:  # fmt: skip
    """Send images until the time is over."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sent = number
    while time.perf_counter() < until:
        body = bodies[sent % len(bodies)]
        sent += 1
        begun = time.perf_counter()
        try:
            writer.write(HEAD.format(len(body)).encode() + body)
            await writer.drain()
            status = int((await reader.readline()).split()[1])
            length = 0
            while (line := await reader.readline()) not in (b"\r\n", b""):
                name, _, value = line.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            await reader.readexactly(length)
        except (OSError, IndexError, ValueError, asyncio.IncompleteReadError) as error:
            told[f"lost ({type(error).__name__})"] += 1
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            continue
        told[str(status)] += 1
        taken.append(time.perf_counter() - begun)
    writer.close()


async def crowd(port: int, bodies: list[bytes], clients: int, seconds: float) -> tuple[Counter[str], list[float]]:
    told: Counter[str] = Counter()
    taken: list[float] = []
    until = time.perf_counter() + seconds
    await asyncio.gather(*(client(port, bodies, number, until, told, taken) for number in range(clients)))
    return told, taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("images", type=Path)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--batch", default="16")
    parser.add_argument("--queue", default="1024")
    given = parser.parse_args()
    bodies = [path.read_bytes() for path in images_in(given.images)[:100]]
    command = [sys.executable, "-m", "convatlas", "serve", given.model, "--port", "0"]
    command += ["--batch", given.batch, "--queue", given.queue]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    line = next(line for line in server.stderr if "http://127.0.0.1:" in line)
    print(line.strip())
    port = int(line.split("127.0.0.1:")[1].split()[0])
    told, taken = asyncio.run(crowd(port, bodies, given.clients, given.seconds))
    server.terminate()
    code = server.wait(60)
    taken.sort()
    counts = ", ".join(f"{number:,} x {what}" for what, number in sorted(told.items()))
    print(f"{given.clients} clients, {given.seconds:.0f} s: {counts}")
    print(f"{len(taken) / given.seconds:,.1f} requests/s; median {1000 * statistics.median(taken):.0f} ms, "
          f"95 % within {1000 * taken[int(0.95 * len(taken))]:.0f} ms; the server ended with {code}")  # fmt: skip


if __name__ == "__main__":
    main()
