"""What the page does, without the page: runs in a thread, cancelling, describing, files."""

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from open_supir.base.images import Photo
from open_supir.diffusion import Denoiser, SamplerSettings
from open_supir.inference import RestoreOptions, Restorer
from open_supir.inference.result import Restoration
from open_supir.webui.dials import DIALS, LABELS, dial_values, with_dials
from open_supir.webui.studio import PREVIEWS, Cancelled, Clock, Studio
from tests.inference.standins import (
    StandInConditioner,
    StandInNetwork,
    StandInRobustEncoder,
    StandInVae,
)

SETTINGS = SamplerSettings(num_steps=16, cfg_scale=2.0)
PHOTO = Photo(rgb=torch.rand(3, 12, 20, generator=torch.Generator().manual_seed(0)))


class SlowNetwork(StandInNetwork):
    """Counts its calls, and how many are made at once."""

    calls = at_once = most = 0
    seconds = 0.002  # a call takes

    def forward(self, x, t, cond, z_lq=None, control_scale=1.0) -> Tensor:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        time.sleep(self.seconds)
        self.calls, self.at_once = self.calls + 1, self.at_once - 1
        return super().forward(x, t, cond, z_lq, control_scale)


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    restorer = Restorer(
        SlowNetwork(), Denoiser(), StandInConditioner(), StandInVae(), StandInRobustEncoder(),
        sampler=SETTINGS, count_tokens=lambda text: len(text.split()),
    )  # type: ignore[arg-type]  # fmt: skip
    presets = {"own": restorer.options}
    return Studio(restorer, presets, {}, tmp_path, 1000, 2000, 3, 10**6, ("a model", "It can."))


def _run(studio: Studio, cancel: threading.Event | None = None):
    return studio.run(PHOTO, "", studio.restorer.options, cancel or threading.Event())


def test_a_run_shows_its_progress_and_ends_with_the_result(studio: Studio) -> None:
    *early, result = _run(studio)
    assert isinstance(result, Restoration) and result.restored.shape == PHOTO.rgb.shape
    assert [(event.done, event.total) for event in early] == [(n, 16) for n in range(1, 17)]
    pictures = [event.preview for event in early if event.preview is not None]
    assert len(pictures) == PREVIEWS and all(picture.shape[0] == 3 for picture in pictures)


