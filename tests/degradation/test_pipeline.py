"""The pipeline as a whole: determinism, ranges, bad input, what it must not do."""

import dataclasses
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset

from open_supir.data.dataset import position_seed
from open_supir.degradation import DegradationConfig, DegradationPipeline, StageConfig

from .samples import PRESETS, VIEWS, config, photos, preset, psnr

PATHS = ("loop", "canvas")


@pytest.fixture(scope="module")
def hq() -> Tensor:
    return photos(8, 64, 64)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", PRESETS)
def test_lq_has_the_promised_shape_range_and_grid(name: str, path: str, hq: Tensor) -> None:
    before = hq.clone()
    lq = preset(name, path)(hq, torch.arange(8))
    side = 16 if name == "realesrgan_x4" else 64
    assert lq.shape == (8, 3, side, side) and lq.dtype == torch.float32
    assert lq.is_contiguous() and lq.isfinite().all() and lq.min() >= -1 and lq.max() <= 1
    levels = (lq + 1) * 127.5
    assert (levels - levels.round()).abs().max() < 1e-4  # multiples of 1/255
    assert torch.equal(hq, before)
    if name not in ("x4_noise40", "realesrgan_x4"):
        assert psnr(lq, hq, 2.0) > 12


@pytest.mark.parametrize("path", PATHS)
def test_a_sample_does_not_depend_on_its_batch(path: str, hq: Tensor) -> None:
    """Bit-equal alone, in any order and split: resuming on other ranks gives the same LQ."""
    pipeline, seeds = preset("supir_q", path), torch.arange(8) + 40
    whole = pipeline(hq, seeds)
    order = torch.tensor([5, 2, 7, 0, 1, 6, 4, 3])
    assert torch.equal(pipeline(hq[order], seeds[order]), whole[order])
    for ranks in (2, 8):
        parts = zip(hq.chunk(ranks), seeds.chunk(ranks), strict=True)
        assert torch.equal(torch.cat([pipeline(a, b) for a, b in parts]), whole)


def test_a_sharpened_target_does_not_depend_on_its_batch(hq: Tensor) -> None:
    pipeline = DegradationPipeline(dataclasses.replace(config("supir_q"), sharpen=True))
    alone = [pipeline.target(one) for one in hq.split(1)]
    assert torch.equal(torch.cat(alone), pipeline.target(hq))


class _OneByOne(Dataset):
    """LQ of single images, made where the loader runs."""

    def __init__(self, pipeline: DegradationPipeline, hq: Tensor) -> None:
        self.pipeline, self.hq = pipeline, hq

    def __len__(self) -> int:
        return len(self.hq)

    def __getitem__(self, index: int) -> Tensor:
        return self.pipeline(self.hq[index, None], torch.tensor([index + 40]))[0]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")
@pytest.mark.parametrize("num_workers", [0, 4])
def test_a_sample_does_not_depend_on_its_worker(num_workers: int, hq: Tensor) -> None:
    pipeline = preset("supir_q")
    loader = DataLoader(_OneByOne(pipeline, hq), batch_size=4, num_workers=num_workers)
    assert torch.equal(torch.cat(list(loader)), pipeline(hq, torch.arange(8) + 40))


def test_another_epoch_gives_another_lq(hq: Tensor) -> None:
    """Seeds come from the run's seed and the position, which counts on from epoch to epoch."""
    pipeline = preset("supir_q")
    seeds = torch.tensor([position_seed(0, position) for position in (3, 1003)])
    first, second = pipeline(hq[:1].expand(2, -1, -1, -1), seeds)
    assert (first - second).abs().mean() > 0.01


def test_another_seed_gives_another_lq(hq: Tensor) -> None:
    pipeline = preset("supir_q")
    same = pipeline(hq[:1].expand(4, -1, -1, -1), torch.arange(4))
    assert (same[1:] - same[:1]).abs().mean((1, 2, 3)).min() > 0.01


@pytest.mark.parametrize("path", PATHS)
def test_global_random_state_is_left_alone_and_not_read(path: str, hq: Tensor) -> None:
    pipeline, seeds = preset("supir_q", path), torch.arange(8)
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    states = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    first = pipeline(hq, seeds)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]
    torch.manual_seed(2)
    assert torch.equal(pipeline(hq, seeds), first)


