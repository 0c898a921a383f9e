"""Imported as `rl_reason.models`; docs/reading.md says what is in which file."""

if __name__ == "models":
  raise ImportError(
      "This folder is the package rl_reason.models: write `from rl_reason import models`. The bare"
      " name `models` would give every module in it a second copy, and would clash with any other"
      " package called models.")
