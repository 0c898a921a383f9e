"""A run tells chat templates one date, whatever day it continues on."""

import datetime
import json

import pytest

from rl_reason.models import tokenizer as tokenizers
from rl_reason.models.config import small
from rl_reason.models.sources import Policy, PolicySource
from rl_reason.run import context, workdir
from rl_reason.run.config import RunConfig
from rl_reason.run.workdir import Workdir
from tests.models.test_tokenizer import model_directory

DAYS = [datetime.date(2026, 1, 30), datetime.date(2026, 2, 1)]


class Calendar(datetime.date):
  """Today, as the tests set it."""
  now = DAYS[0]

  @classmethod
  def today(cls):
    return cls.now


@pytest.fixture
def calendar(monkeypatch):
  monkeypatch.setattr(workdir.datetime, "date", Calendar)
  monkeypatch.setattr(Calendar, "now", DAYS[0])
  return Calendar


def test_the_first_day_is_recorded_and_kept(tmp_path, calendar):
  folder = Workdir(tmp_path)
  assert folder.date(record=True) == DAYS[0]
  calendar.now = DAYS[1]
  assert folder.date(record=True) == folder.date() == DAYS[0]
  assert json.loads((tmp_path / "date.json").read_text()) == {"date": "2026-01-30"}


def test_readers_record_nothing(tmp_path, calendar):
  assert Workdir(tmp_path).date() == DAYS[0]
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ['{"date": "soon"}', '{"date": 7}', "{}", "[]", "{"])
def test_what_is_no_date_is_named(content, tmp_path):
  (tmp_path / "date.json").write_text(content)
  with pytest.raises(ValueError, match="date.json"):
    Workdir(tmp_path).date()


def test_a_run_reads_the_prompts_that_it_began_with(tmp_path, calendar):
  tokenizer = tokenizers.load(
      model_directory(tmp_path / "model", chat_template="{{ strftime_now('%Y-%m-%d') }}"))
  source = PolicySource(
      small(vocab_size=tokenizer.vocab_size, width=8, num_layers=1), tokenizer, None)
  config = RunConfig(Policy(source="dated", args={}), stages=("sft",))
  folder, prompts = Workdir(tmp_path / "run"), []
  for day in DAYS:
    calendar.now = day
    with pytest.MonkeyPatch.context() as patch:
      patch.setitem(context.POLICIES, "dated", lambda: source)
      made = context.make_context(config, date=lambda: folder.date(record=True))
    prompts.append(made.policy.tokenizer.render_prompt([{"role": "user", "content": "x"}]))
  assert prompts == ["2026-01-30"] * 2
