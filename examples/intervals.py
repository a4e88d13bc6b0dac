"""A noisy curve with intervals, beside a Gaussian process: how sure each of them is, and how often it is right."""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel

from widefit import WideRegressor

ROWS, WIDTH = 150, 16384

generator = np.random.default_rng(0)
x = np.sort(generator.uniform(-3, 3, ROWS))[:, None]
x = x[np.abs(x[:, 0] - 1) > 0.4]  # a gap in which nothing is known


def curve(x):
    return np.sin(2 * x[:, 0]) + 0.3 * x[:, 0]


y = curve(x) + 0.2 * generator.standard_normal(len(x))
grid = np.linspace(-3, 3, 300)[:, None]
fresh = curve(grid) + 0.2 * generator.standard_normal(len(grid))

model = WideRegressor(hidden_layer_sizes=(WIDTH,)).fit(x, y)
process = GaussianProcessRegressor(RBF() + WhiteKernel(), normalize_y=True, random_state=0).fit(x, y)
mean, spread = process.predict(grid, return_std=True)
bands = {
    "widefit": (model.predict(grid), *model.predict_interval(grid, coverage=0.9)),
    "Gaussian process": (mean, mean - 1.645 * spread, mean + 1.645 * spread),
}

figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
for panel, (name, (middle, low, high)) in zip(panels, bands.items(), strict=True):
    inside = ((low <= fresh) & (fresh <= high)).mean()
    print(
        f"{name}: RMS error {np.sqrt(np.mean((middle - curve(grid)) ** 2)):.3f}, {inside:.0%} within its 90% intervals"
    )
    panel.fill_between(grid[:, 0], low, high, alpha=0.25)
    panel.plot(grid[:, 0], middle)
    panel.plot(grid[:, 0], curve(grid), "k:", linewidth=1)
    panel.plot(x[:, 0], y, ".", color="gray", markersize=3)
    panel.set(title=name, xlabel="x")
figure.savefig("intervals.png", dpi=80)
