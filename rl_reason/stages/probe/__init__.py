"""Runs named functions of what earlier stages made. It trains nothing."""
