"""Walking folders: links are followed, each folder once."""

import os
from pathlib import Path

from open_supir.base.folders import LINKED, TWICE, walk


def test_linked_folders_are_walked_once_and_circles_end(tmp_path: Path) -> None:
    far = tmp_path / "far"
    far.mkdir()
    (far / "b.jpg").touch()
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "a.jpg").touch()
    (root / ".hidden").touch()
    (root / "broken").symlink_to("nowhere")
    (root / "linked").symlink_to(far)
    (root / "sub/circle").symlink_to(root)
    skipped: list[tuple[Path, str]] = []
    found = dict(walk(root, lambda path, why: skipped.append((path, why))))
    assert found == {root: ["a.jpg", "broken"], root / "linked": ["b.jpg"], root / "sub": []}
    assert skipped == [(root / "sub/circle", TWICE)]
    skipped.clear()
    found = dict(walk(root, lambda p, w: skipped.append((p, w)), follow_links=False))
    assert set(found) == {root, root / "sub"}
    assert skipped == [(root / "linked", LINKED), (root / "sub/circle", LINKED)]


def test_a_folder_that_cannot_be_listed_is_said(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        root = tmp_path / "nowhere"  # nothing is forbidden to root
    else:
        root = tmp_path / "closed"
        root.mkdir(mode=0)
    skipped: list[tuple[Path, str]] = []
    assert list(walk(root, lambda path, why: skipped.append((path, why)))) == []
    assert skipped[0][0] == root and skipped[0][1].startswith("folder cannot be listed")
