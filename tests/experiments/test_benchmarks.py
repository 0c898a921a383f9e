"""The benchmark's arithmetic, its table, its inputs and its pipes.

The peers themselves only run in `make benchmark`.
"""

import dataclasses
from pathlib import Path
import sys

import jax
import numpy as np
import pytest

from rl_reason.arrays import Inputs
from rl_reason.experiments.benchmarks import inputs, learning, run, sampling, shapes, table, work
from rl_reason.models import pretrained, tokenizer, transformer
from rl_reason.rollout.generate import generate
from rl_reason.rollout.sampling import Sampling

TINY = dict(
    num_layers=2, width=3, num_heads=2, num_kv_heads=1, head_dim=4, mlp_hidden=5, vocab_size=7)


# Arithmetic.


def test_step_work_by_hand():
  # Layers: q 3·8, k and v 3·4 each, o 8·3, feed-forward 3 · 3·5 = 117 weights, twice: 234.
  # Vocabulary: 7·3 = 21. A pair of tokens costs 4 · 2 layers · 2 heads · 4 = 64.
  assert work.layer_weights(TINY) == 234
  w = work.step_work(TINY, prompts=1, prompt_tokens=2, lengths=[1, 3])
  # The prompt: 2 tokens, 1 + 2 pairs, the shared prediction. The completion of 3 reads 2 tokens:
  # 2·2 pairs with the prompt and 1 + 2 with itself. That of 1 reads none.
  prefill = 2 * 234 * 2 + 64 * 3 + 2 * 21
  decode = 2 * (234 + 21) * 2 + 64 * (2 * 2 + 3)
  assert (w.prefill, w.decode, w.reference, w.update) == (
      prefill, decode, prefill + decode, 3 * (prefill + decode))
  assert w.flops == 5 * (prefill + decode)
  # Two positions read all weights and the prompt's keys and values (16 numbers a token); then 1 + 2
  # of the completion's.
  assert w.decode_bytes == 4 * (2 * 255 + 16 * (2 * 2 + 3))
  # At 1 byte per second decoding waits for memory, at 1e9 for the arithmetic.
  rest = prefill + 4 * (prefill + decode)
  assert work.bound_seconds(
      w, flops_per_second=1e3, bytes_per_second=1) == w.decode_bytes + rest / 1e3
  assert work.bound_seconds(w, flops_per_second=1e3, bytes_per_second=1e9) == pytest.approx(
      w.flops / 1e3)


def test_the_shapes_are_the_models_they_are_named_after():
  for name, millions in (("a", 15.7), ("b", 134.5)):
    shapes_of = transformer.abstract_params(inputs.model_config(shapes.SHAPES[name]["model"]))
    count = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes_of))
    assert round(count / 1e6, 1) == millions


# Inputs.


@pytest.mark.parametrize(
    "model", [shapes.TINY, dict(shapes.TINY, family="llama")], ids=["qwen3", "llama"])
def test_eos_is_as_likely_everywhere_as_asked_and_padding_never_comes(model):
  config = inputs.model_config(model)
  tokens = np.random.default_rng(5).integers(2, config.vocab_size, (4, 60))

  @jax.jit
  def probabilities(params):
    hidden, _ = transformer.forward(config, params, Inputs(tokens, np.full(4, 60)))
    return jax.nn.softmax(transformer.unembed(config, params, hidden))
  of_eos = probabilities(inputs.make_params(config, 0.08))[..., inputs.EOS]
  np.testing.assert_allclose(of_eos, 0.08, rtol=0.25)  # At every position.
  np.testing.assert_allclose(of_eos.mean(), 0.08, rtol=0.05)
  never = probabilities(inputs.make_params(config, 0.0))
  assert never[..., [inputs.EOS, inputs.PAD]].max() < 1e-12


def test_half_of_the_completions_stop_by_the_share_asked_for(tmp_path):
  shape = shapes.SHAPES["tiny"]
  inputs.write(tmp_path / "model", shape)
  config, words = pretrained.read_config(tmp_path / "model"), tokenizer.load(tmp_path / "model")
  first = (tmp_path / "model/prompts.jsonl").read_text().splitlines()[0].split('"')[3]
  row = words.encode_prompt(first)
  assert len(row) == shape["prompt_tokens"] and min(row) > 1 and words.stop_ids == (inputs.EOS,)
  prompts = Inputs(tokens=np.array([row], np.int32), lengths=np.array([len(row)], np.int32))
  lengths = generate(
      config, pretrained.load(tmp_path / "model"), prompts,
      Sampling(max_tokens=shape["max_tokens"]), group_size=1024, rng=jax.random.key(0),
      stop_ids=words.stop_ids).lengths
  assert abs((lengths <= shape["max_tokens"] / 4).mean() - 0.5) < 0.06  # Four standard errors.
  assert abs((lengths == shape["max_tokens"]).mean() - 0.5 ** 4) < 0.03


