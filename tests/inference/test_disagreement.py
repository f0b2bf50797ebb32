"""Where samples disagree, and what restoring writes of it."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from open_supir.inference.disagreement import disagreement, encode_map


def test_disagreement_is_the_deviation_in_levels_where_samples_differ() -> None:
    base = torch.full((3, 64, 64), 0.5)
    noise = torch.randn(8, 3, 64, 32, generator=torch.Generator().manual_seed(0)) * 10 / 255
    samples = [base.clone() for _ in noise]
    for sample, values in zip(samples, noise, strict=True):
        sample[..., 32:] += values
    levels = disagreement(samples)
    assert levels.shape == (64, 64)
    assert levels[:, 44:].mean() == pytest.approx(10, rel=0.05)
    assert levels[:, :20].max() == 0
    assert disagreement([sample[None] for sample in samples]).equal(levels)  # batches of one


def test_two_samples_are_too_few() -> None:
    with pytest.raises(ValueError, match="expected 3 samples"):
        disagreement([torch.zeros(3, 8, 8)] * 2)


def test_the_map_holds_levels() -> None:
    levels = torch.tensor([[0.0, 1.2], [7.6, 300.0]])
    pixels = np.asarray(Image.open(io.BytesIO(encode_map(levels))))
    assert pixels.tolist() == [[0, 1], [8, 255]]
