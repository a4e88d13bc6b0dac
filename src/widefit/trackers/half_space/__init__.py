"""Half-space reporting in trees of balls, over the samples or over the weights."""
