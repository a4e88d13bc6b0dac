"""The record of a training run: one StepInfo a step, in a History."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, overload

from widefit.data.markup import html_table
from widefit.records import read
from widefit.rules.stop_reason import StopReason

if TYPE_CHECKING:
    import polars as pl

# Steps that a notebook shows at each end of a long run.
_SHOWN = 20


@dataclass(frozen=True)
class StepInfo:
    """One step, accepted or not.

    Attributes
    ----------
    step
        Counts from 1; step 0 is the state before training. A step of stochastic descent is an epoch.
    loss
        Training loss after the step: the mean over samples of the squared residual for `widefit.train` (of the loss of
        the rule where that is another), the loss the optimizer was given for `widefit.GaussNewton`. For a rejected
        step, the loss that was kept.
    metric
        Validation metric after the step, None where none was asked for.
    damping
        λ of the system that was solved.
    gain_ratio
        Actual over predicted decrease of the objective; None for rules that predict nothing.
    accepted
        False when the step raised the objective and was taken back.
    solver
        Name of the solver that answered, None for rules that solve nothing.
    solver_iterations
        Products with H that the solver spent; 0 for a factorization.
    residual_norm
        ‖(H + λI) g − e‖ / ‖e‖ of the answer.
    jitter
        What a factorization had to add to the diagonal beyond the damping; 0 when nothing was needed.
    flips
        Pairs (neuron, sample) that changed between firing and not firing. After an epoch of stochastic steps, a tracker
        that looks at one batch at a time counts those that differ in the end, others every flip on the way.
    rebased
        True when the tracker made a full pass over all neurons.
    seconds
        Wall-clock time from the start of training to the end of the step.
    samples
        Samples seen so far, in a stream; None where they come again and again. The loss is then that of the samples
        since the entry before, each predicted before it was learnt.
    """

    step: int
    loss: float
    metric: float | None = None
    damping: float = 0.0
    gain_ratio: float | None = None
    accepted: bool = True
    solver: str | None = None
    solver_iterations: int = 0
    residual_norm: float | None = None
    jitter: float = 0.0
    flips: int | None = None
    rebased: bool = False
    seconds: float = 0.0
    samples: int | None = None


@dataclass
class History(Sequence[StepInfo]):
    """The steps of one run, in order.

    Attributes
    ----------
    steps
        One StepInfo a step; the first has step 0 and holds the loss before training.
    stop_reason
        Why training ended: "tol", "settled", "converged", "max_iter", "stalled", "diverged", "interrupted" or
        "callback"; "end" for a stream that has come to its end.
    average_loss
        Loss of the average of the iterates, which the network was left with; None for a rule that does not average.
    advice
        Where the run was stuck and what to try, in words, where what trains can tell.
    phases
        Seconds spent per phase of the work ("pass", "gram", "solve", …).
    """

    steps: list[StepInfo] = field(default_factory=list)
    stop_reason: str = ""
    phases: dict[str, float] = field(default_factory=dict)
    average_loss: float | None = None
    advice: str = ""

    @overload
    def __getitem__(self, index: int) -> StepInfo: ...
    @overload
    def __getitem__(self, index: slice) -> list[StepInfo]: ...
    def __getitem__(self, index):
        return self.steps[index]

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[StepInfo]:
        return iter(self.steps)

    @property
    def why(self) -> str:
        """Why training ended, in words; empty while it has not, and the reason itself where it is not one of ours."""
        try:
            sentence = StopReason(self.stop_reason).sentence
        except ValueError:
            return self.stop_reason
        return f"{sentence}; {self.advice}" if self.advice else sentence

    @property
    def losses(self) -> list[float]:
        """Training loss before the first step and after each."""
        return [info.loss for info in self.steps]

    def to_frame(self) -> "pl.DataFrame":
        """Return one row a step with the attributes of `StepInfo` as columns.

        Examples
        --------
        >>> history = History([StepInfo(0, 1.0), StepInfo(1, 0.01, flips=7)], stop_reason="max_iter")
        >>> history.to_frame().select("step", "loss", "flips").rows()
        [(0, 1.0, None), (1, 0.01, 7)]
        """
        import polars as pl

        kinds = {"step": pl.Int64, "accepted": pl.Boolean, "rebased": pl.Boolean, "solver": pl.String}
        kinds |= dict.fromkeys(("solver_iterations", "flips", "samples"), pl.Int64)
        schema = {field.name: kinds.get(field.name, pl.Float64) for field in fields(StepInfo)}
        return pl.DataFrame([asdict(info) for info in self.steps], schema=schema)

    def plot(self, ax: Any = None) -> Any:
        """Draw the loss of every step on a logarithmic axis, with a cross where a step was taken back.

        Parameters
        ----------
        ax
            Axes of matplotlib to draw into; None: new ones.

        Returns
        -------
        The axes.

        Raises
        ------
        ImportError
            matplotlib is not installed.
        """
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError("plot needs the package matplotlib: pip install 'widefit[bench]'") from error
        axes = plt.subplots()[1] if ax is None else ax
        steps = [info.step for info in self.steps]
        axes.plot(steps, self.losses, marker="o" if len(steps) <= 50 else None, label="training loss")
        rejected = [info for info in self.steps if not info.accepted]
        if rejected:
            at = ([info.step for info in rejected], [info.loss for info in rejected])
            axes.plot(*at, "x", color="tab:red", label="taken back")
        axes.set(xlabel="step", ylabel="loss", yscale="log" if any(loss > 0 for loss in self.losses) else "linear")
        metrics = [(info.step, info.metric) for info in self.steps if info.metric is not None]
        if metrics:
            right = axes.twinx()
            right.plot(*zip(*metrics, strict=True), color="tab:green", linestyle="--", label="metric")
            right.set_ylabel("metric")
        axes.legend()
        return axes

    def __str__(self) -> str:
        head, rows, note = self._table()
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = ["  ".join(map(str.rjust, row, widths)).rstrip() for row in (head, *rows)]
        return "\n".join([*lines, *([note] if note else [])])

    def _repr_html_(self) -> str:
        return html_table(*self._table())

    def _table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]], str]:
        """Return head, rows and a note below; of a long run the first steps and the last."""
        head = ("step", "loss", "metric", "damping", "flips", "kept", "seconds")
        infos = self.steps if len(self.steps) <= 2 * _SHOWN else [*self.steps[:_SHOWN], *self.steps[-_SHOWN:]]
        rows = [
            (
                str(info.step),
                f"{info.loss:.3e}",
                "" if info.metric is None else f"{info.metric:.4f}",
                f"{info.damping:.1e}",
                "" if info.flips is None else f"{info.flips:,}",
                "yes" if info.accepted else "no",
                f"{info.seconds:.2f}",
            )
            for info in infos
        ]
        left_out = f"; the first and the last {_SHOWN} of {len(self.steps):,} steps" if len(infos) < len(self) else ""
        return head, rows, f"ended because {self.why}{left_out}" if self.why else left_out.strip("; ")

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON."""
        return {
            "stop_reason": self.stop_reason,
            "phases": dict(self.phases),
            "average_loss": self.average_loss,
            "advice": self.advice,
            "steps": [asdict(info) for info in self.steps],
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "History":
        """Return what `to_dict` was called on.

        Raises
        ------
        FileError
            A record that is not one of a history.
        """
        return read(cls, record, "the history")
