"""The other side of `avse bench serve`, in a process of its own: clients that ask again once answered.

Standard library alone; told what to do on standard input, and telling the milliseconds of every answer on its output.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

_HEAD = "POST /api/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


async def _client(port: int, sentences: list[str], k: int, times: list[float]) -> None:
    """Ask until the list, shared with the other clients, is empty."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while sentences:
        body = json.dumps({"query": sentences.pop(), "k": k}).encode()
        head = f"{_HEAD}Content-Length: {len(body)}\r\n\r\n"
        began = time.perf_counter()
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.split(b":")[1]))
        times.append(1e3 * (time.perf_counter() - began))
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"the server answered {answer[:200]!r}")
    writer.close()


async def _load(port: int, clients: int, sentences: list[str], k: int) -> dict[str, object]:
    times: list[float] = []
    began = time.perf_counter()
    await asyncio.gather(*(_client(port, sentences, k, times) for _ in range(clients)))
    return {"seconds": time.perf_counter() - began, "times": times}


def main() -> None:
    """Do what standard input says."""
    told = json.load(sys.stdin)
    json.dump(asyncio.run(_load(**told)), sys.stdout)


if __name__ == "__main__":
    main()
