"""Trains a model that scores responses."""
