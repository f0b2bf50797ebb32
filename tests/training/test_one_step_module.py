"""The one-step module: its losses by hand, whose gradients are whose, steps, clipping, resuming."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F

from open_supir.base.images import to_signed
from open_supir.checkpoints.adapters import merge_adapters
from open_supir.diffusion.schedule import sigma_table
from open_supir.networks import AutoencoderKL, Conditioner, UNet
from open_supir.networks.conditioner import TextTowerConfig
from open_supir.training.adapters import add_adapters
from open_supir.training.best import BestSnapshot
from open_supir.training.discriminators import judged
from open_supir.training.one_step_module import OneStepLoss
from tests.conftest import TRUNK, randomise
from tests.training import workers
from tests.training.modules import batch, darken, one_step_module
from tests.training.test_real_strategies import Positions, crops
from tests.training.workers import Data, loss_of, run


def one_step(**changed: Any) -> Any:
    """Return the module that every process builds alike."""
    torch.manual_seed(0)
    unet = randomise(UNet(out_channels=4, **TRUNK))
    vae = AutoencoderKL(
        ch=8, ch_mult=[1, 1, 2], num_res_blocks=1, z_channels=4, scale_factor=0.5, groups=4
    )
    tower = TextTowerConfig(width=16, layers=2, heads=1)
    conditioner = Conditioner(clip_l=tower, clip_g=tower, size_channels=4)
    return one_step_module(unet, vae, conditioner, **changed)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a module that keeps the losses it would step on, with their graphs."""
    module = one_step()
    randomise(module.network)
    module.kept = {}
    keep = lambda loss, *, discriminator=False: module.kept.update({discriminator: loss})  # noqa: E731
    monkeypatch.setattr(module, "update", keep)
    monkeypatch.setattr(module, "log_dict", lambda *args, **options: None)
    return module


def test_the_generators_loss_is_the_weighted_sum(module: Any) -> None:
    """One forward pass at level 200 (sigma 0.572); weights 1, 5, 0.5; no label smoothing."""
    given = batch()
    result = module.training_step(given, 0)
    hq = to_signed(given["hq"])
    z_lq = module.robust_encoder(darken(hq, given["seed"]))
    cond = module.conditioner(given["caption"], given["sizes"])
    sigma = sigma_table()[200]
    out = module.network(z_lq, torch.full((2,), 200), cond, z_lq)
    z = (1 + sigma**2).sqrt() * z_lq - sigma * out
    x = module.vae.decode(z)
    logits = module.discriminator(module.seen(x, z, cond, given))
    fooled = sum(F.softplus(-level).mean() for level in logits)  # BCE with target 1
    distance = module.perceptual(x, hq).mean()
    expected = F.mse_loss(x, hq) + 5 * distance + 0.5 * fooled
    # power iterations of the spectral norms go on between the two
    assert torch.allclose(module.kept[False], expected, rtol=2e-2)
    assert torch.allclose(result["losses"].mean(), module.kept[False])


def test_each_loss_reaches_only_what_it_trains(module: Any) -> None:
    module.training_step(batch(), 0)
    for discriminator, loss in module.kept.items():
        module.zero_grad()
        loss.backward()
        touched = {name for name, p in module.named_parameters() if p.grad is not None}
        own = [n for n in module.trained_names() if n.startswith("discriminator.") == discriminator]
        assert touched == set(own)


def test_without_an_adversary_there_is_one_loss(module: Any) -> None:
    module.loss = OneStepLoss(adversarial=0.0)
    module.training_step(batch(), 0)
    assert list(module.kept) == [False]


def test_judgements_are_summed_over_levels() -> None:
    """BCE with target 0.8 at logit 0 is log 2 whatever the target."""
    logits = [torch.zeros(3, 1, 4, 4), torch.zeros(3, 1)]
    torch.testing.assert_close(judged(logits, 0.8), torch.full((3,), 2 * torch.tensor(2.0).log()))


def fit(folder: Path, **options: Any) -> tuple[Any, dict]:
    module = one_step()
    workers.fit(folder, module=module, data=Data(Positions(), crops), **options)
    return module, torch.load(folder / "checkpoints/last.ckpt", weights_only=True)


