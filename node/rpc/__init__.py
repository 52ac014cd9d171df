"""What a node answers about itself and its chain, over JSON-RPC or from its home."""
