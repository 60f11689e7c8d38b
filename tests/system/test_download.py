"""Downloads from a local server: resumed, verified, and from the next mirror if one fails."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from convatlas.data.open import open_data
from convatlas.data.readers.idx import IDX_SETS, IdxSet
from convatlas.errors import DataError, MachineError
from convatlas.system.download import fetch
from server import CONTENT, Site, serving

DIGEST = hashlib.sha256(CONTENT).hexdigest()


def test_a_file_is_downloaded_and_verified(serve: Callable[..., Site], tmp_path: Path) -> None:
    site, path, reports = serve(), tmp_path / "new" / "folder" / "file", []
    assert fetch([site.url + "file"], path, DIGEST, progress=lambda *report: reports.append(report)) == path
    assert path.read_bytes() == CONTENT
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]
    assert reports[-1] == ("downloading file", len(CONTENT), len(CONTENT))


def test_a_valid_file_is_not_downloaded_again(serve: Callable[..., Site], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    site = serve()
    fetch([site.url + "file"], tmp_path / "file", DIGEST)
    assert site.requests == []


def test_a_damaged_file_is_downloaded_again(serve: Callable[..., Site], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT[:-1])
    fetch([serve().url + "file"], tmp_path / "file", DIGEST)
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("ranges", [True, False], ids=["server resumes", "server starts over"])
def test_a_partial_download_is_resumed(serve: Callable[..., Site], tmp_path: Path, ranges: bool) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:100_000])
    site, reports = serve(ranges=ranges), []
    fetch([site.url + "file"], tmp_path / "file", DIGEST, progress=lambda *report: reports.append(report))
    assert site.requests == [("/file", "bytes=100000-")]
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert reports[0][1] > 100_000 if ranges else reports[0][1] <= 100_000
    assert reports[-1][1:] == (len(CONTENT), len(CONTENT))


def test_a_complete_partial_file_is_only_verified(serve: Callable[..., Site], tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT)
    fetch([serve().url + "file"], tmp_path / "file", DIGEST)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_partial_file_with_other_content_is_replaced(serve: Callable[..., Site], tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"something else")
    site = serve()
    fetch([site.url + "file"] * 2, tmp_path / "file", DIGEST)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_an_interrupted_download_is_completed_by_the_next_call(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(cut=150_000)
    with pytest.raises(DataError, match="150,000 of 256,000 bytes"):
        fetch([site.url + "file"], tmp_path / "file", DIGEST)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.part"]
    assert (tmp_path / "file.part").read_bytes() == CONTENT[:150_000]
    fetch([site.url + "file"], tmp_path / "file", DIGEST)
    assert site.requests == [("/file", None), ("/file", "bytes=150000-")]
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("failure", ["404", "hangs up", "nonsense", "broken chunk"])
def test_the_second_mirror_is_used_if_the_first_fails(serve: Callable[..., Site], tmp_path: Path, failure: str) -> None:
    first, second = serve(failure=failure), serve()
    fetch([first.url + "file", second.url + "file"], tmp_path / "file", DIGEST)
    assert len(first.requests) == 1
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_the_second_mirror_is_used_if_the_first_does_not_exist(serve: Callable[..., Site], tmp_path: Path) -> None:
    with serving(Site({})) as gone:
        pass
    fetch([gone.url + "file", serve().url + "file"], tmp_path / "file", DIGEST)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_the_second_mirror_resumes_after_the_first(serve: Callable[..., Site], tmp_path: Path) -> None:
    first, second = serve(cut=1000), serve()
    fetch([first.url + "file", second.url + "file"], tmp_path / "file", DIGEST)
    assert second.requests == [("/file", "bytes=1000-")]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_the_second_mirror_starts_over_if_the_first_has_another_file(
    serve: Callable[..., Site], tmp_path: Path
) -> None:
    first, second = serve({"/file": b"an older version"}), serve()
    fetch([first.url + "file", second.url + "file"], tmp_path / "file", DIGEST)
    assert second.requests == [("/file", None)]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_wrong_digest_is_an_error_and_leaves_no_file(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve({"/file": CONTENT[::-1]})
    with pytest.raises(DataError, match=r"file: download failed: .*SHA-256"):
        fetch([site.url + "file"], tmp_path / "file", DIGEST)
    assert list(tmp_path.iterdir()) == []


def test_the_error_names_all_mirrors_in_one_line(serve: Callable[..., Site], tmp_path: Path) -> None:
    sites = [serve(failure="404"), serve({"/file": b"else"})]
    with pytest.raises(DataError) as caught:
        fetch([site.url + "file" for site in sites], tmp_path / "file", DIGEST)
    assert all(site.url in str(caught.value) for site in sites)
    assert "\n" not in str(caught.value)


def test_offline_sends_no_request(serve: Callable[..., Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVATLAS_OFFLINE", "1")
    site = serve()
    with pytest.raises(DataError, match="offline"):
        fetch([site.url + "file"], tmp_path / "file", DIGEST)
    assert site.requests == []


def test_the_error_names_a_folder_that_cannot_be_written(serve: Callable[..., Site], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(MachineError, match=r"taken.file: cannot be written"):
        fetch([serve().url + "file"], tmp_path / "taken" / "file", DIGEST)


@pytest.fixture
def mnist(
    serve: Callable[..., Site], idx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Site, Path]:
    """A synthetic MNIST on a local server, and the cache that it is downloaded into."""
    files = {f"/{path.name}": path.read_bytes() for path in idx_folder.iterdir()}
    digests = {name[1:]: hashlib.sha256(body).hexdigest() for name, body in files.items()}
    site, broken = serve(files), serve(files, failure="404")
    monkeypatch.setitem(IDX_SETS, "mnist", IdxSet((broken.url, site.url), digests))
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path / "cache"))
    return site, tmp_path / "cache"


def test_a_data_set_by_name_is_cached_and_then_works_offline(
    mnist: tuple[Site, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    site, cache = mnist
    assert len(open_data("mnist", download=True).classes) == 10
    assert sorted(path.name for path in (cache / "mnist").iterdir()) == sorted(IDX_SETS["mnist"].digests)
    monkeypatch.setenv("CONVATLAS_OFFLINE", "1")
    assert len(site.requests) == 4
    for allowed in (True, False):
        assert open_data("mnist", download=allowed).name == "mnist"
    assert len(site.requests) == 4


def test_a_data_set_is_not_downloaded_without_request(mnist: tuple[Site, Path]) -> None:
    site, cache = mnist
    with pytest.raises(DataError, match="--download"):
        open_data("mnist")
    assert site.requests == []
    assert not cache.exists()


def test_only_missing_files_of_a_data_set_are_downloaded(mnist: tuple[Site, Path]) -> None:
    site, cache = mnist
    open_data("mnist", download=True)
    missing = "t10k-images-idx3-ubyte.gz"
    (cache / "mnist" / missing).unlink()
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte"):
        open_data("mnist")
    open_data("mnist", download=True)
    assert [path for path, _ in site.requests[4:]] == [f"/{missing}"]


@pytest.mark.parametrize("name", IDX_SETS)
def test_published_digests_match_the_real_files(shared_data: Path, name: str) -> None:
    for file, digest in IDX_SETS[name].digests.items():
        assert hashlib.sha256((shared_data / name / file).read_bytes()).hexdigest() == digest
