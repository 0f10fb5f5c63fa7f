"""Carry a plan out: claim the target folder, find the work already done, and do the rest."""
