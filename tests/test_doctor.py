"""The doctor names what is missing and the cure, in installations that are broken in many ways."""

import json
import subprocess
import sys

import pytest

from rl_reason import doctor
from tests import ROOT


def run(python=sys.executable):
  """(exit status, findings by name) of the doctor in a process of its own."""
  done = subprocess.run([python, "-m", "rl_reason.doctor", "--json"], cwd=ROOT,
                        capture_output=True, text=True)
  assert done.stdout.startswith("{"), done.stderr
  report = json.loads(done.stdout)
  assert report["needed_is_here"] == (done.returncode == 0)
  return done.returncode, {finding["name"]: finding for finding in report["findings"]}


@pytest.fixture
def importable(tmp_path, monkeypatch):
  """Writes modules that the probe's processes can import: name -> code. Their JAX is a fake one."""
  monkeypatch.syspath_prepend(tmp_path)
  def write(jax="def local_devices(): return []", **modules):
    for name, code in {"jax": jax, **modules}.items():
      (tmp_path / f"{name}.py").write_text(code)
  return write


# Whole reports.


def test_what_the_tests_run_on_is_enough():
  status, found = run()
  assert status == 0
  assert {f["status"] for f in found.values()} <= {"ok", "look"}
  assert found["cpu"]["value"].startswith("8 x cpu")  # The tests' fake devices.
  assert found["math-verify in a worker"]["status"] == "ok"
  assert found["memory limit"]["status"] == "ok" or sys.platform == "darwin"


def test_a_python_without_any_package_is_told_how_to_install_each(tmp_path):
  subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
  status, found = run(python=str(tmp_path / "bare/bin/python"))
  assert status == 1
  for need in doctor.requirements(ROOT):
    assert found[need.package]["cure"] == f'python -m pip install "{need.line}"'
  assert "No module named 'jax'" in found["devices"]["value"]
  assert found["compiled programs"]["status"] == "look"
  assert found["time limit"]["status"] == "ok"


# The probe.


def test_a_jax_that_cannot_be_imported_is_a_line_of_the_report(importable):
  importable(jax="raise RuntimeError('jaxlib is of another version')")
  probed = doctor.probe(["jax", "safetensors"])
  found = {f.name: f for f in doctor.look_at_versions(ROOT, probed)}
  assert "RuntimeError: jaxlib is of another version" in found["jax"].value
  assert found["jax"].cure.startswith("python -m pip install --force-reinstall")
  assert found["safetensors"].status == "ok"
  devices = list(doctor.look_at_devices(probed))[-1]
  assert devices.status == "missing"


def test_a_module_that_ends_its_process_hides_no_other(importable):
  importable(fine="", dies="import os; os._exit(7)", last="")
  found = doctor.probe(["fine", "dies", "last"])
  assert found["fine"] == {"value": None}
  assert "it ended its process with status 7" in found["dies"]["error"]
  assert found["last"] == {"value": None}


def test_a_module_that_hangs_is_given_up(importable):
  importable(fine="", hangs="import time; time.sleep(60)")
  found = {}
  doctor._probe_once(["fine", "hangs"], found, timeout_seconds=2.0)
  assert found == {"fine": {"value": None}, "hangs": {"error": "it did not end within 2 s"}}


def test_a_module_that_prints_disturbs_nothing(importable):
  importable(talks="print('hello'); print('{\"done\": \"talks\", \"error\": \"x\"}')")
  assert doctor.probe(["talks"])["talks"] == {"value": None}


def test_a_plugin_that_fails_to_start_is_missing_and_the_cure_names_the_variable(importable):
  importable(jax="def local_devices(): raise RuntimeError('Unable to initialize backend tpu')")
  found = doctor.probe(["jax"])
  devices, = [f for f in doctor.look_at_devices(found) if f.name == "devices"]
  assert devices.status == "missing"
  assert devices.value == "RuntimeError: Unable to initialize backend tpu"
  assert "JAX_PLATFORMS" in devices.cure


# Single looks.


def test_a_package_that_is_too_old_is_missing(monkeypatch):
  monkeypatch.setattr(doctor, "installed", lambda package: "0.9.9rc1")
  found = {f.name: f for f in doctor.look_at_versions(ROOT, {})}
  assert found["jax"].status == "missing"
  assert found["jax"].value.startswith("0.9.9rc1, at least ")
  assert found["grain"].status == "ok"  # 0.2.12 or newer, and 9 is more than 2.


@pytest.mark.parametrize(
    "version, numbers", [("0.12.0.1", (0, 12, 0, 1)), ("26.0rc1", (26, 0)), ("v3", ())])
def test_versions_are_compared_as_numbers(version, numbers):
  assert doctor.as_numbers(version) == numbers


def test_every_requirement_is_understood():
  lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines()
           if line and not line.startswith("#")]
  assert [need.line for need in doctor.requirements(ROOT)] == lines


def test_the_extras_are_those_of_setup_py():
  text = (ROOT / "setup.py").read_text()
  for extra, (requirement, _, _) in doctor.EXTRAS.items():
    assert f'"{extra}": ["{requirement}"]' in text


def test_a_cache_that_cannot_be_written_is_worth_a_look(tmp_path):
  file = tmp_path / "file"
  file.write_text("")
  programs, _ = doctor.look_at_folders({"cache": {"value": str(file / "compiled")}})
  assert programs.status == "look"
  assert "RL_REASON_CACHE" in programs.cure


def test_a_temporary_folder_that_cannot_be_written_is_missing(tmp_path, monkeypatch):
  monkeypatch.setattr(doctor.tempfile, "gettempdir", lambda: str(tmp_path / "file"))
  (tmp_path / "file").write_text("")
  _, temporary = doctor.look_at_folders({})
  assert temporary.status == "missing"
  assert "TMPDIR" in temporary.cure


def test_a_sandbox_that_cannot_start_is_missing(monkeypatch):
  def refuse(*_, **__):
    raise OSError("Resource temporarily unavailable")
  monkeypatch.setattr(doctor.pool, "WorkerPool", refuse)
  workers, = doctor.look_at_sandbox()
  assert workers.status == "missing"
  assert workers.value == "Resource temporarily unavailable"


def test_the_report_ends_with_what_is_missing_and_its_cure(capsys):
  doctor.report([doctor.Finding("Versions", "jax", "not installed", "missing", "pip install jax")])
  assert capsys.readouterr().out.endswith("Missing (!):\n   jax: pip install jax.\n")


def test_the_report_ends_well_where_nothing_is_missing(capsys):
  doctor.report([doctor.Finding("Versions", "jax", "0.11")])
  assert capsys.readouterr().out.endswith("\nAll needed is here.\n")
