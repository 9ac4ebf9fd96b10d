"""Soaks a server: clients that send valid, damaged and abandoned requests for minutes, and what the server makes of them.

    python tools/soak_server.py --workdir=RUN --minutes=10

Starts python -m bert_jax.serve with the run and 64 clients. Each request is, at random: a valid text or list of texts; one with
damaged or random JSON; a large one; one whose client goes away before the answer, or in the middle of the body. Prints the
statuses, latencies, and the server's memory every tenth of the time; exits with 1 if a request was not answered, a status was
500 or another 5xx than 503 and 504, or the memory grew by more than a twentieth in the second half of the time.
"""

import asyncio
import collections
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

from absl import flags

from bert_jax.cli.main import run_command
from bert_jax.errors import UserError
from tools.lib.load import LOST, request, response
from tools.lib.server_process import free_port, server_process

WORDS = ("the", "old", "river", "and", "a", "quiet", "ship", "was", "on", "it", "when", "nine", "men", "came", "home")
ALLOWED = {200, 404, 408, 413, 415, 422, 429, 503, 504}
CHECKS = 10  # of the memory
GROWTH = 1.05  # of the memory in the second half; in the first one, the largest batches come for the first time
TIMEOUT = 120.0  # seconds without an answer


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Run folder of a model for single texts.")
    flags.DEFINE_float("minutes", 10.0, "How long.", lower_bound=0.0)
    flags.DEFINE_integer("clients", 64, "Number of clients.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed of the requests.")


def text(rng: random.Random, longest: int = 60) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, longest)))


def random_json(rng: random.Random, depth: int = 3) -> Any:
    """Returns a JSON value that is hardly ever a valid body, though it may have the names of one."""
    leaves: list[Any] = [None, True, -1, 1e300, "", "\u0000", text(rng, 3), [], {}]
    if depth == 0 or rng.random() < 0.4:
        return rng.choice(leaves)
    if rng.random() < 0.5:
        return [random_json(rng, depth - 1) for _ in range(rng.randint(0, 4))]
    names = rng.sample(["inputs", "parameters", "top_k", "targets", "text", "label", "x"], rng.randint(0, 4))
    return {name: random_json(rng, depth - 1) for name in names}


def damaged(rng: random.Random, content: bytes) -> bytes:
    """Returns a body with a byte changed, removed or repeated somewhere, or cut off."""
    place = rng.randrange(len(content))
    changed = rng.choice([bytes([rng.randrange(256)]), b"", content[place : place + 9] * 2])
    return content[:place] if rng.random() < 0.3 else content[:place] + changed + content[place + 1 :]


def any_request(rng: random.Random, name: str) -> bytes:
    operation = rng.choice(["predict", "predict", "predict", "embed", "similarity", "explain", "tokens", "nothing"])
    path = f"/v1/{name if rng.random() < 0.98 else 'other'}/{operation}"
    many = [text(rng) for _ in range(rng.choice([1, 2, 5, 40]))]
    body: Any = {"inputs": many if operation in ("predict", "embed", "similarity") and rng.random() < 0.5 else many[0]}
    kind = rng.random()
    if kind < 0.1:
        body = random_json(rng)
    if 0.1 < kind < 0.12:
        body = {"inputs": "long " * 300_000}
    content = json.dumps(body).encode()
    return request(path, damaged(rng, content) if 0.12 < kind < 0.2 else content)


async def client(port: int, name: str, rng: random.Random, end: float, counts: collections.Counter[int]) -> None:
    """Asks until the end; counts statuses, and LOST for what was not answered. Abandoned requests are not counted."""
    while time.monotonic() < end:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(rng.randint(1, 20)):
            sent, goes = any_request(rng, name), rng.random()
            try:
                async with asyncio.timeout(TIMEOUT):
                    writer.write(sent if goes > 0.05 else sent[: rng.randrange(1, len(sent))])
                    if goes < 0.15:  # goes away, maybe in the middle of the body
                        await asyncio.sleep(rng.random() * 0.05)
                        break
                    status, _ = await response(reader)
                    counts[status] += 1
            except (OSError, asyncio.IncompleteReadError):
                counts[LOST] += len(sent) < 1 << 20  # a large body may be refused before it is read
                break
            except TimeoutError:
                counts[LOST] += 1
                break
        writer.close()


def memory(pid: int) -> int:
    """Returns the resident memory of a process in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return 1024 * int(line.split()[1])
    return 0


async def soak(
    port: int, pid: int, name: str, seconds: float, clients: int, seed: int, quiet: bool = False
) -> tuple[collections.Counter[int], list[int]]:
    """Returns the numbers of answers by status, and the server's memory after each tenth of the time."""
    counts, sizes = collections.Counter[int](), list[int]()
    end = time.monotonic() + seconds
    asking = [
        asyncio.create_task(client(port, name, random.Random(f"{seed} {number}"), end, counts))
        for number in range(clients)
    ]
    for number in range(1, CHECKS + 1):
        await asyncio.sleep(seconds / CHECKS)
        sizes.append(memory(pid))
        if not quiet:
            print(
                f"{number * seconds / CHECKS:6.0f} s: {sum(counts.values()):,} answers, {sizes[-1] / 1e6:,.0f} MB",
                flush=True,
            )
    await asyncio.gather(*asking)
    return counts, sizes


def main() -> None:
    values = flags.FLAGS
    if not values.workdir:
        raise UserError("--workdir is missing; set it to the folder of a run on single texts")
    folder, port = Path(values.workdir), free_port()
    command = [sys.executable, "-m", "bert_jax.serve", f"--workdir={folder.absolute()}", f"--port={port}"]
    with server_process(command, port, {}) as process:
        name = folder.resolve().name
        counts, sizes = asyncio.run(soak(port, process.pid, name, 60 * values.minutes, values.clients, values.seed))
    print("answers by status:", ", ".join(f"{status}: {count:,}" for status, count in sorted(counts.items())))
    growth = max(sizes[CHECKS // 2 :]) / max(sizes[: CHECKS // 2])
    print(f"memory in the second half: at most {growth:.2f} times what it was in the first")
    if wrong := counts.keys() - ALLOWED:
        print(f"failed: {', '.join('no answer' if status == LOST else str(status) for status in sorted(wrong))}")
    if wrong or growth > GROWTH:
        sys.exit(1)


if __name__ == "__main__":
    define_flags()
    run_command(main)
