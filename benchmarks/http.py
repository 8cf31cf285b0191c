"""Latency of POST /v1/estimate at a fixed rate on one worker: `python benchmarks/http.py [--rate 300] [--same]`.

Starts a server of its own on the loopback interface and talks to nothing else. Requests are sent when they are due,
whether or not earlier ones were answered, so that waiting counts. Every question is a new one, or with --same always
the same.
"""

import argparse
import asyncio
import gc
import json
import socket
import subprocess
import sys
from itertools import product
from statistics import quantiles
from time import perf_counter
from typing import Any

HOST = "127.0.0.1"
GOAL_P99_SECONDS = 0.020
START_SECONDS = 30
KINDS: list[dict[str, Any]] = [
    {"model": model, "gpu": "h100-sxm-80gb", "precision": precision, "recompute": recompute}
    for precision, recompute, model in product(
        ("bf16", "bf16-autocast"), ("none", "full"), ("llama-3.1-8b", "qwen3-8b", "mistral-7b-v0.3", "gpt2")
    )
]


def question(number: int) -> bytes:
    """A question that was not asked before, so that no remembered answer is timed."""
    return json.dumps({**KINDS[number % len(KINDS)], "micro_batch_size": number + 1}).encode()


class Client:
    """Keep-alive connections, as many as are in use at once. A full client would cost as much as the server."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, path: str, body: bytes) -> int:
        """The status of the answer, once all of it has come."""
        while self.idle and self.idle[-1][0].at_eof():
            self.idle.pop()  # the server closes connections that were idle for seconds
        if not self.idle:
            self.idle.append(await asyncio.open_connection(HOST, self.port))
        reader, writer = connection = self.idle.pop()
        writer.write(f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.split(b":")[1]))
        self.idle.append(connection)
        return int(head.split()[1])


async def latencies(port: int, rate: int, bodies: list[bytes]) -> list[float]:
    """Seconds from when each request was due to its answer."""
    client, started, measured = Client(port), perf_counter(), []

    async def ask(number: int, body: bytes) -> None:
        due = started + number / rate
        await asyncio.sleep(due - perf_counter())
        if (status := await client.post("/v1/estimate", body)) != 200:
            raise RuntimeError(f"status {status} for {body!r}")
        measured.append(perf_counter() - due)

    async with asyncio.TaskGroup() as group:
        for number, body in enumerate(bodies):
            group.create_task(ask(number, body))
    return measured


async def wait_for_server(port: int) -> None:
    async with asyncio.timeout(START_SECONDS):
        while True:
            try:
                await Client(port).post("/v1/estimate", question(0))
                return
            except ConnectionError:
                await asyncio.sleep(0.1)


async def run(port: int, options: argparse.Namespace) -> list[float]:
    await wait_for_server(port)
    numbers = range(options.rate * (options.seconds + 1))
    bodies = [question(0 if options.same else number) for number in numbers]
    gc.disable()  # of the client: its pauses would be taken for the server's
    await latencies(port, options.rate, bodies[: options.rate])
    return await latencies(port, options.rate, bodies[options.rate :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=300, help="requests per second")
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--same", action="store_true", help="ask one question again and again")
    options = parser.parse_args()
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "calc", "serve", "--host", HOST, "--port", str(port)])
    try:
        measured = asyncio.run(run(port, options))
    finally:
        server.terminate()
        server.wait()
    median, *_, slow = (1e3 * seconds for seconds in quantiles(measured, n=100)[49:])
    print(f"{len(measured)} requests at {options.rate} a second: p50 {median:.1f} ms, p99 {slow:.1f} ms")
    print(f"goal: p99 at most {GOAL_P99_SECONDS * 1e3:.0f} ms; the slowest took {max(measured) * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
