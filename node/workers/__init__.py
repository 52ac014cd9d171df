"""Processes beside the node's own: the trainer, what it is asked and answers, and the server that forks all."""
