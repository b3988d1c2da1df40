"""A package behind HTTP and in Ray Data: right answers, bad images, full queues. One compile."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from prometheus_client import CollectorRegistry
from torch import nn
from torch.export import Dim

from benchmarks import serving
from pretrained_models import serve
from torch_max_backend import MaxCompiledModel, export, load
from torch_max_backend.aot.metadata import TensorSpec
from vit.images import ImageError, image_size, read_image

SIZE = (24, 32)


class Classifier(nn.Module):
    """(B, 3, 24, 32) -> logits (B, 7)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 24 * 32, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.flatten(1))


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier().eval()


@pytest.fixture(scope="module")
def path(classifier: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "model.max"
    batch = {"x": {0: Dim("batch", min=1, max=4)}}
    export(classifier, (torch.randn(2, 3, *SIZE),), path=path, dynamic_shapes=batch)
    return path


@pytest.fixture(scope="module")
def model(path: Path) -> MaxCompiledModel:
    return load(path)


@pytest.fixture
def client(model: MaxCompiledModel) -> Iterator[TestClient]:
    with TestClient(serve.create_app(model)) as client:
        yield client


def answer(classifier: Classifier, file: bytes) -> list[tuple[int, float]]:
    with torch.no_grad():
        probabilities = classifier(read_image(io.BytesIO(file), SIZE)[None]).softmax(1)[0]
    values, classes = probabilities.topk(serve.TOP)
    return list(zip(classes.tolist(), values.tolist(), strict=True))


def test_an_image(classifier: Classifier, client: TestClient):
    for file in serving.images()[:3]:
        response = client.post("/predict", content=file)
        assert response.status_code == 200
        found = [(entry["class"], entry["probability"]) for entry in response.json()["top"]]
        for ours, theirs in zip(found, answer(classifier, file), strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)


def test_bad_images(client: TestClient, monkeypatch: pytest.MonkeyPatch):
    whole = serving.images()[0]
    for body in (b"", b"no image", whole[:2000], b"GIF89a"):
        response = client.post("/predict", content=body)
        assert response.status_code == 400, body[:10]
        assert "no image that can be read: " in response.json()["detail"]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert client.post("/predict", content=whole).status_code == 400
    monkeypatch.setattr(serve, "MAX_BYTES", 1000)
    assert client.post("/predict", content=whole).status_code == 413
    assert client.get("/predict").status_code == 405


def test_health_and_metrics(client: TestClient):
    assert client.get("/health").json() == {"status": "ok", "model": "model.max"}
    client.post("/predict", content=serving.images()[0])
    client.post("/predict", content=b"")
    text = client.get("/metrics").text
    assert 'requests_total{status="200"} 1.0' in text
    assert 'requests_total{status="400"} 1.0' in text
    assert "batch_size_sum 1.0" in text and "waiting_images 0.0" in text


def test_what_waits_is_a_batch(model: MaxCompiledModel, monkeypatch: pytest.MonkeyPatch):
    """Five images arrive while one runs: a batch of the largest size and the rest follow it."""
    sizes: list[int] = []
    first_runs, go_on = threading.Event(), threading.Event()

    def run(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        sizes.append(len(inputs[0]))
        first_runs.set()
        assert go_on.wait(10)
        return [inputs[0].flatten(1)[:, :7]]

    monkeypatch.setattr(model, "run", run)
    images = [torch.randn(3, *SIZE) for _ in range(6)]

    async def scenario() -> list[Any]:
        batcher = serve.Batcher(model, 5, CollectorRegistry())
        running = asyncio.create_task(batcher.run())
        answers = [asyncio.create_task(batcher(images[0]))]
        await asyncio.to_thread(first_runs.wait, 10)
        answers += [asyncio.create_task(batcher(image)) for image in images[1:]]
        await asyncio.sleep(0)
        with pytest.raises(serve.Busy):
            await batcher(images[0])
        go_on.set()
        found = await asyncio.gather(*answers)
        running.cancel()
        return found

    found = asyncio.run(scenario())
    assert sizes == [1, 4, 1]
    for image, result in zip(images, found, strict=True):
        assert torch.equal(result, image.flatten()[:7])


def test_an_error_of_the_model_is_one_answer(
    model: MaxCompiledModel, monkeypatch: pytest.MonkeyPatch
):
    app = serve.create_app(model)
    with TestClient(app, raise_server_exceptions=False) as client:
        with monkeypatch.context() as patch:
            patch.setattr(model, "run", lambda _: 1 / 0)
            assert client.post("/predict", content=serving.images()[0]).status_code == 500
        assert client.get("/health").status_code == 200
        assert client.post("/predict", content=serving.images()[0]).status_code == 200


def test_a_full_queue(model: MaxCompiledModel, monkeypatch: pytest.MonkeyPatch):
    async def busy(self: serve.Batcher, image: torch.Tensor) -> torch.Tensor:
        raise serve.Busy

    monkeypatch.setattr(serve.Batcher, "__call__", busy)
    with TestClient(serve.create_app(model, capacity=9)) as client:
        response = client.post("/predict", content=serving.images()[0])
    assert response.status_code == 503 and response.headers["retry-after"] == "1"
    assert response.json()["detail"] == "9 images wait already"


def test_a_package_of_one_batch_size_gets_it():
    spec = TensorSpec("x", torch.float64, (4, 3, *SIZE), "cpu")
    seen: list[torch.Tensor] = []

    def run(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        seen.extend(inputs)
        return [inputs[0].sum((1, 2, 3))]

    fixed: Any = SimpleNamespace(input_specs=[spec], run=run, get_metadata=lambda: {"ranges": "{}"})
    images = [torch.randn(3, *SIZE) for _ in range(3)]
    results = serve.Batcher(fixed, 9, CollectorRegistry()).outputs(images)
    assert seen[0].shape == (4, 3, *SIZE) and seen[0].dtype == torch.float64
    torch.testing.assert_close(
        torch.stack(results), torch.stack(images).double().sum((1, 2, 3)).float()
    )


def test_features_are_the_mean_of_tokens():
    tokens = torch.randn(5, 3)
    assert serve.answer_of(tokens) == {"features": pytest.approx(tokens.mean(0).tolist())}


def test_under_load(path: Path):
    with serving.server(path) as port:
        answers = serving.load_test(port, path, clients=4, seconds=3)
    assert not answers.faults
    assert answers.seconds and answers.refused


def test_what_cannot_be_served(tmp_path: Path):
    command = [sys.executable, "-m", "pretrained_models.serve", str(tmp_path / "none.max")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "none.max" in done.stderr.splitlines()[-1]


# ------------------------------------------------------------------------------------ Ray Data


# in a process of its own: pyarrow imported after MAX crashes
READ = """
import json, sys
import pyarrow.parquet
print(json.dumps(pyarrow.parquet.read_table(sys.argv[1]).to_pylist()))
"""


def embed(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pretrained_models.batch_inference", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        timeout=240,
    )


def test_a_folder_of_images(classifier: Classifier, path: Path, tmp_path: Path):
    folder = tmp_path / "images"
    (folder / "deeper").mkdir(parents=True)
    files = {f"{i}.jpg": data for i, data in enumerate(serving.images())}
    files |= {"deeper/last.jpg": files["0.jpg"], "broken.png": b"no image"}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "notes.txt").write_text("no image, and not looked at")
    output = tmp_path / "features"
    done = embed(path, folder, "--output", output, "--workers", 2, "--batch-size", 3)
    assert done.returncode == 0, done.stderr
    assert "10 images, 1 of them unreadable" in done.stderr
    rows = json.loads(subprocess.check_output([sys.executable, "-c", READ, str(output)], text=True))
    found = {str(Path(row["path"]).relative_to(folder)): row for row in rows}
    assert found.keys() == files.keys()
    assert "no format" in found["broken.png"]["error"] and not found["broken.png"]["features"]
    for name, data in files.items():
        if name != "broken.png":
            with torch.no_grad():
                expected = classifier(read_image(io.BytesIO(data), SIZE)[None])[0]
            torch.testing.assert_close(torch.tensor(found[name]["features"]), expected)


def test_what_cannot_be_embedded(path: Path, tmp_path: Path):
    for arguments, message in {
        (tmp_path / "none.max", tmp_path): "none.max",
        (path, tmp_path): "no image lies in",
    }.items():
        done = embed(*arguments, "--output", tmp_path / "features")
        assert done.returncode == 2 and message in done.stderr.splitlines()[-1]


# ------------------------------------------------------------------------------------- images


def test_images_are_upright_and_cover_the_size():
    image = Image.new("RGB", (200, 100), (255, 0, 0))
    image.paste((0, 0, 255), (0, 0, 100, 100))  # the left half is blue
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 3  # turned upside down
    image.save(file, "PNG", exif=exif)
    x = read_image(file, (10, 20), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert x.shape == (3, 10, 20) and x.dtype == torch.float32
    assert x[:, 5, 2].tolist() == [1.0, 0.0, 0.0] and x[:, 5, 17].tolist() == [0.0, 0.0, 1.0]


def test_image_sizes():
    assert image_size(["batch", 3, 24, 32]) == (24, 32)
    for shape in (["batch", 1, 24, 32], ["batch", 3, "h", "w"], [2, 3]):
        with pytest.raises(ValueError, match="not images of one size"):
            image_size(shape)
    with pytest.raises(ImageError):
        read_image(io.BytesIO(b""), (8, 8))
