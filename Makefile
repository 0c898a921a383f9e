# Every target installs what it needs, in environments of its own: nothing has to be there but Python and make.
PYTHON ?= python3
PIP = bin/python -m pip install -qq --disable-pip-version-check
LISTS = setup.py requirements.txt

.PHONY: help quickstart test test-oracles test-slow benchmark learning-curves clean docs

help: ## Show this list.
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 22

quickstart: .venv/installed ## Train a small policy to reason, on a CPU in minutes: runs/quickstart.
	@.venv/bin/python -m rl_reason.train --config=experiments/quickstart.py --workdir=runs/quickstart

test: .venv/installed-dev ## Run the tests, a file at a time on each core.
	@.venv/bin/python -m pytest -n auto --maxprocesses=4 --dist=loadfile

test-slow: .venv/installed-dev ## Run the tests that take minutes.
	@.venv/bin/python -m pytest -m "slow and not oracle"

test-oracles: .venv-oracles/installed ## Compare with transformers, trl and rlax.
	@.venv-oracles/bin/python -m pytest -m oracle tests/oracles

benchmark: .venv-bench-trl/installed .venv-bench-tunix/installed
benchmark: .venv/installed ## Time a GRPO step beside TRL's and Tunix's, over hours; ARGS="--shapes=a --rounds=3".
	@.venv/bin/python -m rl_reason.experiments.benchmarks.run $(ARGS)

learning-curves: .venv-bench-trl/installed .venv/installed ## Train with GRPO here and with TRL, side by side.
	@.venv/bin/python -m rl_reason.experiments.benchmarks.learning $(ARGS)

docs: .venv/installed-docs ## Build the documentation, with the API reference: docs/build.
	@JAX_PLATFORMS=cpu .venv/bin/python -m sphinx -b html -E -a -q -W --keep-going docs docs/build
	@echo "Open docs/build/index.html."

clean: ## Remove the environments and what was built; runs/ stays.
	@rm -rf .venv .venv-oracles .venv-bench-* build docs/api docs/build dist *.egg-info .pytest_cache
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

define environment
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { \
	  echo "rl_reason needs Python 3.11 or newer; $(PYTHON) is '$$($(PYTHON) --version 2>&1)'." \
	    "Install one, or name it: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing into $(1) ($(2), a few minutes)."
	@$(PYTHON) -m venv $(1)
endef
