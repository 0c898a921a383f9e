# Every target installs what it needs, in environments of its own: nothing has to be there but Python and make.
PYTHON ?= python3
# JAX 0.11 and newer need Python 3.12.
NEWEST_PYTHON ?= $(shell for p in python3.12 $$HOME/.pyenv/versions/3.12.*/bin/python python3.13 $(PYTHON); do \
  $$p -c "import sys; sys.exit(sys.version_info < (3, 12))" 2>/dev/null && echo $$p && break; done)
PIP = bin/python -m pip install -qq --disable-pip-version-check
LISTS = setup.py requirements.txt
# Pinned: a newer one has new rules, which are read before they are followed.
CHECKERS = ruff==0.17.6 mypy==2.4.1 "setuptools>=77"

.PHONY: help quickstart test fuzz kills test-oracles test-slow test-newest newest-python lint types benchmark learning-curves docs clean

help: ## Show this list.
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 22

quickstart: .venv/installed ## Train a small policy to reason, on a CPU in minutes: runs/quickstart.
	@.venv/bin/python -m rl_reason.train --config=experiments/quickstart.py --workdir=runs/quickstart

test: .venv/installed-dev ## Run the tests, a file at a time on each core.
	@.venv/bin/python -m pytest -n auto --maxprocesses=4 --dist=loadfile

test-slow: .venv/installed-dev ## Run the tests that take minutes.
	@.venv/bin/python -m pytest -m "slow and not oracle"

fuzz: .venv/installed-dev ## Damage files, rows, configs and command lines, by seeds: ARGS="--seed=3 --count=1000".
	@.venv/bin/python -m pytest -k seeded -m "not oracle and not kills" --count=300 $(ARGS)

kills: .venv/installed-dev ## Kill runs at random moments, 200 times, for hours; ARGS="--seed=3 --count=5 -k turns".
	@.venv/bin/python -m pytest -s -m kills tests/test_kills.py $(ARGS)

test-oracles: .venv-oracles/installed ## Compare with transformers, trl and rlax.
	@.venv-oracles/bin/python -m pytest -m oracle tests/oracles

test-newest: .venv-newest/installed ## Run the tests on Python 3.12 or newer, with the newest JAX; ARGS="-k train".
	@.venv-newest/bin/python -m pytest -n auto --maxprocesses=4 --dist=loadfile $(ARGS)

newest-python: # Prints the Python that test-newest takes, or fails.
	@test -n "$(NEWEST_PYTHON)" && echo "$(NEWEST_PYTHON)"

lint: .venv-lint/installed ## Check the source with ruff, by the rules in pyproject.toml.
	@.venv-lint/bin/ruff check .

# Of the wheel, as those see it who install it; build/ may hold modules that were moved since.
types: .venv-lint/installed .venv/installed ## Check the types of the built wheel with mypy.
	@rm -rf build .venv-lint/wheel
	@.venv-lint/$(PIP) --no-deps --no-build-isolation --target .venv-lint/wheel .
	@MYPYPATH=.venv-lint/wheel .venv-lint/bin/mypy --python-executable .venv/bin/python \
	  --cache-dir .venv-lint/mypy --package rl_reason

benchmark: .venv-bench-trl/installed .venv-bench-tunix/installed
benchmark: .venv/installed ## Time a GRPO step beside TRL's and Tunix's, over hours; ARGS="--shapes=a --rounds=3".
	@.venv/bin/python -m rl_reason.experiments.benchmarks.run $(ARGS)

learning-curves: .venv-bench-trl/installed .venv/installed ## Train with GRPO here and with TRL, side by side.
	@.venv/bin/python -m rl_reason.experiments.benchmarks.learning $(ARGS)

docs: .venv/installed-docs ## Build the documentation, with the API reference: docs/build.
	@JAX_PLATFORMS=cpu .venv/bin/python -m sphinx -b html -E -a -q -W --keep-going docs docs/build
	@echo "Open docs/build/index.html."

clean: ## Remove the environments and what was built; runs/ stays.
	@rm -rf .venv .venv-oracles .venv-newest .venv-lint .venv-bench-* build docs/api docs/build dist *.egg-info
	@rm -rf .pytest_cache .ruff_cache
	@find . -name __pycache__ -not -path "./runs/*" -prune -exec rm -rf {} +

# A stamp is made last, so an interrupted install is continued by the next call.
.venv/installed: $(LISTS)
	$(call environment,.venv,1.2 GB)
	@.venv/$(PIP) --editable .
	@touch $@

.venv/installed-dev: $(LISTS)
	$(call environment,.venv,1.2 GB)
	@.venv/$(PIP) --editable ".[dev]"
	@touch .venv/installed $@

.venv/installed-docs: $(LISTS)
	$(call environment,.venv,1.2 GB)
	@.venv/$(PIP) --editable ".[docs]"
	@touch .venv/installed $@

# Newest: whatever pip takes today, and not what an earlier call installed.
.venv-newest/installed: $(LISTS)
	$(call environment,.venv-newest,1.2 GB,$(or $(NEWEST_PYTHON),python3.12))
	@.venv-newest/$(PIP) --upgrade --upgrade-strategy eager --editable ".[dev]"
	@touch $@

.venv-lint/installed: Makefile
	$(call environment,.venv-lint,0.1 GB)
	@.venv-lint/$(PIP) $(CHECKERS)
	@touch $@

.venv-oracles/installed: $(LISTS)
	$(call environment,.venv-oracles,2.3 GB)
	@# torch alone first, pinned: its peers would let pip choose a newer one, with gigabytes of CUDA.
	@.venv-oracles/$(PIP) torch==2.13.0
	@.venv-oracles/$(PIP) --editable ".[oracles]"
	@touch $@

.venv-bench-trl/installed: experiments/benchmarks/requirements-trl.txt
	$(call environment,.venv-bench-trl,1.5 GB)
	@.venv-bench-trl/$(PIP) torch==2.13.0
	@.venv-bench-trl/$(PIP) -r $<
	@touch $@

# On a GPU, both environments with JAX want its plugin: `.venv-bench-tunix/bin/pip install "jax[cuda13]==0.10.2"`.
.venv-bench-tunix/installed: experiments/benchmarks/requirements-tunix.txt
	$(call environment,.venv-bench-tunix,1.5 GB)
	@.venv-bench-tunix/$(PIP) -r $<
	@touch $@

# $(call environment,folder,size,python)
define environment
	@$(or $(3),$(PYTHON)) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { \
	  echo "rl_reason needs Python 3.11 or newer; $(or $(3),$(PYTHON)) is '$$($(or $(3),$(PYTHON)) --version 2>&1)'." \
	    "Install one, or name it: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing into $(1) ($(2), a few minutes)."
	@$(or $(3),$(PYTHON)) -m venv $(1)
endef
