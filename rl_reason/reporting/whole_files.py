"""Writes files that are there whole or not at all, on disks and in object stores (gs://, s3://)."""

from collections.abc import Iterator
import contextlib
import os
from pathlib import Path
import tempfile

from etils import epath

# The schemes of URLs that epath knows, as `gs://bucket/folder`.
SCHEMES = ("gs", "s3", "az", "hf")


def is_url(path: str | os.PathLike[str]) -> bool:
  """Tells whether a path is a URL of an object store, and not a path of a mounted disk."""
  return "://" in os.fspath(path)


def folder(path: str | os.PathLike[str], flag: str) -> epath.Path:
  """Returns the path of a folder that a user names: on a disk, or in an object store.

  Args:
    path: what the user wrote.
    flag: the flag or argument that holds it, for errors.
  Raises: ValueError for an empty path, and for a URL of an unknown scheme.
  """
  text = os.fspath(path)
  if not text.strip():
    raise ValueError(f"{flag} is empty: name a folder, such as {flag}=runs/mine.")
  scheme, separator, rest = text.partition(":/")
  if separator and "/" not in scheme and scheme not in SCHEMES and rest.startswith("/"):
    raise ValueError(
        f"{flag}={text} is a URL of an unknown kind: the known ones are"
        f" {', '.join(f'{s}://' for s in SCHEMES)}. Any other path is one on this machine.")
  if separator and scheme in SCHEMES and (not rest.startswith("/") or not rest.strip("/")):
    raise ValueError(f"{flag}={text} is no URL of a bucket: write {scheme}://bucket/folder.")
  return epath.Path(text)


def absolute(path: str | os.PathLike[str]) -> epath.Path:
  """Returns a path from the root on; a URL is one already, which epath's own `absolute` misses."""
  return epath.Path(path) if is_url(path) else epath.Path(path).absolute()


@contextlib.contextmanager
def local_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
  """Gives a folder on a disk, for libraries that know no URLs.

  Args:
    path: the folder that is meant.
  Yields: the folder itself; for a URL an empty one, whose files are uploaded at the context's end.
  """
  if not is_url(path):
    yield Path(path)
    return
  with tempfile.TemporaryDirectory() as temporary:
    yield Path(temporary)
    for file in sorted(p for p in Path(temporary).rglob("*") if p.is_file()):
      write_whole(epath.Path(path) / file.relative_to(temporary), file.read_bytes())


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
  """Writes a file in one step: a process that is killed leaves the old file or the new one.

  Args:
    path: the file; its folder is made if needed.
    content: what it will hold.
  """
  target = epath.Path(path)
  target.parent.mkdir(parents=True, exist_ok=True)
  # An object store shows an object once it is whole, and renames by copying.
  if is_url(target):
    target.write_bytes(content)
    return
  # A rename replaces the file in one step. The content is on the disk before it gets the name.
  partial = target.with_name(target.name + ".partial")
  with open(partial, "wb") as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
  os.replace(partial, target)
