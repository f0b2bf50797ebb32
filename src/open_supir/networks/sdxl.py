"""SDXL and SUPIR at their released sizes, as plain values that `build_network` understands.

conf/ says the same for training; here it is for files that carry no configuration of their own.
"""

from typing import Any

_LEVELS: dict[str, Any] = {
    "model_channels": 320,
    "channel_mult": [1, 2, 4],
    "num_res_blocks": 2,
    "head_channels": 64,
}
_TRUNK: dict[str, Any] = {"in_channels": 4, "context_dim": 2048, "vector_dim": 2816, **_LEVELS}
DEPTHS = {"full": [0, 2, 10], "half": [0, 1, 5], "third": [0, 1, 4]}
_CONNECTORS: dict[str, dict[str, Any]] = {
    "plain": {"_target_": "PlainConnector"},
    "residual": {"_target_": "ResidualConnector"},
    "cross_attention": {"_target_": "CrossAttentionConnector"},
    "zerosft": {"_target_": "ZeroSFTConnector", "cross_attention": False, "hidden": 128},
    "zerosft_released": {"_target_": "ZeroSFTConnector", "cross_attention": True, "hidden": 128},
}


def sdxl_architecture(
    *, control: str = "full", connector: str = "zerosft_released"
) -> dict[str, dict[str, Any]]:
    """Return what `build_network` needs, by part.

    Args:
        control: Depth of the adaptor: full as released, half as in the paper, or third.
        connector: An option of conf/connector.

    Raises:
        ValueError: One of them is unknown.
    """
    for setting, value, known in (
        ("control", control, DEPTHS),
        ("connector", connector, _CONNECTORS),
    ):
        if value not in known:
            raise ValueError(f"unknown {setting} {value!r}; known: {', '.join(known)}")
    return {
        "unet": {
            "_target_": "UNet",
            "out_channels": 4,
            "transformer_depth": DEPTHS["full"],
            **_TRUNK,
        },
        "control": {
            "_target_": "ControlAdaptor",
            "transformer_depth": DEPTHS[control],
            "sees_text": True,
            **_TRUNK,
        },
        "connector": _CONNECTORS[connector] | _LEVELS,
        "vae": {
            "_target_": "AutoencoderKL",
            "ch": 128,
            "ch_mult": [1, 2, 4, 4],
            "num_res_blocks": 2,
            "z_channels": 4,
            "scale_factor": 0.13025,
            "groups": 32,
        },
        "conditioner": {
            "_target_": "Conditioner",
            "clip_l": {
                "_target_": "TextTowerConfig",
                "width": 768,
                "layers": 12,
                "heads": 12,
                "quick_gelu": True,
            },
            "clip_g": {"_target_": "TextTowerConfig", "width": 1280, "layers": 32, "heads": 20},
            "size_channels": 256,
        },
    }
