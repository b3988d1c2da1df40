"""pretrained_models: what the scripts say to wrong input, and their pure functions. No compile."""

import subprocess
import sys
from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pretrained_models import comparison, demo, run_vit
from pretrained_models.comparison import EAGER, Result, compare
from pretrained_models.errors import UsageError
from pretrained_models.images import center_crop, load_image, to_batch, to_pixels

Output = namedtuple("Output", ["dense_features", "logits"])
EACH_SCRIPT = pytest.mark.parametrize("script", [demo, run_vit], ids=["demo", "run_vit"])


@pytest.fixture
def photograph(tmp_path):
    path = tmp_path / "photograph.png"
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


class TestErrors:
    @EACH_SCRIPT
    def test_exit_status_and_one_line(self, script):
        command = [sys.executable, "-m", script.__name__, "no-such-file.jpg"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert done.stderr.splitlines() == ["error: no such image: no-such-file.jpg"]
        assert done.stdout == ""

    @EACH_SCRIPT
    @pytest.mark.parametrize("kind", ["text", "truncated", "folder"])
    def test_not_an_image(self, script, kind, photograph, tmp_path):
        path = tmp_path / f"{kind}.png"
        if kind == "text":
            path.write_text("not a photograph")
        elif kind == "truncated":
            path.write_bytes(photograph.read_bytes()[:5000])
        else:
            path.mkdir()
        with pytest.raises(UsageError, match=str(path)):
            script.main([str(path)])

    @EACH_SCRIPT
    def test_too_many_threads(self, script, photograph):
        with pytest.raises(UsageError, match="--threads 100000"):
            script.main([str(photograph), "--threads", "100000"])

    @EACH_SCRIPT
    @pytest.mark.parametrize("value", ["0", "-1", "x"])
    def test_iterations(self, script, value, photograph, capsys):
        with pytest.raises(SystemExit) as stopped:
            script.main([str(photograph), f"--iterations={value}"])
        assert stopped.value.code == 2
        assert "--iterations" in capsys.readouterr().err

    def test_unknown_backend(self, photograph):
        with pytest.raises(UsageError, match="no backend 'maxx'.*max"):
            demo.main([str(photograph), "--backends", "maxx"])

    def test_weights(self, tmp_path):
        from safetensors.torch import save_file

        model = nn.Linear(2, 3)
        with pytest.raises(UsageError, match="no such weights file"):
            demo.load_weights_(model, tmp_path / "missing.safetensors")
        path = tmp_path / "wrong.safetensors"
        path.write_bytes(b"no")
        with pytest.raises(UsageError, match="as safetensors"):
            demo.load_weights_(model, path)
        save_file({"weight": torch.zeros(3, 4), "extra": torch.zeros(1)}, path)
        with pytest.raises(UsageError, match=r"3 keys differ: bias \(missing in the file"):
            demo.load_weights_(model, path)
        save_file({"weight": torch.ones(3, 2), "bias": torch.ones(3)}, path)
        demo.load_weights_(model, path)
        assert model.weight.sum() == 6

    def test_hub_out_of_reach(self, monkeypatch):
        monkeypatch.setattr(run_vit, "is_local", lambda name: False)
        monkeypatch.setattr(run_vit, "hub_problem", lambda name: "the hub cannot be reached")
        with pytest.raises(UsageError, match="cannot be reached.*--random-weights"):
            run_vit.choose_model("someone/some-vit", random_weights=False)

    def test_default_model_gives_way_to_random_weights_aloud(self, monkeypatch, capsys):
        monkeypatch.setattr(run_vit, "is_local", lambda name: False)
        monkeypatch.setattr(run_vit, "hub_problem", lambda name: "the hub cannot be reached")
        monkeypatch.setattr(run_vit, "random_model", lambda name: (nn.Identity(), None))
        *_, caption = run_vit.choose_model(None, random_weights=False)
        assert "RANDOM WEIGHTS" in caption
        said = capsys.readouterr().err
        assert "cannot be reached" in said
        assert "RANDOM WEIGHTS" in said

    def test_folder_without_a_model(self, tmp_path):
        with pytest.raises(UsageError, match="cannot be used as an image classifier"):
            run_vit.pretrained(str(tmp_path))


class TestLocalFolder:
    def test_weights_and_labels_come_from_the_folder(self, tmp_path, photograph):
        from transformers import ViTConfig, ViTForImageClassification
        from transformers.models.vit import ViTImageProcessorPil

        config = ViTConfig(
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=32,
            id2label={0: "temple", 1: "flower"},
            label2id={"temple": 0, "flower": 1},
        )
        saved = ViTForImageClassification(config).eval()
        saved.save_pretrained(tmp_path / "model")
        ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "model")
        model, processor, caption = run_vit.choose_model(str(tmp_path / "model"), False)
        pixels = run_vit.pixels_of(load_image(photograph), processor)
        assert pixels.shape == (1, 3, 32, 32)
        with torch.no_grad():
            assert torch.equal(model(pixels).logits, saved(pixels).logits)
        assert model.config.id2label == {0: "temple", 1: "flower"}
        assert "RANDOM" not in caption