@pytest.mark.parametrize("path", PATHS)
def test_precision_settings_do_not_matter_and_are_restored(path: str, hq: Tensor) -> None:
    pipeline, seeds = preset("supir_q", path), torch.arange(8)
    plain = pipeline(hq, seeds)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
            assert torch.equal(pipeline(hq, seeds), plain)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_lq_carries_no_gradient(hq: Tensor) -> None:
    assert not preset("supir_q")(hq.clone().requires_grad_(), torch.arange(8)).requires_grad


class _Recorder(TorchDispatchMode):
    """Names of the operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["supir_q", "realesrgan_x4"])
def test_nothing_waits_for_the_device(name: str, path: str, hq: Tensor) -> None:
    """None of the operators that read a tensor's value on the host."""
    pipeline = preset(name, path)
    pipeline(hq, torch.arange(8))  # tables are built once
    with _Recorder() as recorder:
        pipeline(hq, torch.arange(8))
    waiting = {"_local_scalar_dense", "nonzero", "_unique2", "bincount", "is_nonzero", "item"}
    assert not waiting & set(recorder.names)


def test_the_loop_takes_at_most_200_operators_an_image(hq: Tensor) -> None:
    """On the images' device; those of the host, before it, are counted apart."""
    pipeline = preset("supir_q")
    params = pipeline.draw(torch.arange(8), size=(64, 64))
    pipeline.apply(hq, params)  # tables are built once
    with _Recorder() as host:
        params.tensors(), params.jpeg_tables("libjpeg")
    with _Recorder() as both:
        pipeline.apply(hq, params)
    launches = [sum(name not in VIEWS for name in recorder.names) for recorder in (both, host)]
    assert (launches[0] - launches[1]) / 8 <= 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 97), (11, 10), (74, 130), (57, 64)])
