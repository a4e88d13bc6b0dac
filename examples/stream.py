"""Rows that come once: the error on rows to come, told before each is learnt, while the world stays as it is."""

import matplotlib.pyplot as plt
import numpy as np

from widefit import WideRegressor

BATCHES, BATCH, WIDTH = 60, 1000, 8192

generator = np.random.default_rng(0)
model = WideRegressor(hidden_layer_sizes=(WIDTH,), rule="sgd")
for _ in range(BATCHES):
    X = generator.uniform(-1, 1, (BATCH, 2))
    y = np.sin(3 * X[:, 0]) * X[:, 1] + 0.1 * generator.standard_normal(BATCH)
    model.partial_fit(X, y)
seen = [info.samples for info in model.history_[1:]]
losses = model.history_.losses[1:]
print(f"{seen[-1]:,} rows, loss {losses[0]:.2e} at first and {losses[-1]:.2e} in the end")

figure, panel = plt.subplots(figsize=(6, 3.4), layout="constrained")
panel.loglog(seen, losses, label="of rows before they are learnt")
panel.axhline(0.01 / float(model.target_scale_[0]) ** 2, color="gray", linestyle=":", label="noise")
panel.set(xlabel="rows", ylabel="loss")
panel.legend()
figure.savefig("stream.png", dpi=80)
