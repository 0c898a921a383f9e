"""Imported as `rl_reason.experiments`: one config file per experiment, each with a `get_config(size)`."""
