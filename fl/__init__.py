"""The learning as pure tensor maths: models, data, training, prototypes, aggregation and baselines."""
