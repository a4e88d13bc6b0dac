"""Two moons with a third class between them: probabilities over the plane, and a report."""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_moons
from sklearn.metrics import classification_report
from sklearn.model_selection import train_test_split

from widefit import WideClassifier, report

ROWS, WIDTH = 600, 16384

generator = np.random.default_rng(0)
X, y = make_moons(ROWS, noise=0.2, random_state=0)
X = np.concatenate([X, generator.normal([0.5, 0.25], 0.15, (ROWS // 4, 2))])
y = np.concatenate([y, np.full(ROWS // 4, 2)])
X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)
model = WideClassifier(hidden_layer_sizes=(WIDTH,)).fit(X_train, y_train)
predicted = model.predict(X_test)
print(classification_report(y_test, predicted, digits=2))

page = report.Report(
    title="Two moons and a cloud",
    task="classification",
    data=report.Source("moons", rows=len(X), columns=2, target="class"),
    history=model.history_,
    truth=y_test,
    prediction=predicted,
    probabilities=model.predict_proba(X_test),
    classes=model.classes_.tolist(),
    metrics={"held out": {"accuracy": model.score(X_test, y_test)}},
    plan=model.plan_.rows(),
    machine=report.this_machine(),
)
report.write("classification.html", page)

horizontal, vertical = np.meshgrid(np.linspace(-2, 3, 150), np.linspace(-1.2, 1.8, 90))
shares = model.predict_proba(np.stack([horizontal.ravel(), vertical.ravel()], axis=1)).reshape(90, 150, 3)
figure, panel = plt.subplots(figsize=(6, 3.6), layout="constrained")
panel.imshow(shares, extent=(-2, 3, -1.2, 1.8), origin="lower", alpha=0.6)
panel.scatter(*X_test.T, c=np.eye(3)[y_test], s=10, edgecolors="k", linewidths=0.3)
figure.savefig("classification.png", dpi=80)
