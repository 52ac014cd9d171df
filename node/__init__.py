"""All input and output: command line, configuration, network, RPC, trainer process, clock and wiring."""
