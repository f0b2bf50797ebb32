"""Features of constant prompts, looked up in place of encoded."""

import pytest
import torch

from open_supir.networks import Conditioner
from open_supir.training.constant_prompts import ConstantPrompts

SIZES = torch.tensor([[64.0, 64, 0, 8 * i, 64, 64] for i in range(4)])


@pytest.mark.parametrize(
    "captions",
    [
        ["a cat", "", "blurry", "a dog"],
        ["", "", "blurry", ""],
        ["a cat", "a dog", "a cat", "a house"],
    ],
)
def test_features_are_those_of_the_conditioner(
    conditioner: Conditioner, captions: list[str]
) -> None:
    prompts = ConstantPrompts(["", "blurry"])
    expected = conditioner(captions, SIZES)
    for _ in range(2):  # made, then looked up
        found = prompts.encode(conditioner, captions, SIZES)
        torch.testing.assert_close(found.context, expected.context, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.vector, expected.vector, rtol=1e-5, atol=1e-5)


def test_constant_prompts_are_encoded_once(
    conditioner: Conditioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    encode = Conditioner.encode

    def noted(self: Conditioner, captions: list[str], device: torch.device):  # noqa: ANN202
        encoded.extend(captions)
        return encode(self, captions, device)

    monkeypatch.setattr(Conditioner, "encode", noted)
    prompts = ConstantPrompts(["", "blurry"])
    for _ in range(3):
        prompts.encode(conditioner, ["a cat", "", "blurry", "blurry"], SIZES)
    assert sorted(encoded) == ["", "a cat", "a cat", "a cat", "blurry"]
