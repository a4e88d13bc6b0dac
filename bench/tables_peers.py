"""Peers on tables, each at its defaults and on one thread; those that are not installed are left out."""

from importlib.util import find_spec

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR

from widefit import WideClassifier, WideRegressor

# A Gaussian process factorizes n × n matrices in every step of its fit: the peers' time is bounded by leaving it out.
LARGEST_PROCESS = 1000


def regressors(samples: int, features: int) -> dict:
    """Return regressors by name."""
    kernel = ConstantKernel() * RBF(np.ones(features)) + WhiteKernel()
    vectors = make_pipeline(StandardScaler(), SVR())
    process = make_pipeline(StandardScaler(), GaussianProcessRegressor(kernel, normalize_y=True, random_state=0))
    return {
        "widefit": WideRegressor(),
        "gradient boosting": HistGradientBoostingRegressor(random_state=0),
        "random forest": RandomForestRegressor(random_state=0),
        "MLP": make_pipeline(StandardScaler(), MLPRegressor(max_iter=1000, random_state=0)),
        "linear": make_pipeline(StandardScaler(), RidgeCV(np.logspace(-4, 4, 17))),
        "support vectors": TransformedTargetRegressor(vectors, transformer=StandardScaler()),
        **({"Gaussian process": process} if samples <= LARGEST_PROCESS else {}),
        **_installed("Regressor"),
    }


def classifiers() -> dict:
    """Return classifiers by name."""
    return {
        "widefit": WideClassifier(),
        "gradient boosting": HistGradientBoostingClassifier(random_state=0),
        "random forest": RandomForestClassifier(random_state=0),
        "MLP": make_pipeline(StandardScaler(), MLPClassifier(max_iter=1000, random_state=0)),
        "linear": make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        "support vectors": make_pipeline(StandardScaler(), SVC()),
        **_installed("Classifier"),
    }


def _installed(kind: str) -> dict:
    found = {}
    if find_spec("catboost"):
        import catboost

        options = {"verbose": False, "allow_writing_files": False, "thread_count": 1, "random_seed": 0}
        found["CatBoost"] = getattr(catboost, f"CatBoost{kind}")(**options)
    if find_spec("lightgbm"):
        import lightgbm

        found["LightGBM"] = getattr(lightgbm, f"LGBM{kind}")(verbose=-1, n_jobs=1, random_state=0)
    if find_spec("xgboost"):
        import xgboost

        found["XGBoost"] = getattr(xgboost, f"XGB{kind}")(n_jobs=1, random_state=0)
    if find_spec("xrfm"):
        found["xRFM"] = Xrfm(kind == "Classifier")
    if find_spec("pytabkit"):
        import pytabkit

        options = {"device": "cpu", "random_state": 0, "n_threads": 1, "verbosity": 0}
        found["RealMLP"] = getattr(pytabkit, f"RealMLP_TD_{kind}")(**options)
        found["TabM"] = getattr(pytabkit, f"TabM_D_{kind}")(**options)
    return found


class Xrfm(BaseEstimator):
    """xRFM on standardized columns, a fifth of the rows held out for its own choices, as its authors do."""

    def __init__(self, classifies: bool = False):
        self.classifies = classifies

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.estimator_type = "classifier" if self.classifies else "regressor"
        return tags

    def fit(self, X, y):
        from xrfm import xRFM

        self.scaler_ = StandardScaler().fit(X)
        rows = self.scaler_.transform(X).astype(np.float32)
        if self.classifies:
            self.classes_, targets = np.unique(y, return_inverse=True)
        else:
            self.center_ = (float(np.mean(y)), float(np.std(y)))
            targets = ((np.asarray(y) - self.center_[0]) / self.center_[1]).astype(np.float32)[:, None]
        stratify = targets if self.classifies and np.bincount(targets).min() > 1 else None
        parts = train_test_split(rows, targets, test_size=0.2, random_state=0, stratify=stratify)
        metric = "brier" if self.classifies else "mse"
        self.model_ = xRFM(device="cpu", tuning_metric=metric, random_state=0, n_threads=1, verbose=False)
        self.model_.fit(parts[0], parts[2], parts[1], parts[3])
        return self

    def predict(self, X):
        rows = self.scaler_.transform(X).astype(np.float32)
        if self.classifies:
            return self.classes_[np.argmax(self.predict_proba(X), axis=1)]
        return np.asarray(self.model_.predict(rows)).ravel() * self.center_[1] + self.center_[0]

    def predict_proba(self, X):
        return np.asarray(self.model_.predict_proba(self.scaler_.transform(X).astype(np.float32)))
