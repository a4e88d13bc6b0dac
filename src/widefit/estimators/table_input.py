"""Tables as estimators take them: checked, read column by column where they are not all numbers, and encoded."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils.validation import (
    _check_feature_names,
    _check_n_features,
    _check_sample_weight,
    _check_y,
    check_consistent_length,
    validate_data,
)

from widefit.estimators.arrays import (
    dense,
    matrix_of,
    needs_encoding,
    plain,
    refuse_missing,
    refuse_sparse_categories,
)

if TYPE_CHECKING:
    # Polars is imported where a table needs it.
    from widefit.data.encoding import TableEncoding
    from widefit.data.features import Feature, FeatureEncoding

    Table = np.ndarray | tuple[Feature, ...]


class TableInput(BaseEstimator):
    """The part of an estimator that knows the columns of its table.

    Attributes
    ----------
    encoding_
        What a training in the shell learnt about the columns; None for a model that was fitted in Python.
    """

    categorical_features: Any
    encoding_: "TableEncoding | None" = None
    _encoding: "FeatureEncoding | None" = None
    _numeric_targets: bool
    feature_names_in_: np.ndarray

    def _check_data(
        self, X: Any, y: Any, sample_weight: ArrayLike | None, reset: bool
    ) -> tuple["Table", np.ndarray, np.ndarray]:
        """Return rows as they were read, targets as they are, and weights, all of one length."""
        y = plain(y)
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        refuse_missing("y", y)
        if reset:
            self.encoding_ = None
        X = self._as_in_the_shell(plain(X))
        matrix = matrix_of(X)
        if reset:
            refuse_sparse_categories(matrix, self.categorical_features)
        if needs_encoding(matrix, self.categorical_features) if reset else self._encoding is not None:
            X = matrix
            y = _check_y(y, multi_output=True, y_numeric=self._numeric_targets, estimator=self)
            table = self._learn_features(X) if reset else self._check_rows(X)
            check_consistent_length(X, y)
        else:
            refuse_missing("X", X)
            rows, y = validate_data(
                self,
                X,
                y,
                reset=reset,
                accept_sparse="csr",
                dtype=np.float64,
                multi_output=True,
                y_numeric=self._numeric_targets,
            )
            table = dense(rows)
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        if not np.any(weight > 0):
            raise ValueError("sample_weight must not be all zero")
        return table, np.asarray(y), weight

    def _learn_features(self, X: Any) -> "Table":
        """Read the columns of a first table."""
        from widefit.estimators.frames import frame_of, read_features

        frame = frame_of(X)
        if frame.width == 0:
            raise ValueError("X has 0 feature(s); at least one is needed")
        _check_feature_names(self, X, reset=True)
        _check_n_features(self, X, reset=True)
        return read_features(frame, self.categorical_features)

    def _check_rows(self, X: Any) -> "Table":
        """Return rows like those of the training, as numbers or as columns that were read."""
        X = self._as_in_the_shell(plain(X))
        if self._encoding is None:
            return dense(validate_data(self, X, reset=False, accept_sparse="csr", dtype=np.float64))
        from widefit.estimators.frames import frame_of, in_order, positional

        frame = frame_of(dense(matrix_of(X)))
        names = list(getattr(self, "feature_names_in_", positional(self.n_features_in_)))
        # Columns of an array have places, whatever their frame would call them.
        named = hasattr(self, "feature_names_in_") and hasattr(X, "columns")
        if named:
            frame = in_order(frame, names)
        _check_feature_names(self, frame if named else X, reset=False)
        _check_n_features(self, frame, reset=False)
        if frame.height == 0:
            raise ValueError("X has 0 rows; at least one is needed")
        return self._encoding.read(frame.rename(dict(zip(frame.columns, names, strict=True))))

    def _as_in_the_shell(self, X: Any) -> Any:
        """Return a data frame as the table of a training in the shell was encoded; the rest as it is."""
        if self.encoding_ is None or not (hasattr(X, "columns") and hasattr(X, "dtypes")):
            return X
        from widefit.estimators.frames import frame_of

        return self.encoding_.encode(frame_of(X))

    def _learn_columns(self, table: "Table", encoded: np.ndarray, weight: np.ndarray, reset: bool) -> np.ndarray:
        """Return training rows as numbers, having learnt how; no row sees its own target."""
        if reset:
            self._encoding = None
        if isinstance(table, np.ndarray):
            return table
        from widefit.estimators.frames import Outcomes, learn_encoding

        outcomes = Outcomes(encoded, weight)
        if self._encoding is None:
            self._encoding = learn_encoding(table, outcomes)
        rows = self._encoding.matrix(table, weight.size)
        self._encoding.write_out_of_fold(table, np.arange(weight.size), outcomes, rows)
        return rows

    def _encoded(self, table: "Table") -> np.ndarray:
        """Return rows as numbers."""
        if isinstance(table, np.ndarray):
            return table
        assert self._encoding is not None
        return self._encoding.matrix(table, len(table[0].gaps))

    def detach_encoding(self) -> "FeatureEncoding | None":
        """Return how the columns of a data frame become numbers, and take these numbers in their place from now on.

        None, and no change, where the model was fitted to an array.
        """
        encoding = self._encoding
        if encoding is None and hasattr(self, "feature_names_in_"):
            from widefit.data.columns import Column
            from widefit.data.features import FeatureEncoding

            encoding = FeatureEncoding(tuple(Column(name, "number") for name in self.feature_names_in_.tolist()))
        if encoding is not None:
            self._encoding = None
            vars(self).pop("feature_names_in_", None)
            self.n_features_in_ = len(encoding.feature_names)
        return encoding