def test_inputs_of_other_settings_are_replaced_and_equal_ones_kept(tmp_path):
  shape = shapes.SHAPES["tiny"]
  inputs.write(tmp_path, shape)
  written = (tmp_path / "model.safetensors").stat().st_mtime_ns
  inputs.write(tmp_path, shape)
  assert (tmp_path / "model.safetensors").stat().st_mtime_ns == written
  inputs.write(tmp_path, {**shape, "prompt_tokens": 5})
  assert len((tmp_path / "prompts.jsonl").read_text().splitlines()[0].split('"')[3].split()) == 5


# The table.


def results():
  """Two rounds. Ours 1 and 2 s, TRL 4 and 4 s; Tunix failed."""
  def step(seconds, **more):
    return dict(seconds=seconds, generated=12, trained=12, peak_mb=100.0 * seconds, **more)
  shape = dict(title="by hand", model=TINY, prompts=2, completions=2, prompt_tokens=2, max_tokens=3)
  versions = dict(rl_reason="1", jax="2", trl="3", torch="4")
  parts = dict(generate=0.5, reward=0.0, score=0.05, update=0.2)
  return dict(
      machine=dict(kind="m", device="cpu", cpu="M", cores=2, memory_gb=8.0), unfinished=None,
      shapes=dict(a=dict(
          command="c", commit="abc", date="2026-01-02T03:04:05+00:00", shape=shape,
          machine=[dict(gflops=1e-6, gigabytes=1.0), dict(gflops=2e-6, gigabytes=1.0)],
          systems=dict(
              ours=dict(device="cpu", versions=versions, first_step=dict(seconds=9.0),
                        first_step_cached=dict(seconds=5.0),
                        rounds=[step(1.0, parts=parts), step(2.0, parts=parts)]),
              trl=dict(device="cpu", versions=versions, first_step=dict(seconds=7.0),
                       rounds=[step(4.0), step(4.0)]),
              tunix=dict(rounds=[], failure="exit status 1; log ends:\nMemoryError")))))


def test_ratios_are_taken_round_by_round():
  summary = table.summarise(results()["shapes"]["a"])
  # The median of 4/1 and 4/2; that of the medians is 4/1.5.
  assert summary["trl"]["speedup"] == 3.0
  assert summary["ours"]["seconds"] == 1.5
  assert (summary["ours"]["low"], summary["ours"]["high"]) == (1.0, 2.0)
  assert summary["ours"]["generated"] == (12 + 6) / 2 and summary["trl"]["trained"] == 3.0
  assert summary["tunix"] == dict(failure="exit status 1; log ends:\nMemoryError")
  flops = work.step_work(TINY, prompts=2, prompt_tokens=2, lengths=[3.0] * 4).flops
  assert summary["ours"]["roofline"] == pytest.approx((flops / 1000 / 1 + flops / 2000 / 2) / 2)


def test_the_table_shows_each_system_and_what_failed():
  lines = table.render(results()).splitlines()
  assert lines[0] == "Measured on 2 cores of M, 8 GB."
  assert lines[4].startswith(
      "| (a) by hand | rl_reason | 9.0 (5.0) | 1.50 (1.00-2.00) | 9, 9 | 200 | ")
  assert lines[5].startswith("|  | TRL | 7.0 | 4.00 (4.00-4.00) | 3, 3 | 400 | ")
  assert lines[5].endswith("| 3.00x |")
  assert lines[6].startswith("|  | Tunix | failed |")
  assert "- Tunix failed in (a): exit status 1; MemoryError" in lines
  # Of 1 and 2 seconds: the medians of 50 and 25 %, 5 and 2.5 %, 20 and 10 %.
  assert "- (a) A step of rl_reason: generate 38%, reward 0%, score 4%, update 15%." in lines
  assert len({line.count("|") for line in lines[2:7]}) == 1


def test_absolute_figures_only_where_the_peaks_are_known(monkeypatch):
  entry = results()["shapes"]["a"]
  assert table.absolute(entry) is None
  entry["systems"]["ours"]["device"] = "abacus"
  monkeypatch.setitem(work.DEVICE_PEAKS, "abacus", (1e6, 1e5))
  w = work.step_work(TINY, prompts=2, prompt_tokens=2, lengths=[3.0] * 4)
  assert table.absolute(entry) == pytest.approx(dict(
      decode_bandwidth=w.decode_bytes / 0.5 / 1e5,
      update_mfu=(w.reference + w.update) / 0.25 / 1e6))


