"""Outputs of other systems and spandrel models as rows of the same table."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from open_supir.base.images import to_uint8, to_unit
from open_supir.base.images.write import write_image
from open_supir.evaluation import Protocol, load_samples, run_benchmark
from open_supir.evaluation.baselines import folder_outputs, spandrel_models
from open_supir.evaluation.samples import Sample
from open_supir.evaluation.synthetic import FixedDegradation


def _image(seed: int, height: int = 32, width: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return to_unit(to_uint8(torch.rand(1, 3, height, width, generator=generator)))


def test_outputs_are_found_by_the_name_of_their_input_with_any_suffix(tmp_path: Path) -> None:
    write_image(tmp_path / "sub/a.webp", to_uint8(_image(0))[0], quality=100)
    method = folder_outputs({"other": tmp_path})["other"]
    assert method(Sample("sub/a", _image(1), None)).shape == (1, 3, 32, 32)
    with pytest.raises(FileNotFoundError, match=r"no output b\.\* in"):
        method(Sample("b", _image(1), None))


def test_outputs_without_their_folder_or_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="outputs of other: no folder"):
        folder_outputs({"other": tmp_path / "none"})
    write_image(tmp_path / "a.png", to_uint8(_image(0))[0])
    write_image(tmp_path / "a.jpg", to_uint8(_image(0))[0])
    with pytest.raises(ValueError, match="differ in suffix only"):
        folder_outputs({"other": tmp_path})


def test_broken_folder_gives_the_right_n_and_names_what_was_left_out(tmp_path: Path) -> None:
    """3 broken images, 2 of other sizes, 1 without partner: of 10 HQ images 4 are measured."""
    hq, lq = tmp_path / "hq", tmp_path / "lq"
    for index in range(10):
        write_image(hq / f"i{index}.png", to_uint8(_image(index))[0])
        write_image(lq / f"i{index}.png", to_uint8(_image(100 + index))[0])
    (lq / "i0.png").write_bytes(b"")
    (lq / "i1.png").write_bytes((lq / "i2.png").read_bytes()[:60])
    (hq / "i2.png").write_bytes(b"no image")
    write_image(lq / "i3.png", to_uint8(_image(3, 32, 24))[0])
    write_image(lq / "i4.png", to_uint8(_image(4, 16, 16))[0])
    (lq / "i5.png").unlink()
    protocol = Protocol(name="p", source="", metrics=("psnr",), hq_folder="hq", lq_folder="lq")
    records = run_benchmark(
        load_samples(protocol, hq=hq, lq=lq), {"lq": lambda sample: sample.lq}, ["psnr"],
        out_dir=tmp_path / "out", run="r",
    )  # fmt: skip
    reasons = {r["image"]: r["reason"] for r in records if r["status"] == "load_failed"}
    assert {r["image"] for r in records if r["status"] == "ok"} == {"i6", "i7", "i8", "i9"}
    assert sorted(reasons) == ["i0", "i1", "i2", "i3", "i4", "i5"]
    assert all(f"i{index}.png" in reasons[f"i{index}"] for index in (0, 1, 2))
    assert reasons["i3"] == "LQ is 32x24 after scaling, HQ is 32x32"
    assert reasons["i5"].startswith("no LQ partner i5 in")

    from open_supir.evaluation import write_report

    text = write_report(records, tmp_path / "out")
    assert "(n=4/10)" in text and all(f"- i{index}, all methods" in text for index in range(6))


@pytest.mark.parametrize("layout", ["official", "old"])
def test_spandrel_loads_the_official_formats_and_sees_the_small_image(
    tmp_path: Path, layout: str
) -> None:
    """Real-ESRGAN's `params_ema` and BSRGAN's older names, random weights, real loading code."""
    architectures = pytest.importorskip("spandrel.architectures.ESRGAN")
    torch.manual_seed(0)
    network = architectures.ESRGAN(scale=4, num_filters=8, num_blocks=2)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    file = tmp_path / "model.pth"
    torch.save({"params_ema": state} if layout == "official" else state, file)
    method = spandrel_models({"esrgan": file}, torch.device("cpu"))["esrgan"]
    small = _image(0, 8, 8)
    fixed = FixedDegradation(scale=4)
    sample = Sample("a", torch.rand(1, 3, 32, 32), _image(1), small=small)
    with torch.no_grad():
        expected = network.eval()(small).clamp(0, 1)
    assert torch.allclose(method(sample), expected, atol=1e-6)  # float32 sums in one order
    assert fixed(_image(1), 0).shape == small.shape  # the factor is the protocol's
    halved = Sample("a", small, _image(1, 16, 16))
    assert method(halved).shape == (1, 3, 16, 16)


def test_spandrel_names_a_file_that_is_none(tmp_path: Path) -> None:
    pytest.importorskip("spandrel")
    with pytest.raises(FileNotFoundError, match="spandrel.x="):
        spandrel_models({"x": tmp_path / "x.pth"}, torch.device("cpu"))
    (tmp_path / "x.pth").write_bytes(b"junk")
    with pytest.raises(ValueError, match="spandrel.x=.*damaged"):
        spandrel_models({"x": tmp_path / "x.pth"}, torch.device("cpu"))
    torch.save({"weight": torch.zeros(3)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="not supported by spandrel"):
        spandrel_models({"x": tmp_path / "x.pth"}, torch.device("cpu"))
