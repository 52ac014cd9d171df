"""The network: peers, gossip, streams, discovery, limits; the only place that knows libp2p."""
