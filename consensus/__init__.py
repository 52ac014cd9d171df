"""The protocol as pure functions: bytes, blocks, state, rounds, clustering, money and agreement."""
