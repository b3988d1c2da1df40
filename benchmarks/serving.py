"""pretrained_models/serve.py under load: throughput, latency, wrong and lost answers.

    python -m benchmarks.serving vit.max [--clients 4] [--seconds 60]

Each client sends one of some images, waits for the answer, compares it with what the package itself
gives, and sends the next; every twentieth request is no image and must be refused with 400.
Exits with 1 where an answer was wrong or lost.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pretrained_models.comparison import positive_int, progress

IMAGES = 8
BAD_EVERY = 20
TOLERANCE = 1e-3
"""Of an answer: the batch that an image is in changes the order of sums."""


@dataclass
class Answers:
    """What the clients saw."""

    seconds: list[float] = field(default_factory=list)
    refused: int = 0
    faults: list[str] = field(default_factory=list)


def images() -> list[bytes]:
    """Photograph-like JPEG files: smooth random colours."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    files = []
    for _ in range(IMAGES):
        small = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        file = io.BytesIO()
        small.resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG")
        files.append(file.getvalue())
    return files


def expected_answers(path: Path, files: Sequence[bytes]) -> list[list[float]]:
    """The numbers that the package itself gives for each image."""
    from prometheus_client import CollectorRegistry

    from pretrained_models.serve import Batcher, answer_of
    from torch_max_backend import load
    from vit.images import image_size, read_image

    model = load(path)
    size = image_size(model.input_specs[0].shape)
    batcher = Batcher(model, 1, CollectorRegistry())
    pixels = [read_image(io.BytesIO(file), size) for file in files]
    return [_numbers(answer_of(batcher.outputs([image])[0])) for image in pixels]


def _numbers(answer: dict) -> list[float]:
    if "features" in answer:
        return list(answer["features"])
    return [entry["probability"] for entry in answer["top"]]


@contextmanager
def server(path: Path) -> Iterator[int]:
    """A server process; its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "pretrained_models.serve", str(path), "--port", str(port)]
    process = subprocess.Popen(command)
    try:
        _wait_until_healthy(process, port)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_until_healthy(process: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(300):
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}")
        try:
            if request(port, "GET", "/health")[0] == 200:
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError("the server does not answer")


def request(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Status and body of one request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def load_test(port: int, path: Path, clients: int, seconds: float) -> Answers:
    """What several clients see of a server in so many seconds."""
    files = images()
    expected = expected_answers(path, files)
    answers = Answers()
    end = time.perf_counter() + seconds

    def client(number: int) -> None:
        count = number * BAD_EVERY // clients  # so that a bad image comes soon
        while time.perf_counter() < end:
            count += 1
            which = count % IMAGES
            bad = count % BAD_EVERY == 0
            start = time.perf_counter()
            try:
                status, body = request(port, "POST", "/predict", b"no" if bad else files[which])
            except OSError as error:
                answers.faults.append(f"lost: {error}")
                continue
            if bad:
                answers.refused += 1
                if status != 400:
                    answers.faults.append(f"status {status} for what is no image")
                continue
            answers.seconds.append(time.perf_counter() - start)
            if status != 200:
                answers.faults.append(f"status {status}: {body[:200]!r}")
            elif not _close(_numbers(json.loads(body)), expected[which]):
                answers.faults.append(f"a wrong answer for image {which}")

    threads = [threading.Thread(target=client, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def _close(found: Sequence[float], expected: Sequence[float]) -> bool:
    scale = max(map(abs, expected))
    return len(found) == len(expected) and all(
        abs(a - b) <= TOLERANCE * scale for a, b in zip(found, expected, strict=True)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="serving", description="A server under load")
    parser.add_argument("model", type=Path)
    parser.add_argument("--clients", type=positive_int, default=4)
    parser.add_argument("--seconds", type=positive_int, default=60)
    args = parser.parse_args(arguments)
    with server(args.model) as port:
        progress(f"{args.clients} clients for {args.seconds} s")
        answers = load_test(port, args.model, args.clients, args.seconds)
    cuts = statistics.quantiles(answers.seconds, n=100)
    print(
        f"{len(answers.seconds)} answers, {len(answers.seconds) / args.seconds:.1f} a second; "
        f"median {cuts[49] * 1e3:.0f} ms, 99 % within {cuts[98] * 1e3:.0f} ms; "
        f"{answers.refused} bad images refused; {len(answers.faults)} wrong or lost"
    )
    for fault in sorted(set(answers.faults)):
        print(fault)
    return 1 if answers.faults else 0


if __name__ == "__main__":
    sys.exit(main())
