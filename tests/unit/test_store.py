"""The artifact store: atomic, checked, shared by several writers."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.s3 import S3Server, store_url
from workflows.errors import ArtifactCorrupt, ArtifactMissing, InvalidSettings, StoreAway
from workflows.store import Store
from workflows.types import Artifact, MediaType

KEY = "3f" + "0" * 30


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.mp4"
    path.write_bytes(b"frames" * 1000)
    return path


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(store_url(request, tmp_path), cache_dir=tmp_path / "cache")


def test_what_was_put_is_found_fetched_and_opened(store: Store, source: Path) -> None:
    artifact = store.put(KEY, source, media_type=MediaType.MP4, manifest={"seed": 7})
    assert store.find(KEY) == artifact
    assert store.exists(artifact)
    assert store.fetch(artifact).read_bytes() == source.read_bytes()
    with store.open(artifact) as stream:
        stream.seek(6)
        assert stream.read(6) == b"frames"
    manifest = store.manifest(KEY)
    assert manifest is not None
    assert manifest["made"] == {"seed": 7}


def test_a_key_never_put_is_not_found(store: Store) -> None:
    assert store.find(KEY) is None


def test_a_second_put_of_a_key_replaces_the_first_and_both_files_stay_whole(store: Store, source: Path) -> None:
    first = store.put(KEY, source, media_type=MediaType.MP4, manifest={})
    source.write_bytes(b"other")
    second = store.put(KEY, source, media_type=MediaType.MP4, manifest={})
    assert store.find(KEY) == second != first
    assert store.fetch(first).read_bytes() == b"frames" * 1000


def test_a_file_written_without_its_manifest_does_not_exist_for_readers(tmp_path: Path, source: Path) -> None:
    store = Store(str(tmp_path / "store"))
    artifact = store.put(KEY, source, media_type=MediaType.MP4, manifest={})
    Path(artifact.uri).with_name("manifest.json").unlink()
    assert store.find(KEY) is None


def test_a_key_whose_file_was_deleted_is_not_found_so_that_it_is_made_again(tmp_path: Path, source: Path) -> None:
    store = Store(str(tmp_path / "store"))
    artifact = store.put(KEY, source, media_type=MediaType.MP4, manifest={})
    Path(artifact.uri).unlink()
    assert store.find(KEY) is None


def test_damaged_bytes_are_refused_with_both_digests(tmp_path: Path, source: Path) -> None:
    store = Store(str(tmp_path / "store"))
    artifact = store.put(KEY, source, media_type=MediaType.MP4, manifest={})
    Path(artifact.uri).write_bytes(b"framez" * 1000)
    with pytest.raises(ArtifactCorrupt) as caught:
        store.fetch(artifact)
    assert caught.value.expected == artifact.sha256


def test_a_lost_file_is_named(store: Store, source: Path) -> None:
    artifact = store.put(KEY, source, media_type=MediaType.MP4, manifest={})
    gone = Artifact(key=KEY, uri=artifact.uri + ".gone", sha256="0" * 64, size_bytes=1, media_type=MediaType.MP4)
    assert not store.exists(gone)
    with pytest.raises(ArtifactMissing, match=r"\.gone is not in the store"):
        store.fetch(gone)


def test_racing_writers_leave_one_complete_result(tmp_path: Path) -> None:
    """Eight writers with different bytes, one key: the manifest always names a whole file."""
    store = Store(str(tmp_path / "store"))
    sources = []
    for number in range(8):
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(bytes([number]) * 50_000)
        sources.append(path)
    threads = [threading.Thread(target=store.put, args=(KEY, path),
                                kwargs={"media_type": MediaType.MP4, "manifest": {}}) for path in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    artifact = store.find(KEY)
    assert artifact is not None
    assert store.fetch(artifact).read_bytes() in [path.read_bytes() for path in sources]
    assert not list((tmp_path / "store").rglob("*.tmp"))


def test_a_store_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(InvalidSettings, match="cannot be written"):
        Store(str(tmp_path / "file" / "store"))
    with pytest.raises(InvalidSettings, match="cannot be used"):
        Store("nosuchprotocol://bucket/x")


@pytest.mark.parametrize("url", ["s3://flims/store", "s3://flims"])
def test_a_bucket_that_is_not_there_is_named_and_not_made(s3_server: S3Server, url: str) -> None:
    for _ in range(2):
        with pytest.raises(InvalidSettings, match="there is no bucket 'flims'"):
            Store(url)


class FullStore(Store):
    """On a disk that has room again after so many tries."""

    tries = 0
    room_after = 3

    def _write(self, source: Path, target: str, manifest: str) -> None:
        self.tries += 1
        if self.tries <= self.room_after:
            raise StoreAway(store=self.url, reason="[Errno 28] No space left on device")
        super()._write(source, target, manifest)


def test_what_is_done_waits_for_room(tmp_path: Path, source: Path) -> None:
    store = FullStore(str(tmp_path / "store"), patience_s=30)
    assert store.put(KEY, source, media_type=MediaType.MP4, manifest={}) == store.find(KEY)
    assert store.tries == 4


def test_without_patience_a_full_disk_is_told_at_once(tmp_path: Path, source: Path) -> None:
    store = FullStore(str(tmp_path / "store"))
    with pytest.raises(StoreAway, match=r"is away or full: .* No space left on device"):
        store.put(KEY, source, media_type=MediaType.MP4, manifest={})
    assert store.tries == 1


def test_a_disk_that_cannot_be_written_is_a_store_that_is_away(tmp_path: Path, source: Path) -> None:
    store = Store(str(tmp_path / "store"))
    # A file where the directory is to be: ENOTDIR, and not even root may.
    (tmp_path / "store" / KEY[:2]).write_text("in the way")
    with pytest.raises(StoreAway, match=r"store is away or full: .*Not a directory"):
        store.put(KEY, source, media_type=MediaType.MP4, manifest={})


def test_a_server_that_goes_away_and_comes_back(s3_server: S3Server, s3_url: str, tmp_path: Path, source: Path) -> None:
    hasty, patient = (Store(s3_url, cache_dir=tmp_path / "cache", patience_s=limit_s) for limit_s in (0, 60))
    before = hasty.put(KEY, source, media_type=MediaType.MP4, manifest={})
    s3_server.go_away()
    back = threading.Timer(1.5, s3_server.come_back)
    back.start()
    try:
        for question in (lambda: hasty.find(KEY), lambda: hasty.fetch(before), lambda: hasty.exists(before),
                         lambda: hasty.open(before)):
            with pytest.raises(StoreAway, match="Could not connect"):
                question()
        source.write_bytes(b"other")
        after = patient.put(KEY, source, media_type=MediaType.MP4, manifest={})
    finally:
        back.join()
    assert hasty.find(KEY) == after
