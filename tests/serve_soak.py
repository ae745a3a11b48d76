"""Many clients at once for a while: `python -m tests.serve_soak [--clients 100] [--seconds 60]`.

Every request must be answered 200 or 429, and the server's memory must not grow. Some clients leave before the answer.
"""

import argparse
import asyncio
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx

from benchmarks import AR

ROOT = Path(__file__).resolve().parents[1]
START = 120  # seconds until the server must answer
IMPATIENT = 10  # every tenth client leaves early


def resident_mb(pid: int) -> float:
    """Memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


async def client(number: int, address: str, until: float, counts: Counter):
    """Asks for images and answers in turn until the time is up."""
    timeout = 0.3 if number % IMPATIENT == 0 else 300
    async with httpx.AsyncClient(base_url=address, timeout=timeout) as http:
        k = 0
        while time.monotonic() < until:
            k += 1
            if k % 4 == 0:
                body = {"messages": [{"role": "user", "content": f"Hello {k % 3}"}], "max_tokens": 8}
                path = "/v1/chat/completions"
            else:
                body = {"prompt": "a red circle", "seed": k, "guidance_scale": 2 + number % 2}
                path = "/v1/images/generations"
            try:
                answer = await http.post(path, json=body)
                counts[answer.status_code] += 1
                await asyncio.sleep(0.2 if answer.status_code == 429 else 0)
            except httpx.TimeoutException:
                counts["left"] += 1


async def soak(address: str, pid: int, clients: int, seconds: float) -> tuple[Counter, list[float]]:
    """(answers by status, the server's memory in MB over time)."""
    counts, memory, until = Counter(), [], time.monotonic() + seconds
    tasks = [asyncio.create_task(client(k, address, until, counts)) for k in range(clients)]
    while time.monotonic() < until:
        await asyncio.sleep(seconds / 12)
        memory.append(round(resident_mb(pid)))
    await asyncio.gather(*tasks)
    return counts, memory


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.serve_soak", description=__doc__)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "janus_core", "serve", "--model", str(AR), "--device", "cpu", "--port", str(port)]
    server = subprocess.Popen(
        [*command, "--batch-size", "8", "--queue-size", "32"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + START
    try:
        while True:
            try:
                httpx.get(f"{address}/health").raise_for_status()
                break
            except httpx.TransportError:
                assert server.poll() is None and time.monotonic() < deadline, "the server does not answer"
                time.sleep(0.2)
        asyncio.run(soak(address, server.pid, 8, 5))
        counts, memory = asyncio.run(soak(address, server.pid, args.clients, args.seconds))
        print(f"{args.clients} clients for {args.seconds:g} s: {dict(counts)}; memory in MB: {memory}")
        assert set(counts) <= {200, 429, "left"} and counts[200], counts
        half = len(memory) // 2
        assert max(memory[half:]) <= 1.1 * max(memory[:half]), "the memory grows"
    finally:
        server.terminate()
        print(f"the server ended with {server.wait(30)}")


if __name__ == "__main__":
    main()
