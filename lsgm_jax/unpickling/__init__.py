"""Pickles as data: read without running them, within bounds of time and memory."""
