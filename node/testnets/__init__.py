"""Testnets: homes, processes and the report on a run."""
