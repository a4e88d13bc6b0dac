"""A fitted estimator in a sentence, and in a notebook."""

from html import escape
from typing import TYPE_CHECKING, Any

from sklearn.base import BaseEstimator

from widefit.data.words import listing, plural
from widefit.plan.base import Plan
from widefit.training.history import History

if TYPE_CHECKING:
    from widefit.data.encoding import TableEncoding


class FitDisplay(BaseEstimator):
    """The part of an estimator that tells how its fit went."""

    history_: History
    plan_: Plan
    encoding_: "TableEncoding | None"

    def __str__(self) -> str:
        return f"{self!r}\n{self._in_words()}" if hasattr(self, "history_") else repr(self)

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        bundle = super()._repr_mimebundle_(**kwargs)
        if "text/html" in bundle:
            bundle["text/html"] += self._fit_html()
        return bundle

    def _repr_html_inner(self) -> str:
        return super()._repr_html_inner() + self._fit_html()

    def _in_words(self) -> str:
        """Return a sentence about the fit."""
        last = self.history_[-1]
        encoding = self.encoding_
        what = "" if encoding is None else f"predicts {encoding.target.name!r} from the columns "
        names = "" if encoding is None else listing([column.name for column in encoding.columns]) + "; "
        ended = f", ended because {self.history_.why}" if self.history_.why else ""
        return f"{what}{names}{plural(last.step, 'step')}, training loss {last.loss:.3g}{ended}"

    def _fit_html(self) -> str:
        """Return what a notebook shows below scikit-learn's own diagram."""
        if not hasattr(self, "history_"):
            return ""
        return f"<p>{escape(self._in_words())}</p><details><summary>plan_</summary>{self.plan_._repr_html_()}</details>"
