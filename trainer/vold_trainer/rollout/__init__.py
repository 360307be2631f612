"""Rollouts: completions sampled from the student."""
