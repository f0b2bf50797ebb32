"""What the page says: about the model, the size of the result, times."""

from open_supir.base.places import SHIPPED_MODEL, located
from open_supir.inference.model import Model
from open_supir.inference.options import RestoreOptions
from open_supir.inference.restorer import Restorer

PRESETS_SIZE = 512  # models trained at smaller pictures have no use for the presets


def duration(seconds: float) -> str:
    """Return a duration as 3.4 s, 24 s, 2 min 5 s or 1 h 10 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def time_left(seconds: float) -> str:
    """Return a rough duration: about 24 s left, about 3 min left."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s left"
    return f"about {duration(round(seconds / 60) * 60).removesuffix(' 0 s')} left"


def size_of(height: int, width: int) -> str:
    """Return a size as width x height."""
    return f"{width} x {height}"


def planned(size: tuple[int, int], options: RestoreOptions) -> str:
    """Return what will come of an image of a size (H, W), before it is restored."""
    out, inner = options.output_size(*size), options.working_size(*size)
    count = f"{options.num_samples} results of" if options.num_samples > 1 else "result"
    text = f"Input {size_of(*size)}, {count} {size_of(*out)} pixels"
    if inner != out and options.strength > 0:
        text += f", worked on at {size_of(*inner)}"
    return text


def about(model: Model, restorer: Restorer, *, runs_dir: str) -> tuple[str, str]:
    """Return which model is loaded, in a few words, and what it can do, in sentences."""
    path = model.checkpoint
    if path == located(SHIPPED_MODEL):
        name = f"{path.name} (the one that ships with open-supir)"
    elif path.resolve().is_relative_to(located(runs_dir).resolve()):
        name = str(path.resolve().relative_to(located(runs_dir).resolve()))
    else:
        name = path.name
    parts = (restorer.network, restorer.conditioner, restorer.vae, restorer.robust_encoder)
    millions = sum(p.numel() for part in parts for p in part.parameters()) / 1e6
    side = min(restorer.options.size_condition or (0, 0))
    trained = f"trained on pictures of {side} x {side} pixels" if side else ""
    kept = f"{model.quantize} weights" if model.quantize else model.dtype
    device = {"cpu": "the processor", "cuda": "the GPU"}.get(restorer.device.type, "the device")
    facts = [f"{millions:,.0f} million parameters", trained, f"{kept} on {device}"]
    can = ["It takes away noise, blur and compression, draws fine detail anew, and can enlarge."]
    if 0 < side < PRESETS_SIZE:
        can.append(
            "It is small: it knows textures and colours, not objects, and works best with the "
            "checkpoint's own settings; the presets are made for SDXL's size."
        )
    return name, f"{', '.join(filter(None, facts))}. {' '.join(can)}"
