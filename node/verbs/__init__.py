"""The verbs of the command line, one module a group; what they share in options, output and amounts."""
