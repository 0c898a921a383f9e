"""Parses and checks the sections of a config. It knows no field of its own."""
