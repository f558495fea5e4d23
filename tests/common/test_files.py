"""Files and folders appear whole or not at all, whatever ends the process that writes them; locks keep others out."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sam_lab.common import files
from sam_lab.common.files import locked, write_json, write_text, written

ROOT = Path(__file__).parents[2]


def run(code: str, folder: Path, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code], cwd=folder, env=environment, **options)


@pytest.mark.parametrize("folder", [False, True])
def test_nothing_appears_before_the_end_and_all_at_it(tmp_path, folder):
    path = tmp_path / "a.b"
    for content in ("old", "new"):
        with written(path, folder=folder) as place:
            file = place / "f" if folder else place
            file.write_text(content)
            assert not path.exists() if content == "old" else (path / "f" if folder else path).read_text() == "old"
        assert (path / "f" if folder else path).read_text() == content
        assert [item.name for item in tmp_path.iterdir()] == ["a.b"]


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there(tmp_path, folder, error):
    path = tmp_path / "a"
    with written(path, folder=folder) as place:
        (place / "f" if folder else place).write_text("old")
    with pytest.raises(error), written(path, folder=folder) as place:
        (place / "f" if folder else place).write_text("half")
        raise error
    assert (path / "f" if folder else path).read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("folder", [False, True])
def test_a_killed_process_leaves_the_old_content_and_the_next_one_tidies(tmp_path, folder):
    code = f"""
import os, signal
from sam_lab.common.files import written
for content in ("old", "half"):
    with written("a", folder={folder}) as place:
        (place / "f" if {folder} else place).write_text(content)
        if content == "half":
            os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run(code, tmp_path).wait() == -signal.SIGKILL
    path = tmp_path / "a"
    assert (path / "f" if folder else path).read_text() == "old"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a", "a.unfinished"]
    with written(path, folder=folder) as place:
        assert not folder or not list(place.iterdir())
        (place / "f" if folder else place).write_text("new")
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


def test_a_process_killed_while_it_replaces_a_folder_loses_nothing(tmp_path):
    code = """
import os, signal
from sam_lab.common import files
replace = os.replace
def kill_at_the_second(source, target):
    if str(source).endswith(".unfinished"):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
with files.written("a", folder=True) as place:
    (place / "f").write_text("old")
files.os.replace = kill_at_the_second
with files.written("a", folder=True) as place:
    (place / "f").write_text("new")
"""
    assert run(code, tmp_path).wait() == -signal.SIGKILL
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.replaced", "a.unfinished"]
    with pytest.raises(OSError), written(tmp_path / "a", folder=True):
        assert (tmp_path / "a" / "f").read_text() == "old"
        raise OSError
    assert (tmp_path / "a" / "f").read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


def test_what_is_published_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: calls.append("sync") or sync(descriptor))
    monkeypatch.setattr(files.os, "replace", lambda *paths: calls.append("rename") or replace(*paths))
    write_text("ä\n", tmp_path / "a.txt")
    assert calls == ["sync", "rename"] and (tmp_path / "a.txt").read_bytes() == "ä\n".encode()
    write_json({"ä": [1, None]}, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"ä": [1, None]}


def test_json_that_cannot_be_written_changes_nothing(tmp_path):
    write_json([1], tmp_path / "a.json")
    with pytest.raises(TypeError):
        write_json([object()], tmp_path / "a.json")
    assert (tmp_path / "a.json").read_text() == "[\n 1\n]\n" and len(list(tmp_path.iterdir())) == 1


def test_a_lock_keeps_another_process_out_and_ends_with_its_process(tmp_path):
    code = """
import sys, time
from pathlib import Path
from sam_lab.common.files import locked
with locked(Path(".")):
    print("locked", flush=True)
    time.sleep(60)
"""
    holder = run(code, tmp_path, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "locked\n"
    with pytest.raises(TimeoutError, match="another process is writing there"), locked(tmp_path, seconds=0):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with locked(tmp_path, seconds=5):
        assert (tmp_path / ".lock").exists()
    assert not list(tmp_path.iterdir())


def test_without_fcntl_the_lock_says_what_it_cannot(tmp_path):
    code = """
import sys
sys.modules["fcntl"] = None
from pathlib import Path
from sam_lab.common.files import locked, write_json
with locked(Path(".")):
    write_json(1, "a.json")
"""
    process = run(code, tmp_path, stderr=subprocess.PIPE, text=True)
    _, said = process.communicate()
    assert process.returncode == 0 and "not locked, since this system has no fcntl" in said
    assert (tmp_path / "a.json").read_text() == "1\n"
