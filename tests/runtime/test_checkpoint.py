"""Checkpoints of a small state: whole or not at all, damaged ones set aside, old ones removed.

Full disks are told.
"""

import json
import os
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_reason.arrays import LearnerState
from rl_reason.runtime import checkpoint
from rl_reason.runtime.checkpoint import CheckpointMismatch, Checkpoints, read_params, saved_steps
from tests import environment

# Of orbax, when one part of a checkpoint cannot be read and the loading of the others is given up.
pytestmark = pytest.mark.filterwarnings(
    "ignore:coroutine .* was never awaited", "ignore::pytest.PytestUnraisableExceptionWarning")

HOST = {"data": {"next_index": 3},
        "resumable": {"rewards": {"memory": {"seen": [], "table": {}, "mean": 0.1}}}}


def state(step, scale=1.0):
  """Enough of all: float32, bfloat16, integers, booleans, a key-less tuple, an empty part."""
  rng = np.random.RandomState(step)
  w = (scale * rng.standard_normal((64, 33))).astype(np.float32)
  return LearnerState(
      step=jnp.int32(step),
      params={"w": jnp.asarray(w), "layer": {"b": jnp.asarray(w[0], jnp.bfloat16)}},
      opt_state=({"count": jnp.int32(step), "mu": jnp.asarray(w * w), "finite": jnp.asarray(True)},
                 ()))


def shape(like):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)


@pytest.fixture
def notes():
  return []


@pytest.fixture
def checkpoints(tmp_path, notes):
  made = Checkpoints(tmp_path / "stage", keep=2, note=notes.append)
  yield made
  made.close()


def save(checkpoints, *steps):
  for step in steps:
    checkpoints.save(step, state(step), {**HOST, "step": step})
  checkpoints.wait()


def reopened(folder, notes):
  return Checkpoints(folder / "stage", keep=2, note=notes.append)


def equal(one, other):
  return all(a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
             for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def test_nothing_saved_nothing_restored(checkpoints):
  assert checkpoints.steps == [] and checkpoints.restore(shape(state(1))) is None
  with pytest.raises(FileNotFoundError, match="train first, or name another --workdir"):
    checkpoints.restore_params(shape(state(1)).params)


def test_what_is_restored_is_what_was_saved(checkpoints, tmp_path, notes):
  save(checkpoints, 1, 2)
  again = reopened(tmp_path, notes)
  step, restored, host = again.restore(shape(state(2)))
  assert step == 2 and equal(restored, state(2)) and host == {**HOST, "step": 2}
  assert jax.tree.structure(restored) == jax.tree.structure(state(2))
  step, params = again.restore_params(shape(state(2)).params)
  assert step == 2 and equal(params, state(2).params)
  assert notes == []
  again.close()


def test_a_restored_array_lies_where_it_is_asked_to(checkpoints):
  save(checkpoints, 1)
  mesh = jax.make_mesh((4,), ("fsdp",), devices=jax.devices()[:4])
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(
          x.shape, x.dtype, sharding=split if x.shape[:1] == (64,) else whole), state(1))
  _, restored, _ = checkpoints.restore(abstract)
  assert restored.params["w"].sharding == split and equal(restored, state(1))


def test_the_state_may_be_donated_while_it_is_saved(checkpoints):
  one = state(1)
  checkpoints.save(1, one, HOST)
  bump = jax.jit(
      lambda s: jax.tree.map(lambda x: x + x if x.dtype != bool else x, s), donate_argnums=0)
  bump(one)
  checkpoints.wait()
  assert equal(checkpoints.restore(shape(state(1)))[1], state(1))


def test_the_newest_ones_are_kept(checkpoints, tmp_path):
  save(checkpoints, 1, 2, 3, 4, 5)
  assert checkpoints.steps == [4, 5]
  checkpoints.close()
  assert sorted(p.name for p in (tmp_path / "stage").iterdir()) == ["4", "5"]


def largest_file(folder):
  return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_a_byte(folder):
  file = largest_file(folder)
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 0x40
  file.write_bytes(content)


