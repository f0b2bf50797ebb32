"""The conversion entry point, without its command line."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from open_supir.base.files import sha256_of
from open_supir.checkpoints import inspect_checkpoint
from open_supir.checkpoints.convert import convert
from open_supir.checkpoints.keymaps import is_dropped
from open_supir.commands.convert import main
from tests.checkpoints.standins import official_sdxl, official_supir

CONFIG = Path(__file__).parents[2] / "conf" / "convert.yaml"


def _settings(**changes: object) -> dict:
    config = OmegaConf.load(CONFIG)
    settings = {key: value for key, value in config.items() if key not in ("defaults", "hydra")}
    unknown = set(changes) - set(settings)
    assert not unknown, unknown
    return settings | {key: _plain(value) for key, value in changes.items()}


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def test_pickle_becomes_an_equal_safetensors_file(tmp_path: Path, supir_file: Path) -> None:
    output = convert(_settings(input=supir_file, output=tmp_path / "out.safetensors"))
    written = load_file(output)
    wanted = {key: t for key, t in official_supir().items() if not is_dropped(key)}
    assert set(written) == set(wanted)
    assert all(torch.equal(written[key], wanted[key]) for key in wanted)


def test_two_files_become_one_of_ours_and_come_apart_again(
    tmp_path: Path, sdxl_file: Path, supir_file: Path
) -> None:
    whole = tmp_path / "whole.safetensors"
    convert(_settings(input=[str(sdxl_file), str(supir_file)], output=whole, format="native"))
    assert inspect_checkpoint(whole).missing == ()
    back = convert(_settings(input=whole, output=tmp_path / "b.safetensors", format="sdxl"))
    written = load_file(back)
    wanted = {key: t for key, t in official_sdxl().items() if not is_dropped(key)}
    assert set(written) == set(wanted)
    assert all(torch.equal(written[key], wanted[key]) for key in wanted)


def test_metadata_states_base_licence_and_more(
    tmp_path: Path, sdxl_file: Path, supir_file: Path
) -> None:
    output = convert(
        _settings(
            input=supir_file,
            output=tmp_path / "out.safetensors",
            base=sdxl_file,
            license="CreativeML Open RAIL++-M",
            metadata={"step": 7},
            dtype="bfloat16",
        )
    )
    info = inspect_checkpoint(output)
    assert info.metadata["base_sha256"] == sha256_of(sdxl_file)
    assert info.metadata["license"] == "CreativeML Open RAIL++-M"
    assert info.metadata["step"] == "7"
    assert list(info.parts["control"].dtypes) == ["bfloat16"]


def test_mistakes_are_named(tmp_path: Path, sdxl_file: Path, supir_file: Path) -> None:
    output = tmp_path / "out.safetensors"
    with pytest.raises(ValueError, match="give input=FILE output=FILE, or inspect=FILE"):
        convert(_settings())
    with pytest.raises(ValueError, match="unknown format 'onnx'; known: supir, sdxl, diffusers"):
        convert(_settings(input=sdxl_file, output=output, format="onnx"))
    with pytest.raises(ValueError, match="holds the parts unet, vae.*needs control"):
        convert(_settings(input=sdxl_file, output=output))
    with pytest.raises(ValueError, match="overwrite=true"):
        convert(_settings(input=supir_file, output=sdxl_file))
    with pytest.raises(ValueError, match="must end in .safetensors"):
        convert(_settings(input=supir_file, output=tmp_path / "out.ckpt"))


def test_command_line_inspects_converts_and_answers_mistakes_in_one_line(
    tmp_path: Path,
    supir_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["convert", *arguments])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)  # a run leaves it behind
        main()
        return capsys.readouterr().out

    told = run(f"inspect={supir_file}")
    assert "SUPIR weights" in told and "connector: zerosft" in told and "float32" in told
    assert "control adaptor's depth: [0, 1], third" in told
    assert "missing for restoring with it: unet, vae, clip_l, clip_g" in told

    output = tmp_path / "out.safetensors"
    assert "layout: supir" in run(f"input={supir_file}", f"output={output}")
    with pytest.raises(SystemExit, match=f"error: {output} exists; set overwrite=true"):
        run(f"input={supir_file}", f"output={output}")
    output.write_bytes(output.read_bytes()[:-10])
    with pytest.raises(SystemExit, match="error: .*truncated, its header declares"):
        run(f"inspect={output}")


def test_weights_too_large_for_the_type_are_refused(tmp_path: Path) -> None:
    """Float16 ends at 65504; bfloat16 reaches as far as float32."""
    tensors = official_sdxl()
    tensors["model.diffusion_model.out.2.bias"][1] = 1e5
    save_file(tensors, tmp_path / "sdxl.safetensors")
    settings = {"input": tmp_path / "sdxl.safetensors", "format": "sdxl"}
    output = tmp_path / "out.safetensors"
    with pytest.raises(ValueError, match=r"out\.2\.bias does not fit into torch\.float16"):
        convert(_settings(**settings, output=output, dtype="float16"))
    assert not output.exists()
    convert(_settings(**settings, output=output, dtype="bfloat16"))


def test_values_that_are_not_finite_are_told_by_name(
    tmp_path: Path, supir_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = load_file(convert(_settings(input=supir_file, output=tmp_path / "good.safetensors")))
    assert "NaN" not in caplog.text
    key = next(name for name in good if "project_modules.0." in name)
    good[key].view(-1)[0] = float("nan")
    save_file(good, tmp_path / "bad.safetensors")
    convert(_settings(input=tmp_path / "bad.safetensors", output=tmp_path / "out.safetensors"))
    (line,) = [record.getMessage() for record in caplog.records if "NaN" in record.getMessage()]
    name = "connector.project_modules." + key.partition("project_modules.")[2]
    assert line == f"{name} holds NaN or infinity"
