"""Serves a package over HTTP: an image in, its classes or its features out.

    pip install 'torch-max-backend[serve]'
    vit export --config vit.yaml --weights vit.safetensors --output vit.max
    python -m pretrained_models.serve vit.max --port 8000
    curl --data-binary @cat.jpg http://127.0.0.1:8000/predict

Requests that arrive while a batch runs are the next batch. GET /health says whether requests are
answered, GET /metrics is for Prometheus. An answer is {"top": [{"class": 281, "probability": 0.9},
...]} where the model gives logits (B, classes), {"features": [...]}, the mean of the tokens, where
it gives tokens (B, L, D). 400: no image; 413: too large; 503: too many wait, come again.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrained_models.comparison import positive_int
from pretrained_models.errors import UsageError, run_main
from torch_max_backend import MaxBackendError, MaxCompiledModel, load
from vit.images import ImageError, image_size, read_image

try:
    import uvicorn
    from fastapi import FastAPI, HTTPException, Request, Response
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
except ImportError as error:
    raise SystemExit(f"{error}: pip install 'torch-max-backend[serve]'") from None

MAX_BYTES = 20 * 2**20
TOP = 5


class Busy(Exception):
    """As many requests wait as may."""


class Batcher:
    """Runs what waits as one batch, as often as there is something."""

    def __init__(self, model: MaxCompiledModel, capacity: int, registry: CollectorRegistry) -> None:
        self._model = model
        self._waiting: asyncio.Queue[tuple[Tensor, asyncio.Future[Tensor]]] = asyncio.Queue(
            capacity
        )
        self._sizes = Histogram(
            "batch_size", "Images per run", buckets=[1, 2, 4, 8, 16, 32], registry=registry
        )
        queue = Gauge("waiting_images", "Images that wait for the next run", registry=registry)
        queue.set_function(self._waiting.qsize)
        size = model.input_specs[0].shape[0]
        ranges = json.loads(model.get_metadata()["ranges"])
        self._largest = int(ranges[size][1] if isinstance(size, str) else size)  # type: ignore[arg-type]
        self._fixed = not isinstance(size, str)

    async def __call__(self, image: Tensor) -> Tensor:
        """The model's first output for one image.

        Raises:
            Busy: the queue is full.
        """
        answer: asyncio.Future[Tensor] = asyncio.get_running_loop().create_future()
        try:
            self._waiting.put_nowait((image, answer))
        except asyncio.QueueFull:
            raise Busy from None
        return await answer

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < self._largest and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            batch = [(image, answer) for image, answer in batch if not answer.cancelled()]
            if not batch:
                continue
            self._sizes.observe(len(batch))
            try:
                results = await asyncio.to_thread(self.outputs, [image for image, _ in batch])
            except Exception as error:
                for _, answer in batch:
                    if not answer.cancelled():
                        answer.set_exception(error)
                continue
            for (_, answer), result in zip(batch, results, strict=True):
                if not answer.cancelled():  # the client has gone
                    answer.set_result(result)

    def outputs(self, images: Sequence[Tensor]) -> list[Tensor]:
        """The model's first output for each image, in float32 on the CPU; one run."""
        spec = self._model.input_specs[0]
        x = torch.stack(list(images)).to(spec.device, spec.dtype)
        if self._fixed:  # exported for one batch size: the rest of it is zeros
            x = torch.cat([x, x.new_zeros(self._largest - len(x), *x.shape[1:])])
        outputs = self._model.run([x])
        result = next(output for output in outputs if isinstance(output, Tensor))
        return list(result[: len(images)].float().cpu())


def create_app(model: MaxCompiledModel, capacity: int = 256) -> FastAPI:
    """The application that serves a model of images.

    Raises:
        ValueError: the model does not take images of one size.
    """
    size = image_size(model.input_specs[0].shape)
    registry = CollectorRegistry()
    batcher = Batcher(model, capacity, registry)
    requests = Counter("requests", "By HTTP status", ["status"], registry=registry)
    seconds = Histogram("request_seconds", "From the request to the answer", registry=registry)
    running: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        running.append(asyncio.create_task(batcher.run()))
        yield
        running[0].cancel()

    app = FastAPI(title=model.path.name, lifespan=lifespan)

    @app.middleware("http")
    async def count(request: Request, call_next: Any) -> Response:
        start = time.perf_counter()
        response = await call_next(request)
        if request.url.path == "/predict":
            requests.labels(response.status_code).inc()
            seconds.observe(time.perf_counter() - start)
        return response

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        body = await _body(request)
        try:
            image = await asyncio.to_thread(read_image, io.BytesIO(body), size)
        except ImageError as error:
            raise HTTPException(400, f"no image that can be read: {error}") from None
        try:
            return answer_of(await batcher(image))
        except Busy:
            message = f"{capacity} images wait already"
            raise HTTPException(503, message, headers={"Retry-After": "1"}) from None

    @app.get("/health")
    async def health() -> dict[str, str]:
        if running[0].done():
            raise HTTPException(503, "the model is not running")
        return {"status": "ok", "model": model.path.name}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4")

    return app


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BYTES:
            raise HTTPException(413, f"an image may have {MAX_BYTES} bytes")
    return bytes(body)


def answer_of(output: Tensor) -> dict[str, Any]:
    """What is sent for a model's first output of one image."""
    if output.ndim > 1:
        return {"features": output.flatten(0, -2).mean(0).tolist()}
    probabilities, classes = output.softmax(0).topk(min(TOP, len(output)))
    return {
        "top": [
            {"class": i, "probability": p}
            for i, p in zip(classes.tolist(), probabilities.tolist(), strict=True)
        ]
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="serve", description="Serve a package over HTTP")
    parser.add_argument("model", type=Path, help="what vit export wrote")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--capacity", type=positive_int, default=256, help="images that may wait")
    args = parser.parse_args()
    try:
        app = create_app(load(args.model), args.capacity)
    except (MaxBackendError, ValueError) as error:
        raise UsageError(str(error)) from None
    uvicorn.run(app, host=args.host, port=args.port, log_level="warning")
    return 0


if __name__ == "__main__":
    run_main(main)