def test_a_step_is_one_of_the_generator_and_resuming_is_exact(tmp_path: Path) -> None:
    """Two steps of two micro-batches and two more, against four: every bit of the checkpoint."""
    _, half = fit(tmp_path / "a", steps=2, micro_batch=2)
    assert half["global_step"] == 2
    for states in half["optimizer_states"]:
        assert {float(s["step"]) for s in states["state"].values()} == {2.0}
    assert [s["last_epoch"] for s in half["lr_schedulers"]] == [2, 2]
    assert not [name for name in half["ema"] if name.startswith("discriminator.")]
    norms = [n for n in half["state_dict"] if n.endswith("parametrizations.weight.0._u")]
    assert len(norms) == 2 * 3  # two convolutions a head

    saved = str((tmp_path / "a/checkpoints/last.ckpt").resolve())
    _, resumed = fit(tmp_path / "b", steps=4, micro_batch=2, ckpt_path=saved)
    _, whole = fit(tmp_path / "c", steps=4, micro_batch=2)
    assert resumed["recipe"] == whole["recipe"]
    for part in ("state_dict", "ema"):
        assert resumed[part].keys() == whole[part].keys()
        for name, tensor in whole[part].items():
            assert torch.equal(resumed[part][name], tensor), name
    for ours, theirs in zip(resumed["optimizer_states"], whole["optimizer_states"], strict=True):
        for index, state in theirs["state"].items():
            assert all(torch.equal(ours["state"][index][k], v) for k, v in state.items())


def two_ranks(folder: Path, ranks: int) -> int:
    """Train two steps of two micro-batches."""
    data = Data(Positions(), crops)
    return workers.fit(folder, ranks=ranks, module=one_step(), data=data, steps=2, micro_batch=1)[1]


@pytest.mark.slow
def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    """Both optimisers' gradients are reduced, with accumulation; see the test of stage 2."""
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(two_ranks, 1, one, 1) == [0]
    assert run(two_ranks, 2, two, 2) == [0, 0], two.with_suffix(".rank0.log").read_text()[-3000:]
    assert loss_of(two) == pytest.approx(loss_of(one), rel=1e-4)


def test_fp16_is_refused(tmp_path: Path) -> None:
    trainer = pl.Trainer(accelerator="cpu", default_root_dir=tmp_path, logger=False)
    trainer.strategy.precision_plugin.precision = "16-mixed"  # type: ignore[misc]
    with pytest.raises(ValueError, match="16-mixed: one loss scale cannot serve two"):
        one_step().take_over(trainer)


def test_best_is_by_both_metrics_together(tmp_path: Path) -> None:
    """Ranks 0+2, 1+1, 2+0 tie, and the full-reference metric decides; 1+0 beats them."""
    best = BestSnapshot(
        str(tmp_path),
        full_reference="a",
        no_reference="b",
        higher_is_better={"a": False, "b": True},
    )
    values = ((1, 0.1, 1.0), (2, 0.2, 2.0), (3, 0.3, 3.0))
    best.rows = [{"step": step, "a": a, "b": b} for step, a, b in values]
    assert best.best()["step"] == 1
    best.rows.append({"step": 4, "a": 0.15, "b": 4.0})
    assert best.best()["step"] == 4


def test_adapters_start_as_no_change_and_give_the_encoder_a_gradient(tmp_path: Path) -> None:
    """B = 0 at the start, so the estimate is the same; then it is merged as W + B A."""
    pytest.importorskip("peft")
    module = one_step(unet_lora=2)
    given = batch()
    cond = module.conditioner(given["caption"], given["sizes"])
    z_lq = torch.randn(2, 4, 8, 8)
    before = module.student(z_lq, cond)
    module.take_over(pl.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path))
    torch.testing.assert_close(module.student(z_lq, cond), before)
    added = [name for name in module.exported_names() if ".lora_" in name]
    assert any("input_blocks" in name for name in added) and module.recipe["unet_lora"] == 2

    ups = {name: p for name, p in module.named_parameters() if ".lora_B." in name}
    module.student(z_lq, cond).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in ups.values())

    randomise(module.network)
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": module.state_dict()}, path)
    plain = one_step()
    plain.network.control.load_state_dict(module.network.control.state_dict())
    plain.network.connector.load_state_dict(module.network.connector.state_dict())
    assert merge_adapters(path, plain.network.unet) == len(ups)
    torch.testing.assert_close(
        plain.student(z_lq, cond), module.student(z_lq, cond), rtol=1e-4, atol=1e-4
    )


def test_the_prior_judges_without_adapters(module: Any) -> None:
    pytest.importorskip("peft")
    given = batch()
    cond = module.conditioner(given["caption"], given["sizes"])
    seen = module.seen(torch.zeros(2, 3, 32, 32), torch.randn(2, 4, 8, 8), cond, given)
    before = module.discriminator.features(seen)
    add_adapters(module.network.unet, 2)
    randomise(module.network)
    for ours, theirs in zip(module.discriminator.features(seen), before, strict=True):
        torch.testing.assert_close(ours, theirs)
