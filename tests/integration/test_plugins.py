"""A connector, sampler, degradation and metric from elsewhere: one class and one YAML file each."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from open_supir.base import registry
from open_supir.base.images import read_image
from open_supir.base.images.write import write_image
from open_supir.base.registry import import_plugins
from open_supir.checkpoints import inspect_checkpoint
from open_supir.checkpoints.convert import convert
from open_supir.commands.evaluate import evaluate
from open_supir.commands.restore import restore
from open_supir.commands.train import train
from open_supir.evaluation import METRICS
from open_supir.training.flops import step_flops
from tests.integration.conftest import Compose
from tests.integration.test_road import checkpoint, losses
from tests.test_configs import CONF, ROOT

MODULE = """
from dataclasses import dataclass

import torch
from torch import nn

from open_supir.degradation import DegradationPipeline
from open_supir.diffusion import SamplerSettings
from open_supir.evaluation.metrics import Metric
from open_supir.networks import Connector
from open_supir.networks.unet import PlainJoin


class GateConnector(Connector):
    def __init__(self, *, start, **unet):
        super().__init__(**unet)
        width = self.layout.middle_channels
        self.project_modules.append(nn.Conv2d(width, width, 1))
        nn.init.constant_(self.project_modules[0].weight, start)

    def bind(self, features, scale):
        return Join(self.project_modules[0](features[-1]) * scale)


@dataclass(frozen=True)
class Join(PlainJoin):
    added: torch.Tensor

    def middle(self, h):
        return h + self.added


@dataclass(frozen=True, kw_only=True)
class OneStep(SamplerSettings):
    gain: float

    def sample(self, denoise, x, sigmas, *, randn, on_step):
        from open_supir.diffusion.samplers import Step

        step = Step(0, sigmas[0], sigmas[0], 0.0)
        denoised = self.gain * denoise(x, step)
        if on_step is not None:
            on_step(step, denoised, denoised)
        return denoised


class Hazy(DegradationPipeline):
    def __init__(self, *, haze, **options):
        super().__init__(**options)
        self.haze = haze

    def apply(self, hq, params):
        return super().apply(hq, params) * (1 - self.haze) + self.haze


def mean(device):
    return lambda restored, reference: restored.mean().item()


class Brightness(Metric):
    def __init__(self, **options):
        super().__init__(
            name="brightness", title="Brightness", direction="none", library="own", color="RGB",
            metric_id="mean", needs_reference=False, build=mean, **options)
"""
OPTIONS = {
    "connector/gate.yaml": """
        _target_: my_parts.GateConnector
        start: 0.01
        model_channels: ${unet.model_channels}
        channel_mult: ${unet.channel_mult}
        num_res_blocks: ${unet.num_res_blocks}
        head_channels: ${unet.head_channels}
        """,
    "sampler/gained.yaml": """
        defaults: [tiny]
        _target_: my_parts.OneStep
        gain: 0.5
        """,
    "degradation/hazy.yaml": """
        defaults: [supir_q_x2]
        _target_: my_parts.Hazy
        haze: 0.2
        """,
    "metrics/brightness.yaml": """
        names: [psnr, brightness]
        require: []
        download: false
        own:
          - {_target_: my_parts.Brightness, range: 0 to 1, decimals: 3}
        """,
}


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of options; the module of their classes is on the path, and forgotten afterwards."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/my_parts.py").write_text(MODULE)
    for name, text in OPTIONS.items():
        path = tmp_path / "options" / name
        path.parent.mkdir(parents=True)
        lines = [line.removeprefix(" " * 8) for line in text.strip("\n").splitlines()]
        path.write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    yield tmp_path / "options"
    sys.modules.pop("my_parts", None)
    METRICS.pop("brightness", None)


def composed_with(options: Path, name: str, overrides: list[str]) -> DictConfig:
    """Compose as `--config-dir` does: conf/ first, then the user's folder."""
    path = f"hydra.searchpath=[file://{options}]"
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(name, overrides=[path, *overrides])


