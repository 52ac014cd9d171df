"""Experiments: rounds of many clients in one process, without a network."""