def truncate(folder):
  file = largest_file(folder)
  os.truncate(file, file.stat().st_size // 2)


def delete(folder):
  largest_file(folder).unlink()


def delete_host(folder):
  for p in (folder / "host").rglob("*"):
    if p.is_file():
      p.unlink()


@pytest.mark.parametrize("damage", [flip_a_byte, truncate, delete, delete_host])
def test_a_damaged_checkpoint_is_named_and_set_aside_and_the_one_before_is_used(
    checkpoints, tmp_path, notes, damage):
  save(checkpoints, 1, 2)
  checkpoints.close()
  damage(tmp_path / "stage" / "2")
  again = reopened(tmp_path, notes)
  step, restored, host = again.restore(shape(state(1)))
  assert step == 1 and equal(restored, state(1)) and host["step"] == 1
  [note] = notes
  assert str(tmp_path / "stage" / "2") in note and "set aside as corrupt-2" in note
  assert (tmp_path / "stage" / "corrupt-2").is_dir() and again.steps == [1]
  # The step can be saved anew.
  save(again, 2)
  assert again.restore(shape(state(2)))[0] == 2
  again.close()


def test_a_flipped_byte_never_comes_back_as_another_state(checkpoints, tmp_path, notes):
  # A few places over the largest file, one after the other; what they hold may also be nothing that
  # is read.
  save(checkpoints, 1)
  checkpoints.close()
  file = largest_file(tmp_path / "stage" / "1")
  whole = file.read_bytes()
  for place in np.linspace(0, len(whole) - 1, 6).astype(int):
    content = bytearray(whole)
    content[place] ^= 1
    file.write_bytes(content)
    again = reopened(tmp_path, notes)
    restored = again.restore(shape(state(1)))
    again.close()
    assert restored is None or equal(restored[1], state(1)), f"byte {place} of {file} was changed"
    if restored is None:
      (tmp_path / "stage" / "corrupt-1").rename(tmp_path / "stage" / "1")
  assert len(notes) >= 4


def test_all_damaged_leaves_none(checkpoints, tmp_path, notes):
  save(checkpoints, 1, 2)
  checkpoints.close()
  for step in ("1", "2"):
    delete(tmp_path / "stage" / step)
  again = reopened(tmp_path, notes)
  assert again.restore(shape(state(1))) is None
  assert len(notes) == 2 and again.steps == []
  again.close()


def test_a_checkpoint_damaged_twice_is_set_aside_twice(checkpoints, tmp_path, notes):
  # The same step, saved again after the first repair and damaged again: the name corrupt-1 is
  # taken.
  save(checkpoints, 1)
  checkpoints.close()
  for _ in range(2):
    delete(tmp_path / "stage" / "1")
    again = reopened(tmp_path, notes)
    assert again.restore(shape(state(1))) is None
    save(again, 1)
    again.close()
  assert len(notes) == 2


def test_half_written_folders_are_not_checkpoints(checkpoints, tmp_path, notes):
  save(checkpoints, 1)
  checkpoints.close()
  for name in ("2.orbax-checkpoint-tmp-1700000000000", "2.orbax-checkpoint-tmp"):
    (tmp_path / "stage" / name / "params").mkdir(parents=True)
    (tmp_path / "stage" / name / "params" / "_METADATA").write_text("{")
  again = reopened(tmp_path, notes)
  assert again.steps == [1] and again.restore(shape(state(1)))[0] == 1 and notes == []
  save(again, 2)
  assert again.steps == [1, 2]
  again.close()


def test_of_a_damaged_checkpoint_the_one_before_is_evaluated_and_nothing_is_moved(
    checkpoints, tmp_path, notes):
  save(checkpoints, 1, 2)
  checkpoints.close()
  flip_a_byte(tmp_path / "stage" / "2" / "params")
  again = reopened(tmp_path, notes)
  step, params = again.restore_params(shape(state(1)).params)
  assert step == 1 and equal(params, state(1).params) and again.steps == [1, 2]
  assert len(notes) == 1 and str(tmp_path / "stage" / "2") in notes[0]
  flip_a_byte(tmp_path / "stage" / "1" / "params")
  with pytest.raises(ValueError, match=re.escape(f"[1, 2] in {tmp_path / 'stage'} can be read")):
    again.restore_params(shape(state(1)).params)
  again.close()


def other(**changes):
  """The state whose arrays are asked for where a field of the config was changed."""
  return shape(state(2)).replace(**changes)


MISMATCHES = {
    "another_optimizer": (
        other(opt_state=({"count": jax.ShapeDtypeStruct((), jnp.int32)}, ())),
        "optimizer/opt_state/0/finite is bool[] there and absent here"),
    "no_clipping": (
        other(opt_state=shape(state(2)).opt_state[0]),
        "optimizer/opt_state/0/count is int32[] there and absent here"),
    "an_empty_part_less": (
        other(opt_state=shape(state(2)).opt_state[:1]),
        "optimizer/opt_state/1 is empty there and absent here"),
    "another_width": (
        other(params={**shape(state(2)).params, "w": jax.ShapeDtypeStruct((64, 32), jnp.float32)}),
        "params/w is float32[64, 33] there and float32[64, 32] here"),
    "another_dtype": (
        other(params={**shape(state(2)).params, "w": jax.ShapeDtypeStruct((64, 33), jnp.bfloat16)}),
        "params/w is float32[64, 33] there and bfloat16[64, 33] here"),
    "a_critic": (
        other(params={"critic": jax.ShapeDtypeStruct((3,), jnp.float32), **shape(state(2)).params}),
        "params/critic is absent there and float32[3] here"),
}


def tree(folder):
  """All files below a folder, with their sizes."""
  return {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*")}


@pytest.mark.parametrize("asked, difference", MISMATCHES.values(), ids=MISMATCHES)
def test_other_arrays_are_a_mismatch_and_nothing_is_moved(
    checkpoints, tmp_path, notes, asked, difference):
  save(checkpoints, 1, 2)
  before = tree(tmp_path)
  with pytest.raises(CheckpointMismatch, match=re.escape(difference)) as error:
    checkpoints.restore(asked)
  assert str(tmp_path / "stage" / "2") in str(error.value)
  assert tree(tmp_path) == before
  assert notes == []
  step, restored, _ = checkpoints.restore(shape(state(2)))
  assert step == 2
  assert equal(restored, state(2))


def test_a_reader_names_a_mismatch_of_the_parameters(checkpoints, tmp_path):
  save(checkpoints, 1)
  asked = {"w": jax.ShapeDtypeStruct((64, 33), jnp.float32)}
  with pytest.raises(
      CheckpointMismatch, match=re.escape("params/layer/b is bfloat16[33] there and absent here")):
    read_params(tmp_path / "stage", asked)


def test_a_mismatch_is_named_without_a_layout_of_our_own(checkpoints, tmp_path, monkeypatch):
  # A checkpoint of an earlier version: its text names no arrays, and orbax's own description does.
  monkeypatch.setattr(checkpoint, "json", types.SimpleNamespace(
      loads=json.loads,
      dumps=lambda text: json.dumps({k: v for k, v in text.items() if k != "layout"})))
  save(checkpoints, 2)
  assert equal(checkpoints.restore(shape(state(2)))[1], state(2))
  for asked, difference in MISMATCHES.values():
    with pytest.raises(CheckpointMismatch, match=re.escape(difference)):
      checkpoints.restore(asked)
  assert saved_steps(tmp_path / "stage") == [2]


def test_damaged_plain_data_are_found_by_their_own_checksum(
    checkpoints, tmp_path, notes, monkeypatch):
  # The text that is saved is not the one that was summed, as if a byte of it had changed on the
  # disk.
  with monkeypatch.context() as damaged:
    damaged.setattr(checkpoint, "zlib", types.SimpleNamespace(crc32=lambda text: 1))
    save(checkpoints, 1)
  assert checkpoints.restore(shape(state(1))) is None
  assert "its plain data are not the ones that were saved" in notes[0]


def test_a_reader_changes_nothing_beside_a_training(checkpoints, tmp_path, notes):
  # What a training has under way: a checkpoint that is half written, and a damaged one.
  save(checkpoints, 1, 2)
  flip_a_byte(tmp_path / "stage" / "2" / "params")
  half = tmp_path / "stage" / "3.orbax-checkpoint-tmp"
  (half / "params").mkdir(parents=True)
  (half / "params" / "_METADATA").write_text("{")
  before = tree(tmp_path)
  step, params = read_params(tmp_path / "stage", shape(state(1)).params, note=notes.append)
  assert step == 1
  assert equal(params, state(1).params)
  assert tree(tmp_path) == before
  assert len(notes) == 1


def test_a_reader_makes_no_folder(tmp_path):
  with pytest.raises(FileNotFoundError, match="train first"):
    read_params(tmp_path / "none", {})
  assert not (tmp_path / "none").exists()


def test_a_reader_looks_into_an_object_store(store):
  store.objects["gs://bucket/rl/7/host/d"] = b""
  with pytest.raises(FileNotFoundError, match="No checkpoint in gs://bucket/rl: train first"):
    read_params("gs://bucket/rl", {})  # Not finished: it lacks orbax's mark.
  store.objects["gs://bucket/rl/7/commit_success.txt"] = b""
  assert saved_steps("gs://bucket/rl") == [7]


def test_a_reader_goes_on_with_a_newer_checkpoint_if_its_own_is_removed(
    checkpoints, tmp_path, notes, monkeypatch):
  # The training saves twice while the reader has opened the first one, which is then removed.
  save(checkpoints, 1)
  load, removed = checkpoint._load, []

  def slow(path, parts):
    if not removed:
      removed.append(path)
      save(checkpoints, 2, 3)
    return load(path, parts)
  monkeypatch.setattr(checkpoint, "_load", slow)
  step, params = read_params(tmp_path / "stage", shape(state(1)).params, note=notes.append)
  assert removed[0].name == "1"
  assert step == 3
  assert equal(params, state(3).params)
  assert notes == []


FULL_DISK = '''
import resource, signal, sys
from tests.runtime.test_checkpoint import HOST, shape, state
from rl_reason.runtime.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1], keep=2)
checkpoints.save(1, state(1), HOST)
checkpoints.wait()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
try:
  checkpoints.save(2, state(2), HOST)
  checkpoints.wait()
except OSError as error:
  print("Raised:", error)
'''


def test_a_full_disk_is_told_and_the_checkpoints_before_stay(tmp_path, notes):
  done = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path / "stage"], env=environment(),
                        capture_output=True, text=True, timeout=120)
  raised = done.stdout[done.stdout.find("Raised:"):]
  assert f"could not be written to {tmp_path / 'stage'}" in raised, done.stderr
  assert "[1], are whole" in raised
  assert "Free some space" in raised
  assert "run the same command again" in raised
  again = reopened(tmp_path, notes)
  assert again.steps == [1] and equal(again.restore(shape(state(1)))[1], state(1)) and notes == []
  again.close()
