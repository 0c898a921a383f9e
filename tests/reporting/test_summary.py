"""The table at the end of a run, from hand-made lines of metrics."""

from rl_reason.reporting import summary


def evaluation(stage, step, value, k=None, seconds=2.0):
  line = {
      "stage": stage, "step": step, "eval/pass@1": value, "eval/pass@1_low": value - 0.1,
      "eval/pass@1_high": value + 0.1, "time/evaluation": seconds}
  return line | (
      {f"eval/pass@{k}": 0.9, f"eval/pass@{k}_low": 0.8, f"eval/pass@{k}_high": 1.0} if k else {})


def steps(stage, count, **values):
  return [
      {"stage": stage, "step": i + 1, "time/step": 0.5, "tokens": 100, **values}
      for i in range(count)]


def test_two_stages_by_hand():
  rl = steps("rl", 20, kl=9.0)
  rl[-2]["kl"], rl[-1]["kl"] = 0.01, 0.03  # The last tenth.
  lines = [evaluation("sft", 0, 0.1, k=8), *steps("sft", 4), evaluation("sft", 4, 0.3, k=8),
           *rl[:10], evaluation("rl", 10, 0.5, k=8), *rl[10:], evaluation("rl", 20, 0.8, k=8)]
  assert summary.summary(lines, ["sft", "rl"]) == [
      ["nothing", "0", "0.100 (0.000-0.200)", "0.900 (k=8)", "", "", ""],
      # 4 * 0.5 s of steps, 2 * 2 s of evaluations; 4 * 100 tokens in 2 s.
      ["sft", "4", "0.300 (0.200-0.400)", "0.900 (k=8)", "", "200", "6"],
      ["rl", "20", "0.800 (0.700-0.900)", "0.900 (k=8)", "0.0200", "200", "14"]]
  assert all(len(row) == len(summary.COLUMNS) for row in summary.summary(lines, ["sft", "rl"]))


def test_one_sample_per_problem_has_no_pass_at_k():
  rows = summary.summary(
      [evaluation("rl", 0, 0.1), *steps("rl", 1, kl=0.5), evaluation("rl", 1, 0.2)], ["rl"])
  assert [row[3] for row in rows] == ["", ""] and rows[1][4] == "0.5000"


def test_a_stage_that_trains_no_policy_shows_its_accuracy():
  last = {
      "stage": "rm", "step": 2, "eval/accuracy": 0.7, "eval/accuracy_low": 0.6,
      "eval/accuracy_high": 0.8}
  first = {"stage": "rm", "step": 0, "eval/accuracy": 0.0}
  assert summary.summary([first, *steps("rm", 2), last], ["rm"]) == [
      ["rm", "2", "accuracy 0.700 (0.600-0.800)", "", "", "200", "1"]]


def test_stages_without_steps_or_evaluations_leave_gaps():
  assert summary.summary([], ["sft", "rl"]) == []
  assert summary.summary(steps("sft", 2), ["sft", "rl"]) == [["sft", "2", "", "", "", "200", "1"]]
