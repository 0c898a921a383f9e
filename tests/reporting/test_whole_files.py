"""Files that are there whole or not at all, and the folders that users name."""

from etils import epath
import pytest

from rl_reason.reporting.whole_files import absolute, folder, local_folder, write_whole


def test_a_file_is_replaced_in_one_step(tmp_path, monkeypatch):
  target = tmp_path / "new" / "file"
  write_whole(target, b"one")
  with monkeypatch.context() as killed:
    killed.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
      write_whole(target, b"two")
  assert target.read_bytes() == b"one"
  write_whole(target, b"three")
  assert target.read_bytes() == b"three"
  assert [p.name for p in target.parent.iterdir()] == ["file"]


def test_an_object_is_written_under_its_own_name(store):
  write_whole("gs://bucket/a/file", b"one")
  assert store.objects == {"gs://bucket/a/file": b"one"}


@pytest.mark.parametrize(
    "text", ["runs/a", "/tmp/a", "a:b/c", "gs://bucket/a", "s3://bucket", "C:/a"])
def test_folders_on_disks_and_in_stores(text):
  assert folder(text, "--workdir") == epath.Path(text)


@pytest.mark.parametrize("text, message", [
    ("", "--workdir is empty"),
    ("  ", "--workdir is empty"),
    ("gs:/bucket/a", "write gs://bucket/folder"),
    ("gs://", "write gs://bucket/folder"), ("https://host/a", "is a URL of an unknown kind"),
    ("gcs://bucket/a", "the known ones are gs://")])
def test_what_is_no_folder(text, message):
  with pytest.raises(ValueError, match=message):
    folder(text, "--workdir")


def test_a_url_is_absolute(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert str(absolute("gs://bucket/a")) == "gs://bucket/a"
  assert str(absolute("a")) == str(tmp_path / "a")


def test_a_folder_for_libraries_that_know_no_urls(store, tmp_path):
  with local_folder("gs://bucket/model") as local:
    (local / "part").mkdir()
    (local / "part" / "a").write_bytes(b"1")
    assert store.objects == {}
  assert store.objects == {"gs://bucket/model/part/a": b"1"}
  with local_folder(tmp_path) as local:
    assert local == tmp_path


def test_nothing_is_uploaded_after_an_error(store):
  with pytest.raises(OSError), local_folder("gs://bucket/model") as local:
    (local / "a").write_bytes(b"1")
    raise OSError
  assert store.objects == {}
