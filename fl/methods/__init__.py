"""Methods of federated learning: one module each, behind the interface in `method`."""
