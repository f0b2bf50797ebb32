"""Settings that no run can have are refused by their key before anything is trained."""

import pytest

from open_supir.commands.train import build
from tests.integration.conftest import Compose


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_steps=0", "max_steps=0: .* at least 1"),
        ("val_every=0", "val_every=0: .* at least 1"),
        ("trainer.precision=16-true", "trainer.precision=16-true: .*32-true, 16-mixed, bf16-mixed"),
        ("data.val_size=0", "data.val_size must be at least 1, got 0"),
        ("data.global_batch=0", "data.global_batch must be at least 1, got 0"),
        ("data.crop_size=0", "data.crop_size must be at least 1, got 0"),
        ("data.val_crop_size=0", "data.val_crop_size must be at least 1, got 0"),
        ("data.num_workers=-1", "data.num_workers must be at least 0, got -1"),
        ("trainer.log_every_n_steps=0", "trainer.log_every_n_steps=0: must be at least 1"),
        ("trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches=0: .* at least 1"),
        ("optim.betas=[2,3]", r"each of betas must be in \[0, 1\), got .2, 3"),
        ("data.crop_size=30", "data.crop_size=30: .* multiple of 16, such as 16, 32"),
        ("data.val_crop_size=100", "data.val_crop_size=100: .* multiple of 16, such as 96, 112"),
    ],
)
def test_a_setting_out_of_range_is_named(composed_in: Compose, override: str, message: str) -> None:
    with pytest.raises(Exception, match=message):
        build(composed_in("train", "experiment=zerosft", override))


FACE = "+data.sources.face={_target_: open_supir.data.SourceConfig, weight: 1}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (FACE, "source face: .* has the folders: dead_leaves, heldout, negative, photos; .*"
               "data.sources.face=null"),
        ("data.heldout=nowhere", "data.heldout: .*nowhere"),
        ("data.crop_size=256", "source photos .*: none of its first 8 samples.*128x128 for a crop "
                               "of 256 .data.crop_size=256"),
    ],
)  # fmt: skip
def test_faults_of_the_data_cost_no_loading_of_weights(
    composed_in: Compose, override: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "open_supir.commands.train.load_base_weights", lambda *_: pytest.fail("loaded")
    )
    with pytest.raises(Exception, match=message):
        build(composed_in("train", "experiment=zerosft", override))
