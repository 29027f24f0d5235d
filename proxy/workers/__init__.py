"""Serving with several processes: one that watches, and the workers that it forks."""