def test_any_size_passes(path: str, height: int, width: int) -> None:
    images = torch.rand(3, 3, height, width) * 2 - 1
    lq = preset("supir_q", path)(images, torch.arange(3))
    assert lq.shape == images.shape and lq.isfinite().all()
    small = preset("realesrgan_x4", path)(images, torch.arange(3))
    assert small.shape[2:] == (max(height // 4, 1), max(width // 4, 1))


@pytest.mark.parametrize("path", PATHS)
def test_random_shapes_pass(path: str) -> None:
    """Sides 1 to 97, grey or colour, any dtype, batches of 0 to 5."""
    generator, rng = torch.Generator().manual_seed(0), random.Random(0)
    pipelines = [preset(name, path) for name in ("supir_q", "realesrgan_x4", "x4_noise40")]
    dtypes = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8)
    for _ in range(60):
        shape = (rng.randint(0, 5), rng.choice((1, 3)), rng.randint(1, 97), rng.randint(1, 97))
        dtype, pipeline = rng.choice(dtypes), rng.choice(pipelines)
        unit = torch.rand(shape, generator=generator)
        images = (unit * 255).byte() if dtype == torch.uint8 else (unit * 2 - 1).to(dtype)
        lq = pipeline(images, torch.arange(len(images)))
        size = shape[2:]
        if pipeline.config.resize_back is None:
            size = (max(shape[2] // 4, 1), max(shape[3] // 4, 1))
        assert lq.shape == (shape[0], 3, *size) and lq.isfinite().all()
        assert lq.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
        assert lq.numel() == 0 or (lq.min() >= -1 and lq.max() <= 1)


@pytest.mark.parametrize("path", PATHS)
def test_odd_tensors_are_taken(path: str, hq: Tensor) -> None:
    pipeline, seeds = preset("supir_q", path), torch.arange(8)
    expected = pipeline(hq, seeds)
    strided = hq.to(memory_format=torch.channels_last)
    assert torch.equal(pipeline(strided, seeds), expected)
    pixels = ((hq + 1) * 127.5).round().byte()
    # x / 255 and y / 2 + 1 / 2 differ in the last bit, which may move a JPEG block now and then
    differs = ((pipeline(pixels, seeds) - expected).abs() > 1e-3).float().mean((1, 2, 3))
    assert differs.median() < 1e-3 and differs.mean() < 0.05
    for dtype in (torch.float16, torch.bfloat16, torch.float64):  # computed in float32
        assert pipeline(hq.to(dtype), seeds).dtype == dtype
    assert pipeline(pixels, seeds).dtype == torch.float32
    gray = pipeline(hq[:, :1], seeds)
    assert gray.shape == hq.shape
    assert pipeline(hq[:0], seeds[:0]).shape == (0, 3, 64, 64)


@pytest.mark.parametrize("path", PATHS)
def test_nan_and_infinity_give_finite_lq(path: str, hq: Tensor) -> None:
    broken = hq.clone()
    broken[0, :, 10, 10], broken[1, 0, 5, 5], broken[2] = float("nan"), float("inf"), -1e30
    lq = preset("supir_q", path)(broken, torch.arange(8))
    assert lq.isfinite().all() and lq.min() >= -1 and lq.max() <= 1


def test_wrong_input_is_refused_with_its_shape(hq: Tensor) -> None:
    pipeline = preset("x4")
    with pytest.raises(ValueError, match=r"\(8, 4, 64, 64\)"):
        pipeline(torch.zeros(8, 4, 64, 64), torch.arange(8))
    with pytest.raises(ValueError, match="8 images, but parameters for 3"):
        pipeline(hq, torch.arange(3))
    with pytest.raises(ValueError, match="int64"):
        pipeline(hq.long(), torch.arange(8))
    with pytest.raises(ValueError, match=r"\(32, 32\)"):
        pipeline.apply(hq, pipeline.draw(torch.arange(8), size=(32, 32)))


@pytest.mark.parametrize("path", PATHS)
def test_identity_leaves_images_as_they_are(path: str, hq: Tensor) -> None:
    ranges = dataclasses.replace(config("supir_q"), identity_prob=1.0)
    lq = DegradationPipeline(ranges, path=path)(hq, torch.arange(8))  # type: ignore[arg-type]
    assert (lq - hq).abs().max() < 1e-6


@pytest.mark.parametrize("path", PATHS)
def test_everything_off_is_a_plain_resize(path: str, hq: Tensor) -> None:
    nothing = DegradationConfig(
        first=StageConfig(), second=StageConfig(prob=0.0), modes=("area",), resize_back=None
    )
    lq = DegradationPipeline(nothing, path=path)(hq, torch.arange(8))  # type: ignore[arg-type]
    expected = torch.nn.functional.avg_pool2d(hq, 4)
    assert (lq - expected).abs().max() < 1.1 / 127.5 / 2  # half a level: it is rounded


def test_target_is_hq_unless_sharpening_is_on(hq: Tensor) -> None:
    assert torch.equal(preset("supir_q").target(hq), hq)
    sharp = DegradationPipeline(dataclasses.replace(config("supir_q"), sharpen=True))
    target = sharp.target(hq)
    assert target.std() > hq.std() and (target - hq).abs().max() > 0.02
    assert not torch.equal(sharp(hq, torch.arange(8)), preset("supir_q")(hq, torch.arange(8)))


def test_brightness_is_kept_on_average() -> None:
    images = photos(64, 64, 64)
    lq = preset("supir_q")(images, torch.arange(64))
    assert (lq - images).mean().abs() < 2 * 0.003


def test_lighter_presets_stay_closer_to_hq() -> None:
    images, seeds = photos(48, 64, 64), torch.arange(48)
    values = [psnr(preset(name)(images, seeds), images, 2.0) for name in ("supir_q", "supir_f")]
    assert values[0] + 0.5 < values[1] < psnr(preset("x4")(images, seeds), images, 2.0)


@pytest.mark.parametrize("path", ["loop", "canvas"])
@pytest.mark.parametrize(("name", "scale"), [("x4", 4), ("bicubic", 4), ("x8", 8)])
def test_fixed_presets_resize_as_pillow(name: str, scale: int, path: str) -> None:
    """To the bit: the small LQ, and what it is enlarged to."""
    hq, small, large = photos(4, 96, 128), [], []
    for image in ((hq + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy():
        small.append(Image.fromarray(image).resize((128 // scale, 96 // scale), Image.BICUBIC))
        large.append(small[-1].resize((128, 96), Image.BICUBIC))
    for back, expected in ((None, small), ("bicubic", large)):
        ranges = dataclasses.replace(config(name), resize_back=back)
        lq = (DegradationPipeline(ranges, path=path)(hq, torch.arange(4)) + 1) * 127.5
        pillows = torch.stack([torch.from_numpy(np.array(image)) for image in expected])
        difference = (lq.permute(0, 2, 3, 1) - pillows).abs().round()
        assert difference.max() == 0


def test_fixed_noise_is_as_strong_as_it_says() -> None:
    """On a flat image, at LQ size."""
    ranges = dataclasses.replace(config("x4_noise40"), resize_back=None, round=False)
    flat = DegradationPipeline(ranges)(torch.zeros(8, 3, 256, 256), torch.arange(8))
    assert abs(float(flat.std()) * 127.5 - 40) < 0.02 * 40
