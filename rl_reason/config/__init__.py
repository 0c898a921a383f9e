"""Parses and checks the sections of a config; the package itself defines no field of one."""
