"""The pipeline for diffusers, with the real library: the same pictures as Restorer's."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from open_supir.base.places import SHIPPED_MODEL
from open_supir.inference import Restorer
from tests.integration.test_hub_folder import converted

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model as a folder for the hub."""
    return converted(tmp_path_factory.mktemp("hub") / "mine", input=SHIPPED_MODEL, license="x")


@torch.no_grad()
def test_the_pipeline_gives_what_restorer_gives(folder: Path) -> None:
    """By our class and by diffusers' own loader; the tolerance asked for is 1e-5."""
    diffusers = pytest.importorskip("diffusers")
    from open_supir.diffusers import SupirPipeline

    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    wanted = Restorer.from_checkpoint(SHIPPED_MODEL)(
        image, caption="a wall", seed=3, negative_prompt="blurry"
    ).restored
    theirs = diffusers.DiffusionPipeline.from_pretrained(
        folder, custom_pipeline=str(folder), trust_remote_code=True
    )
    steps: list[int] = []
    for pipeline in (SupirPipeline.from_pretrained(folder).to("cpu"), theirs):
        found = pipeline(
            image,
            "a wall",
            "blurry",
            generator=torch.Generator().manual_seed(3),
            output_type="pt",
            callback_on_step_end=lambda pipe, step, sigma, tensors: steps.append(step),
        ).images
        torch.testing.assert_close(found[0], wanted, rtol=0, atol=1e-5)
    assert steps == 2 * list(range(len(steps) // 2))
    pipeline.enable_model_cpu_offload(device="cpu")
    (picture,) = pipeline(image, "", num_inference_steps=1, guidance_scale=2.0).images
    assert picture.size == (32, 32)


@torch.no_grad()
def test_a_lora_is_merged_and_taken_back(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from open_supir.diffusers import SupirPipeline

    pipeline = SupirPipeline.from_pretrained(folder)
    weight = pipeline.model.network.unet.get_parameter(
        "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    )
    before, (out, into) = weight.clone(), weight.shape
    down, up = torch.randn(2, into), torch.randn(out, 2)
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    tensors = {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
    save_file(tensors, tmp_path / "lora.safetensors")
    pipeline.load_lora_weights(str(tmp_path), weight_name="lora.safetensors", scale=0.5)
    torch.testing.assert_close(weight, before + 0.5 * up @ down)
    pipeline.unload_lora_weights()
    assert torch.equal(weight, before)