def test_parts_from_outside_train_restore_evaluate_and_convert(
    composed_in: Compose, options: Path, workplace: Path, tmp_path: Path
) -> None:
    own = ["connector=gate", "sampler=gained", "degradation=hazy"]
    places = [f"runs_dir={tmp_path}", f"run_dir={tmp_path}/run", f"data.root={workplace}/shards",
              f"weights.sdxl={workplace}/prior.safetensors",
              f"weights.shipped={workplace}/robust.safetensors", "data.num_workers=0",
              "data.global_batch=4", "data.val_size=2", "data.val_batch=2",
              "trainer.accelerator=cpu", "debug=quick", "val_every=2"]  # fmt: skip
    stage_2 = ["experiment=zerosft", *places, *own]
    train(composed_with(options, "train", [*stage_2, "max_steps=2", "optim.decay_steps=4"]))
    saved = tmp_path / "run/checkpoints/last.ckpt"
    recipe = checkpoint(tmp_path / "run")["recipe"]
    assert recipe["architecture"]["connector"]["_target_"] == "my_parts.GateConnector"
    assert recipe["sampler"]["_target_"] == "my_parts.OneStep"
    flops = step_flops(recipe["architecture"], stage="supir", crop=64)
    assert flops is not None and flops.trained > 0
    resumed = [*stage_2, "max_steps=4", "optim.decay_steps=4", f"ckpt_path={saved}"]
    train(composed_with(options, "train", [*resumed, f"run_dir={tmp_path}/again"]))
    assert list(losses(tmp_path / "again")) == [2, 3]

    write_image(tmp_path / "in/a.png", (torch.rand(3, 40, 60) * 255).byte())
    output = tmp_path / "mine.safetensors"
    mine = convert({**_convert_settings(), "input": str(saved), "output": str(output)})
    assert {"control", "connector"} <= set(inspect_checkpoint(mine).parts)
    registry._REGISTERED.pop("my_parts.GateConnector")  # as in a new process
    pictures = []
    for number, model in enumerate((saved, mine)):
        out = tmp_path / f"out{number}"
        words = [f"input={tmp_path}/in", f"output={out}", f"checkpoint={model}", "device=cpu",
                 f"weights.sdxl={workplace}/prior.safetensors",
                 f"weights.robust_encoder={workplace}/robust.safetensors"]  # fmt: skip
        if number == 0:
            with pytest.raises(ValueError, match=r"plugins=\[my_parts\]"):
                restore(composed_in("restore", *words))
            import_plugins(["my_parts"])
        assert restore(composed_in("restore", *words)) == []
        pictures.append(read_image(out / "a.png"))
    assert torch.equal(*pictures)

    words = [f"checkpoint={saved}", f"runs_dir={tmp_path}", "metrics=brightness", "device=cpu",
             "protocol.repeats=1", "protocol.limit=1"]  # fmt: skip
    table = evaluate(composed_with(options, "evaluate", words))
    assert "Brightness" in table


def test_a_checkpoint_from_elsewhere_imports_nothing_until_its_module_is_named(
    options: Path, tmp_path: Path
) -> None:
    spec = {"_target_": "my_parts.OneStep", "gain": 0.5, "num_steps": 3}
    with pytest.raises(ValueError, match=r"my_parts.OneStep.*plugins=\[my_parts\]"):
        registry.build(spec)
    assert "my_parts" not in sys.modules
    import_plugins(["my_parts"])
    assert registry.build(spec).gain == 0.5


@pytest.mark.parametrize(
    "target",
    ["os.system", "open_supir.base.cli.sys", "open_supir.base.images.Path",
     "open_supir.training.saving.SaveCheckpoints", "", "nothing"],
)  # fmt: skip
def test_only_registered_classes_are_built(target: str) -> None:
    with pytest.raises(ValueError, match="plugins=|not a class that a checkpoint"):
        registry.build({"_target_": target})


def test_a_plugin_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"plugins=\[nowhere\].*PYTHONPATH"):
        import_plugins(["nowhere"])


def test_old_names_of_this_package_are_understood() -> None:
    old = registry.build({"_target_": "src.diffusion.Denoiser", "prediction": "v"})
    assert old.prediction == "v"


def _convert_settings() -> dict:
    return OmegaConf.to_container(OmegaConf.load(ROOT / "conf/convert.yaml"))  # type: ignore[return-value]
