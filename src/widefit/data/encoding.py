"""From a table to a matrix of numbers, the same way in training and afterwards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float64

from widefit.data.columns import Column
from widefit.data.effects import Outcomes
from widefit.data.features import FeatureEncoding
from widefit.data.reading import Reading
from widefit.data.survey import DROPPED, Survey, survey
from widefit.data.target import Target
from widefit.data.words import TableError
from widefit.records import FileError


@dataclass(frozen=True)
class TableEncoding(FeatureEncoding):
    """Knowledge of training about the columns of a table, its target included.

    Attributes
    ----------
    target
        The target column and its meaning.
    left_out
        Columns that were not used, each with the reason.
    decimal
        The decimal mark of the training table where that was text and showed it, otherwise "".
    na_values
        What the user said stands for missing values.
    """

    target: Target = field(kw_only=True)
    left_out: tuple[tuple[str, str], ...] = ()
    decimal: str = ""
    na_values: tuple[str, ...] = ()

    @classmethod
    def learn(
        cls,
        frame: pl.DataFrame,
        target: Target | str,
        *,
        task: str | None = None,
        drop: Sequence[str] = (),
        impute: bool = False,
        indicate: bool = False,
        rows: np.ndarray | None = None,
        doubts: Mapping[str, str] | None = None,
    ) -> "TableEncoding":
        """Learn the encoding of a table.

        Parameters
        ----------
        frame
            All rows at hand; every value is checked, so that errors name rows of the table as it is.
        target
            The target column, by name or as `learn_target` described it.
        task
            "regression" or "classification" where `target` is a name; None decides from the values.
        drop
            Columns to leave out.
        impute
            Fill missing numbers by the median and missing categories and booleans by the most frequent value.
        indicate
            Take missing values as information: a missing category is a category of its own, and a column of numbers or
            booleans with gaps gets a 0/1 column that says where they are, beside what `impute` fills in.
        rows
            Indices of the training rows, from which categories, fills and constant columns are learnt; None: all rows.
        doubts
            Columns that could be read in two ways, each with the question.

        Raises
        ------
        TableError
            What `survey` raises, and no feature left.
        """
        found = survey(frame, target, task=task, drop=drop, gaps_allowed=impute or indicate, doubts=doubts)
        return cls.of(found, impute=impute, indicate=indicate, rows=rows)

    @classmethod
    def of(
        cls,
        found: Survey,
        *,
        impute: bool = False,
        indicate: bool = False,
        rows: np.ndarray | None = None,
        outcomes: Outcomes | None = None,
    ) -> "TableEncoding":
        """Learn from a table that was surveyed; the parameters are those of `learn`.

        Parameters
        ----------
        outcomes
            Targets of the training rows, from which the effects of many categories are learnt; None: 0/1 columns stand
            for any number of them.

        Raises
        ------
        TableError
            No feature is left.
        """
        columns: list[Column] = []
        left_out = list(found.left_out)
        for feature in found.features:
            column = feature.learn(rows, impute=impute or indicate, indicate=indicate, outcomes=outcomes)
            if feature.varies(rows, column.indicator):
                columns.append(column)
            else:
                left_out.append((feature.name, "it is constant in the training rows"))
        # Those that the user dropped first, the others in the order of the table.
        left_out.sort(key=lambda entry: -1 if entry[1] == DROPPED else found.names.index(entry[0]))
        if not columns:
            reasons = "; ".join(f"{name!r}: {why}" for name, why in left_out)
            raise TableError(f"no feature column is left: {reasons or f'the table has only {found.target.name!r}'}")
        return cls(tuple(columns), target=found.target, left_out=tuple(left_out))

    def reading(self, asked: Reading, truth: str | None = None) -> Reading:
        """Instructions for another table of the same columns.

        Parameters
        ----------
        asked
            What the user says about that table.
        truth
            The column of the target in it, where that is not the one of training.
        """
        kinds = {column.name: column.kind for column in self.columns}
        kinds[truth or self.target.name] = self.target.kind
        marks = (*self.na_values, *asked.na_values)
        return replace(asked, kinds=kinds, usual_decimal=self.decimal, na_values=marks)

    def encode_survey(
        self, found: Survey, rows: np.ndarray | None = None, outcomes: Outcomes | None = None
    ) -> Float64[np.ndarray, "n d"]:
        """The features of the surveyed table as numbers, shape (n, number of `feature_names`), without another look.

        Parameters
        ----------
        found
            The table.
        rows, outcomes
            Indices of the training rows and their targets: effects of their categories are told by others of them.

        Returns
        -------
        The same matrix as of `encode` but for those effects, with the same warnings.
        """
        out = self.matrix(found.features, len(found.features[0].gaps))
        if rows is not None and outcomes is not None:
            self.write_out_of_fold(found.features, rows, outcomes, out)
        return out

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON."""
        left_out = [list(pair) for pair in self.left_out]
        record = {"target": self.target.to_dict(), **super().to_dict(), "left_out": left_out}
        return record | {"decimal": self.decimal, "na_values": list(self.na_values)}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "TableEncoding":
        """The inverse of `to_dict`; files of version 0.1 say nothing about decimal marks and missing values.

        Raises
        ------
        FileError
            The record is not one of `to_dict`.
        """
        found = super().from_dict(record)
        assert isinstance(found, cls)
        if found.target.task == "classification" and len(found.target.labels) < 2:
            raise FileError("the encoding has a target of less than two classes")
        return found
