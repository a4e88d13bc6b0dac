"""A failure and what to do: twelve columns of which two matter, half of the rows wrong by a unit of noise."""

import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor

from widefit import WideRegressor

ROWS, WIDTH = 400, 4096

generator = np.random.default_rng(0)
X = generator.standard_normal((2 * ROWS, 12))
truth = np.where(X[:, 0] > 0, 1.0, -1.0) + np.where(X[:, 1] > 0.5, 1.0, 0.0)  # steps, which trees like
y = truth + generator.standard_normal(len(X)) * (generator.random(len(X)) < 0.5)
rows, others = slice(0, ROWS), slice(ROWS, None)

warnings.simplefilter("ignore")  # interpolating noise on purpose
models = {
    "widefit that interpolates (alpha=0)": WideRegressor((WIDTH,), alpha=0),
    "widefit with a ridge from the data": WideRegressor((WIDTH,)),
    "the two columns alone": WideRegressor((WIDTH,)),
    "gradient boosting": HistGradientBoostingRegressor(),
}
errors = {}
for name, model in models.items():
    columns = slice(0, 2) if name.startswith("the two") else slice(None)
    model.fit(X[rows, columns], y[rows])
    errors[name] = float(np.sqrt(np.mean((model.predict(X[others, columns]) - truth[others]) ** 2)))
    print(f"{name}: RMS error {errors[name]:.2f}")
important = np.argsort(models["widefit with a ridge from the data"].feature_importances_)[::-1][:2]
print(f"the largest of feature_importances_ are those of columns {sorted(important.tolist())}")

figure, panel = plt.subplots(figsize=(7, 2.6), layout="constrained")
panel.barh(list(errors)[::-1], list(errors.values())[::-1])
panel.set(xlabel="RMS error on other rows")
figure.savefig("failure.png", dpi=80)
