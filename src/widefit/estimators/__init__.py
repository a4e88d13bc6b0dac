"""scikit-learn estimators on top of `widefit.train`."""

from widefit.estimators.classifier import WideClassifier
from widefit.estimators.regressor import WideRegressor

__all__ = ["WideClassifier", "WideRegressor"]
