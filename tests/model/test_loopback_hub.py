"""The loopback Hub against the real `huggingface_hub` client, in processes of their own."""

import hashlib
import json
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request

import pytest
from loopback_hub import LoopbackHub

BIG = bytes(range(256)) * 2**13  # 2 MiB


@pytest.fixture
def hub():
    with LoopbackHub() as hub:
        yield hub


def run(hub, home, code):
    """Run `code` as a client of `hub`, with an empty cache in `home`; the process's output."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=hub.environment(home),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_folder_goes_up_and_comes_down_again(hub, tmp_path):
    folder = tmp_path / "up"
    (folder / "sub").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    (folder / "sub" / "notes.txt").write_text("é")
    (folder / "model.safetensors").write_bytes(BIG)
    code = f"""
        from huggingface_hub import HfApi
        api = HfApi()
        print(api.create_repo("acme/tiny", exist_ok=True).repo_id, api.create_repo("acme/tiny", exist_ok=True).repo_id)
        print(api.upload_folder(repo_id="acme/tiny", folder_path={str(folder)!r}, commit_message="Up").oid)
    """
    created, commit = run(hub, tmp_path / "home", code).splitlines()
    assert created == "acme/tiny acme/tiny"
    assert hub.files("acme/tiny") == {
        "README.md": b"---\nlicense: mit\n---\n# Tiny\n",
        "sub/notes.txt": "é".encode(),
        "model.safetensors": BIG,
    }
    assert [each.title for each in hub.commits("acme/tiny")] == ["initial commit", "Up"]
    assert hub.commits("acme/tiny")[-1].sha == commit

    # large files go through the LFS store, small ones in the commit
    stored = [line for line in hub.requests if line.startswith("PUT ")]
    assert stored == [f"PUT /lfs/{hashlib.sha256(BIG).hexdigest()}"]

    code = """
        import pathlib
        from huggingface_hub import hf_hub_download, snapshot_download
        folder = pathlib.Path(snapshot_download("acme/tiny"))
        print(folder.name)
        print(sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()))
        print(hf_hub_download("acme/tiny", "sub/notes.txt") == str(folder / "sub" / "notes.txt"))
        print((folder / "model.safetensors").stat().st_size)
    """
    name, files, same, size = run(hub, tmp_path / "other", code).splitlines()
    assert (name, same, int(size)) == (commit, "True", len(BIG))
    assert files == "['README.md', 'model.safetensors', 'sub/notes.txt']"


def test_revisions_deletions_and_what_is_listed(hub, tmp_path):
    code = """
        from huggingface_hub import HfApi
        api = HfApi()
        api.create_repo("acme/tiny")
        for content in (b"one", b"two"):
            api.upload_file(path_or_fileobj=content, path_in_repo="a.txt", repo_id="acme/tiny")
        api.upload_file(path_or_fileobj=b"x", path_in_repo="old/b.txt", repo_id="acme/tiny")
        api.create_branch("acme/tiny", branch="side")
        api.upload_file(path_or_fileobj=b"x", path_in_repo="c.txt", repo_id="acme/tiny", revision="side")
        api.delete_folder("old", repo_id="acme/tiny")
        print(sorted(api.list_repo_files("acme/tiny")), sorted(api.list_repo_files("acme/tiny", revision="side")))
        print(sorted(branch.name for branch in api.list_repo_refs("acme/tiny").branches))
    """
    files, branches = run(hub, tmp_path / "home", code).splitlines()
    assert files == "['a.txt'] ['a.txt', 'c.txt', 'old/b.txt']"
    assert branches == "['main', 'side']"
    first, second = (commit.sha for commit in hub.commits("acme/tiny")[1:3])
    assert hub.files("acme/tiny", first) == {"a.txt": b"one"}

    code = f"""
        from huggingface_hub import HfApi, hf_hub_download
        print(open(hf_hub_download("acme/tiny", "a.txt", revision="{first}")).read())
        print(open(hf_hub_download("acme/tiny", "a.txt")).read())
        print(HfApi().model_info("acme/tiny", revision="{second}").sha)
    """
    assert run(hub, tmp_path / "other", code).split() == ["one", "two", second]


ERRORS = {
    'hf_hub_download("acme/none", "a.txt")': "RepositoryNotFoundError",
    'hf_hub_download("acme/tiny", "none.txt")': "EntryNotFoundError",
    'hf_hub_download("acme/tiny", "a.txt", revision="none")': "RevisionNotFoundError",
    'HfApi(token="hf_other").create_repo("acme/new")': "401",
    'HfApi().create_repo("acme/tiny")': "409",
    'HfApi().upload_file(path_or_fileobj=b"# No metadata", path_in_repo="README.md", repo_id="acme/tiny")': (
        "the card has no metadata"
    ),
    'HfApi().upload_file(path_or_fileobj=b"late", path_in_repo="a.txt", repo_id="acme/tiny", parent_commit="0" * 40)': (
        "the branch has moved on"
    ),
}


def test_errors_reach_the_client_as_the_hubs_own(hub, tmp_path):
    code = f"""
        import json
        from huggingface_hub import HfApi, hf_hub_download
        HfApi().create_repo("acme/tiny")
        HfApi().upload_file(path_or_fileobj=b"one", path_in_repo="a.txt", repo_id="acme/tiny")
        errors = []
        for call in {list(ERRORS)!r}:
            try:
                eval(call)
            except Exception as error:
                errors.append(f"{{type(error).__name__}}: {{error}}")
            else:
                errors.append("none")
        print(json.dumps(errors))
    """
    found = json.loads(run(hub, tmp_path / "home", code))
    assert len(found) == len(ERRORS)
    assert [line for line, error in zip(found, ERRORS.values()) if error not in line] == []
    assert hub.files("acme/tiny") == {"a.txt": b"one"}


def test_content_that_is_not_what_its_name_says_is_refused(hub):
    request = urllib.request.Request(f"{hub.endpoint}/lfs/{'0' * 64}", data=b"other", method="PUT")
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request)
    assert not hub.objects


def test_part_of_a_file(hub, tmp_path):
    code = """
        from huggingface_hub import HfApi
        HfApi().create_repo("acme/tiny")
        HfApi().upload_file(path_or_fileobj=b"0123456789", path_in_repo="a.txt", repo_id="acme/tiny")
    """
    run(hub, tmp_path / "home", code)
    url = f"{hub.endpoint}/acme/tiny/resolve/main/a.txt"
    for asked, status, content in (
        ("bytes=4-", 206, b"456789"),
        ("bytes=2-3", 206, b"23"),
        (None, 200, b"0123456789"),
    ):
        request = urllib.request.Request(url, headers={"Range": asked} if asked else {})
        with urllib.request.urlopen(request) as answer:
            assert (answer.status, answer.read()) == (status, content)
            assert answer.headers["X-Repo-Commit"] == hub.commits("acme/tiny")[-1].sha