def test_the_time_left_is_that_of_the_steps_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten steps, of which one takes 2 s: 16 s are left after the second, and none at the end."""
    clock, now = Clock(10), iter(range(100, 120, 2))
    monkeypatch.setattr("open_supir.webui.studio.time.monotonic", lambda: next(now))
    left = []
    for _ in range(10):
        clock.tick()
        left.append(clock.progress(None).seconds_left)
    assert left == [None, 16, 14, 12, 10, 8, 6, 4, 2, 0]


@pytest.mark.parametrize("after", [0, 3])
def test_cancelling_ends_the_run_at_the_next_step(studio: Studio, after: int) -> None:
    cancel, seen = threading.Event(), 0
    studio.restorer.network.seconds = 0.1  # far from its end when it is cancelled
    if after == 0:
        cancel.set()  # before its turn
    with pytest.raises(Cancelled):
        for _ in _run(studio, cancel):
            seen += 1
            if seen == after:
                cancel.set()
    assert studio.restorer.network.calls < SETTINGS.num_steps  # type: ignore[operator]
    studio.restorer.network.seconds = 0.002
    assert isinstance(list(_run(studio))[-1], Restoration)  # the next one goes through


def test_a_run_that_nobody_looks_at_any_more_ends(studio: Studio) -> None:
    """As when the tab is closed: the iterator is dropped, and the thread is not left behind."""
    before = threading.active_count()
    studio.restorer.network.seconds = 0.1  # far from its end when it is left
    run = _run(studio)
    next(run)
    run.close()
    assert threading.active_count() == before and not studio.busy.locked()
    assert studio.restorer.network.calls < SETTINGS.num_steps  # type: ignore[operator]


def test_requests_at_once_take_turns(studio: Studio) -> None:
    results: list = []
    threads = [threading.Thread(target=lambda: results.append(list(_run(studio)))) for _ in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3 and studio.restorer.network.most == 1


@pytest.mark.parametrize("error", [ValueError("bad"), KeyError("a bug")])
def test_errors_of_every_kind_come_out_instead_of_waiting_for_ever(
    studio: Studio, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(studio.restorer.network, "forward", broken)
    with pytest.raises(type(error)):
        list(_run(studio))


def test_describing_looks_at_the_cleaned_image_and_not_at_all_its_pixels(studio: Studio) -> None:
    seen: list[tuple[int, ...]] = []

    def captioner(image: Tensor, *, source: Path | None = None) -> str:
        seen.append(tuple(image.shape))
        return "words"

    assert not studio.can_describe
    studio.restorer.captioner = captioner
    assert studio.can_describe and studio.describe(PHOTO) == "words"
    studio.describe(Photo(rgb=torch.rand(3, 50, 4096)))
    assert seen == [(3, 12, 20), (3, 12, 1024)]


def test_saved_files_are_named_after_the_upload_and_hold_the_record(studio: Studio) -> None:
    options = RestoreOptions(sampler=SETTINGS, num_samples=2)
    *_, result = studio.run(PHOTO, "a cat", options, threading.Event())
    assert isinstance(result, Restoration)
    saved = studio.save(PHOTO, result, "../../my <photo>.jpeg")
    names = [Path(path).name for path in saved.paths]
    assert names == ["my _photo__restored.png", "my _photo__restored_2.png"]
    assert [name for name, _ in saved.pictures] == ["before", "cleaned", "sample 1", "sample 2"]
    assert (saved.chosen, saved.size, saved.shown_size) == ("sample 1", (12, 20), (12, 20))
    for path in [*saved.paths, *(path for _, path in saved.pictures)]:
        assert Path(path).resolve().is_relative_to(studio.folder.resolve())
        with Image.open(path) as image:
            assert image.size == (20, 12)
    with Image.open(saved.paths[0]) as image:
        kept = json.loads(image.info["restoration"])
    assert kept["caption"] == saved.record["caption"] == "a cat"


def test_three_samples_come_with_a_map_of_what_was_invented(studio: Studio) -> None:
    options = RestoreOptions(sampler=SETTINGS, num_samples=3)
    *_, result = studio.run(PHOTO, "a cat", options, threading.Event())
    assert isinstance(result, Restoration) and result.disagreement is not None
    saved = studio.save(PHOTO, result, "photo.png")
    assert Path(saved.paths[-1]).name == "photo.invented.png" and len(saved.paths) == 4
    assert saved.chosen == "sample 1" and saved.pictures[-1][0] == "invented"
    levels = np.asarray(Image.open(saved.paths[-1]))
    assert np.abs(levels - result.disagreement.numpy().clip(0, 255)).max() <= 0.51
    shown, first = (
        np.asarray(Image.open(dict(saved.pictures)[name])).astype(int)
        for name in ("invented", "sample 1")
    )
    weight = 0.8 * (result.disagreement.numpy() / 24).clip(0, 1)[..., None]
    expected = first * (1 - weight) + np.array([224, 28, 71]) * weight
    assert np.abs(shown - expected).max() <= 2


def test_limits_hold_for_the_upload_and_for_the_result(studio: Studio, tmp_path: Path) -> None:
    Image.new("RGB", (40, 20)).save(tmp_path / "photo.png")
    studio.read(str(tmp_path / "photo.png"), RestoreOptions())
    with pytest.raises(ValueError, match="80x40 pixels, limit 2000"):
        studio.read(str(tmp_path / "photo.png"), RestoreOptions(scale=2))
    Image.new("RGB", (40, 40)).save(tmp_path / "photo.png")
    with pytest.raises(ValueError, match="limit 1000"):
        studio.read(str(tmp_path / "photo.png"), RestoreOptions())


def test_dials_left_alone_change_nothing() -> None:
    for base in (
        RestoreOptions(),
        RestoreOptions(sampler=SamplerSettings(tau=4.0, num_steps=7), bits=16, scale=2.5),
    ):
        shown = dict(zip(DIALS, dial_values(base), strict=True))
        assert with_dials(base, shown) == base
    for wrong in ({"strength": 2}, {"seed": None}, {"seed": 0.5}, {"num_steps": 0}, {"tau": None}):
        with pytest.raises(ValueError, match=LABELS[next(iter(wrong))].partition(" (")[0]):
            with_dials(RestoreOptions(), shown | wrong)
