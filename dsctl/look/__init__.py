"""Describe checkpoints: their contents, their differences and their costs. Nothing is written."""
