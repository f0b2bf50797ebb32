"""Other programs that tests compare with; without them these tests are skipped.

Debian: libimage-exiftool-perl, imagemagick.
"""

import shutil

import pytest

MAGICK = next(filter(shutil.which, ("magick", "/usr/bin/convert", "convert-im6.q16")), "magick")
needs_magick = pytest.mark.skipif(shutil.which(MAGICK) is None, reason="ImageMagick is missing")
needs_exiftool = pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is missing")
