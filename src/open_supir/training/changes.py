"""Settings in which a resumed run differs from the earlier one: refused, or logged."""

import logging
from collections.abc import Mapping
from typing import Any

from open_supir.base.run_folders import flatten

log = logging.getLogger(__name__)

# Another value of these would make another run.
FIXED = ("stage", "denoiser", "noise", "optim.kind", "optim.start_steps")
# Where, how often and for how long; copies of other settings; what the data module compares.
UNIMPORTANT = (
    "name", "run_dir", "runs_dir", "ckpt_path", "requeue", "replay", "is_debug", "plugins",
    "logger", "callbacks", "scale", "data.seed", "data.prepare", "data.prepare_at",
    "data.num_workers", "trainer.default_root_dir", "trainer.max_steps",
    "trainer.val_check_interval",
)  # fmt: skip


def check_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Compare the configuration of a resumed run with that of the run that resumes it.

    Changes that make another run of it are refused. All others are logged; they take effect from
    the first step on. The data plan is compared by the data module.

    Args:
        old, new: Configurations as in config.yaml; an empty `old` cannot be compared.

    Raises:
        ValueError: A setting was changed that must not be.
    """
    if not old:
        log.warning("the resumed checkpoint is in no run folder: settings cannot be compared")
        return
    changed = setting_changes(old, new)
    fixed = [text for key, text in changed.items() if _is_below(key, FIXED)]
    if fixed:
        raise ValueError(
            f"cannot resume with {'; '.join(fixed)}: restore these settings, or start a new run "
            "from the weights"
        )
    if changed:
        log.warning("resuming with other settings: %s", "; ".join(changed.values()))


def setting_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that differ, as key -> "key: old -> new".

    A setting that only one of them has counts where it may change what is trained.
    """
    before, after = flatten(old), flatten(new)
    changes = {}
    for key in dict.fromkeys([*before, *after]):
        is_in_both = key in before and key in after
        is_copy = key.startswith("module.") and key.count(".") > 1  # of one outside `module`
        if is_copy or _is_below(key, UNIMPORTANT) or before.get(key) == after.get(key):
            continue
        if is_in_both or _is_below(key, (*FIXED, "degradation")):
            values = (flat.get(key, "absent") for flat in (before, after))
            changes[key] = "{}: {} -> {}".format(key, *values)
    return changes


def _is_below(key: str, places: tuple[str, ...]) -> bool:
    return any(key == place or key.startswith(f"{place}.") for place in places)