class TestImages:
    @pytest.mark.parametrize("size", [(640, 427), (427, 640), (224, 224), (10, 1000)])
    def test_center_crop(self, size):
        assert center_crop(Image.new("RGB", size), 224).size == (224, 224)

    def test_center_crop_keeps_the_middle(self):
        image = Image.new("RGB", (300, 100))
        image.paste((255, 255, 255), (100, 0, 200, 100))
        assert np.asarray(center_crop(image, 70)).mean() > 250

    def test_to_pixels(self):
        pixels = to_pixels(Image.new("RGB", (32, 32), (255, 0, 51)), 16, (0, 0, 0.2), (1, 1, 0.5))
        assert pixels.shape == (3, 16, 16)
        assert pixels.is_contiguous()
        torch.testing.assert_close(pixels[:, 0, 0], torch.tensor([1.0, 0.0, 0.0]))

    def test_to_batch_repeats(self):
        images = [Image.new("RGB", (32, 32), (shade,) * 3) for shade in (0, 255)]
        batch = to_batch(images, 16, 5)
        assert batch.shape == (5, 3, 16, 16)
        assert torch.equal(batch[0], batch[2])
        assert torch.equal(batch[1], batch[3])
        assert not torch.equal(batch[0], batch[1])

    def test_grey_and_alpha_become_rgb(self, tmp_path):
        for mode in ("L", "RGBA", "P"):
            path = tmp_path / f"{mode}.png"
            Image.new(mode, (8, 8)).save(path)
            assert load_image(path).mode == "RGB"


class TestComparison:
    def test_randomise_is_seeded_and_leaves_nothing_trivial(self):
        def make(seed):
            model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
            for parameter in model.parameters():
                nn.init.zeros_(parameter)
            comparison.randomise_(model, seed)
            return list(model.parameters())

        first, again, other = make(0), make(0), make(1)
        assert all(map(torch.equal, first, again))
        assert not any(map(torch.equal, first, other))
        assert all((parameter != 0).all() for parameter in first)

    def test_error_of_what_is_no_number_or_has_another_shape(self):
        reference = torch.zeros(2, dtype=torch.float64)
        assert comparison.max_error(torch.tensor([0.0, 0.5]), reference) == 0.5
        assert comparison.max_error(torch.tensor([0.0, float("nan")]), reference) == float("inf")
        assert comparison.max_error(torch.zeros(3), reference) == float("inf")

    def test_criterion(self):
        assert comparison.agrees(9e-4, 1e-4)
        assert not comparison.agrees(1.1e-3, 1e-4)
        assert comparison.agrees(9e-6, 0.0)
        assert not comparison.agrees(2e-5, 0.0)
        assert not comparison.agrees(float("inf"), 1.0)

    def test_wrong_numbers_are_seen(self):
        model = nn.Linear(3, 2).eval()
        results = _compare_with(_off_by_a_thousandth, model, torch.ones(4, 3))
        assert [result.agrees for result in results] == [True, False]
        assert results[1].error == pytest.approx(1e-3, rel=1e-2)
        assert len(results[0].times) == len(results[1].times) == 2
        assert "NO" in comparison.results_table({"linear": results})

    def test_failing_inductor_is_left_out_with_its_reason(self, monkeypatch):
        monkeypatch.setattr(
            comparison, "_why_unavailable", {"inductor": "no C++ compiler", EAGER: None}.get
        )
        results = _compare_with("inductor", nn.Linear(3, 2), torch.ones(4, 3))
        assert [result.left_out for result in results] == [None, "no C++ compiler"]
        assert results[1].agrees
        assert not results[1].times
        assert "inductor is left out: no C++ compiler" in comparison.results_table({"m": results})

    def test_inductor_without_a_compiler(self, monkeypatch):
        from torch._inductor import cpp_builder

        monkeypatch.setattr(cpp_builder, "cpp_compiler_search", _no_compiler)
        assert "C++ compiler" in comparison._why_unavailable("inductor")
        assert comparison._why_unavailable("max") is None

    def test_labels(self):
        logits = torch.tensor([0.0, 2.0, 1.0])
        labels = {0: "cat", 1: "dog"}
        (first, second) = run_vit.top_labels(logits, labels, 2)
        assert first[0] == "dog"
        assert second[0] == "2"
        assert first[1] > second[1]
        table = run_vit.labels_table([Result("eager", output=logits[None])], labels)
        assert len(table.splitlines()) == 2 + 3


class TestDemoStatus:
    """main() with two small models in place of the real ones."""

    @pytest.fixture(autouse=True)
    def small_models(self, monkeypatch):
        class Small(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 4, 32, 32)

            def forward(self, x):
                features = self.conv(x)
                return Output(features, features)

        monkeypatch.setattr(demo, "small_vit", Small)
        monkeypatch.setattr(demo, "small_transformers_vit", Small)

    def run(self, photograph, backend):
        return demo.main(
            [str(photograph), "--backends", backend, "--iterations", "1", "--batch-size", "2"]
        )

    def test_agreement(self, photograph, capsys):
        assert self.run(photograph, "eager") == 0
        printed = capsys.readouterr()
        assert "seeded random values" in printed.out
        assert "Numbers agree when" in printed.out
        assert "first call" in printed.err

    def test_disagreement(self, photograph, capsys, monkeypatch):
        monkeypatch.setattr(demo, "parse_backends", lambda text: [EAGER, _off_by_a_thousandth])
        assert self.run(photograph, "any") == 1
        assert "The numbers disagree: vit ViT-S/16" in capsys.readouterr().out


def _off_by_a_thousandth(gm, example_inputs):
    """A torch.compile backend that gets every result wrong."""
    return lambda *args: [output + 1e-3 for output in gm(*args)]


def _no_compiler(search):
    from torch._inductor.exc import InvalidCxxCompiler

    raise InvalidCxxCompiler


def _compare_with(backend, model, inputs):
    return compare(
        "linear",
        model,
        inputs,
        backends=[EAGER, backend],
        iterations=2,
        select=lambda output: output,
    )
