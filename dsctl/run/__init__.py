"""Carry a plan out: whose the folder is, what was done, how the rest is done."""