# Sampling alone.


def test_sampling_is_measured_with_and_without_pages_on_the_same_completions():
  settings = sampling.Settings(prompts=4, completions=2, prompt_tokens=6, max_tokens=12, slots=4)
  plain = sampling.measure(settings, shapes.TINY)
  paged = sampling.measure(
      dataclasses.replace(settings, page_tokens=4, prefill_tokens=4), shapes.TINY)
  assert plain["tokens"] == paged["tokens"] and plain["lengths"] == paged["lengths"]
  assert len(plain["seconds"]) == 1
  assert plain["lengths"][0] < plain["lengths"][-1] <= 12
  assert paged["page_tokens"] == 4


# The pipes.


@pytest.fixture
def worker(tmp_path, monkeypatch):
  """Starts a Worker from the given code.

  It runs in the benchmark's folder, as the peers' workers do.
  """
  workers = []

  def start(code):
    script = tmp_path / "worker.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(run.__file__).parent)!r})\n" + code)
    monkeypatch.setitem(run.COMMANDS, "trl", [sys.executable, str(script)])
    workers.append(run.Worker("trl", [], log=tmp_path / "log"))
    return workers[-1]
  yield start
  for each in workers:
    each.stop()


def test_a_worker_takes_one_step_at_a_time_and_its_prints_stay_out_of_the_pipe(worker, tmp_path):
  each = worker("""
from channel import Channel
channel = Channel()
print("from the library")
channel.ready("numpy", device="cpu")
for i in range(9):
  channel.wait()
  print("step", i)
  channel.answer(generated=i, trained=2 * i)
""")
  first = each.first_step()
  assert first["device"] == "cpu" and first["versions"]["numpy"] == np.__version__
  assert first["first_step"]["seconds"] >= first["first_step"]["import_seconds"] > 0
  step = each.step()
  assert (step["generated"], step["trained"]) == (1, 2)
  assert step["seconds"] < 1
  assert step["peak_mb"] > 1
  each.stop()
  assert each._process.returncode == 0
  assert (tmp_path / "log").read_text().split() == "from the library step 0 step 1".split()


def test_a_worker_that_fails_says_why(worker):
  with pytest.raises(run.WorkerFailed, match="(?s)exit status 1.*No room"):
    worker("raise MemoryError('No room')").first_step()


def test_one_failure_does_not_end_the_others():
  entry, workers = {}, {"trl": object(), "ours": object()}
  benchmark = run.Benchmark("tiny", ("ours", "trl"), 1, Path("."))
  with benchmark._reported(entry, "trl", workers):
    raise run.WorkerFailed("exit status 1")
  assert entry == dict(failure="exit status 1") and list(workers) == ["ours"]


# Learning curves.


def test_learning_curves_by_hand(tmp_path):
  seeds = [
      {"ours": {"reward": [0.0, 0.4], "pass@1": 0.6}, "trl": {"reward": [0.2, 0.4], "pass@1": 0.5}},
      {"ours": {"reward": [0.2, 0.8], "pass@1": 0.8}, "trl": {"reward": [0.2, 0.6], "pass@1": 0.9}}]
  found = learning.summary(seeds)
  assert found["held-out pass@1 at the end"]["ours"] == [0.6, 0.8]
  # Differences 0.1 and -0.1: mean 0, s = 0.1 √2, t = 12.7062, so 0 ± 1.27062.
  np.testing.assert_allclose(
      found["held-out pass@1 at the end"]["interval"], [-1.27062, 1.27062], rtol=1e-4)
  assert found["mean reward over all steps"]["trl"] == pytest.approx([0.3, 0.4])
  assert found["mean reward of the last tenth"]["difference"] == pytest.approx(0.1)
  assert "interval" not in learning.summary(seeds[:1])["mean reward over all steps"]
  learning.draw(seeds, tmp_path / "learning.png")
  assert (tmp_path / "learning.png").stat().st_size > 1000


def test_both_learners_are_asked_for_the_same():
  rl = learning.get_config("tiny").rl
  assert rl.objective.kl.to_dict() == dict(added_to="loss", estimator="k3", coef=0.04)
  assert (rl.learner.minibatches, rl.objective.mean_over, rl.credit.normalise) == (
      1, "sequence", "group_std")
  assert (rl.objective.clip_low, rl.objective.clip_high) == (0.2, 0.2)
  assert rl.learner.optimizer.schedule == "constant" and rl.learner.optimizer.warmup_steps == 0
