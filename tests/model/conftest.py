"""A real ffmpeg for the tests of reading audio."""

import os
import shutil
import sys

import imageio_ffmpeg
import pytest


@pytest.fixture
def real_ffmpeg(tmp_path_factory, monkeypatch):
    """Puts an `ffmpeg` first on the PATH and hides torchcodec: SAM_TEST_FFMPEG if it is set, else the one on the PATH,
    else that of the package imageio-ffmpeg."""
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    program = os.environ.get("SAM_TEST_FFMPEG") or shutil.which("ffmpeg") or imageio_ffmpeg.get_ffmpeg_exe()
    folder = tmp_path_factory.mktemp("bin")
    (folder / "ffmpeg").symlink_to(program)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return "ffmpeg"
