"""Trust in the linear model: the damping and the length of a step."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class DampingPolicy:
    """Damping steered by curvature.

    (This project; the second-order term is the geodesic acceleration of Transtrum and Sethna, arXiv 1207.4999.)

    A step follows the parabola θ + α d + α² a, where d is the damped Gauss-Newton direction and a its correction for
    the measured second derivative of the outputs along d. How much the path bends, 2‖a‖/‖d‖, says how far the linear
    model holds: α is the largest step at which the bend stays below `bend`. Where the outputs then differ from those
    that the parabola promised, the same factorization corrects the point for it, again and again while they come
    nearer: J̃ costs far more than a correction, and a λ a third as large makes a step down a narrow, curved valley
    about twice as long. Where they do not come near, the difference, which grows as α³, tells the α to try next. The
    damping falls after long steps and rises after short ones: to rounding level within a few steps on well-behaved
    problems.

    Smaller λ within one step, down to a gain ratio of 0.075 (DSGNAR, arXiv 2607.02194), were tried on `bench/policy.py`
    (eleven problems, three seeds) and left: fits take up to a third fewer steps, equations as many, the processor time
    is the same in the mean (0.98) and up to 1.6 times in the worst case. With singular values alone a curve of NIST's
    is lost.

    Attributes
    ----------
    start
        First λ, as a part of the sum of squared singular values of J (its squared Frobenius norm).
    bend
        Largest relative bend of an accepted step.
    bend_strange
        The same where every step sees other data that the one before tells little about: longer steps fit them too
        closely.
    shortest
        A path that bends so much that its α would be smaller is not followed; λ rises instead. Also the largest
        correction of a point, as a part of its step.
    near, met
        Part of the residual by which the outputs may miss their predictions: up to the one a point that lowers the loss
        as promised is left as it is, up to the other every point.
    contraction
        Factor by which two corrections in a row have to bring the outputs nearer to their predictions.
    fewest, most, per_correction
        Range of the number of corrections of a point, and parameters (or rows, where these are fewer) for each of them.
    easy
        Corrections up to which λ falls by `fall`. It falls by `rise` up to half of those that are affordable.
    missed
        The part of the residual by which the outputs are to miss them at the next, smaller α.
    least
        The smallest α that is tried before λ rises.
    trusted
        Gain ratio from which the loss falls as promised; the straight step is then taken although the path bends too
        much to be followed.
    long, short
        α of a step after which λ falls, and below which it rises.
    rise, fall
        Factors of λ.
    largest
        Upper bound of the relative λ.
    probe
        Place on d at which the second derivative is measured, as a part of it.
    attempts
        Most values of λ tried in one step.
    known
        Largest surprise, loss on new data over the loss that the step before had reached on its own, at which batches
        count as alike: a step then trusts its data as if they stayed the same.
    overfit
        Part of the squared residual that a step leaves over where every step sees few, other data.
    slowest
        Smallest part of a step that is taken where every step sees few, other data.
    loosest, tightest
        Range of the accuracy to which an iteration solves the equations of a step.
    """

    start: float = 1e-8
    bend: float = 1.25
    bend_strange: float = 0.6
    shortest: float = 0.5
    near: float = 0.1
    met: float = 1e-3
    contraction: float = 0.7
    fewest: int = 12
    most: int = 24
    per_correction: int = 50
    easy: int = 1
    missed: float = 0.7
    least: float = 0.15
    trusted: float = 0.75
    long: float = 0.5
    short: float = 0.25
    rise: float = 3.0
    fall: float = 10.0
    largest: float = 1e3
    probe: float = 0.1
    attempts: int = 12
    known: float = 2.0
    overfit: float = 0.1
    slowest: float = 0.1
    loosest: float = 0.03
    tightest: float = 1e-6

    def length(self, bending: float, cautious: bool = False) -> float:
        """α for a path that bends by `bending` at full length."""
        largest = self.bend_strange if cautious else self.bend
        return 1.0 if bending <= largest else largest / bending

    def shortening(self, defect: float) -> float:
        """The factor of α after a point that missed the outputs of the parabola by a part `defect` of the residual."""
        if defect < self.near:  # the outputs are as promised: what fails is the model of the loss, or rounding
            return 0.5
        return min(0.7, max(0.1, (self.missed / defect) ** (1 / 3)))

    def affordable(self, size: int) -> int:
        """The most corrections of a point, where J̃ has a smaller side of `size`: they are to cost no more than a new J̃.

        That and its factor take M P min(M, P) operations, a correction a few dozen M P.
        """
        return min(self.most, max(self.fewest, size // self.per_correction))

    def worth_correcting(self, misses: list[float], most: int) -> bool:
        """Whether further corrections, `most` in all, may lead to where the outputs are as predicted.

        Parameters
        ----------
        misses
            What the outputs missed of their predictions, parts of the residual, first and after every correction.
        """
        if len(misses) < 3:
            return len(misses) <= most and (len(misses) < 2 or misses[1] < 2 * misses[0])
        fallen = misses[-1] / misses[-3]
        if not fallen < self.contraction:
            return False
        left = 2 * math.log(max(1.0, misses[-1] / self.near)) / -math.log(max(fallen, 1e-300))
        return len(misses) - 1 + max(1.0, left) <= most

    def after_success(
        self, level: float, length: float, floor: float, at_once: bool = True, corrections: int = 0, most: int = 1
    ) -> float:
        """The next relative λ after a step of length α, found at the first λ tried or not, by so many corrections of
        the most that are affordable.
        """
        if length >= self.long and at_once and corrections <= max(self.easy, most // 2):
            return max(floor, level / (self.fall if corrections <= self.easy else self.rise))
        return min(self.largest, level * self.rise) if length < self.short else level

    def after_fresh(self, level: float, following: float, left_over: float) -> float:
        """The next relative λ where every step sees other data, few for the parameters.

        They can be fitted to rounding, at the cost of the fit everywhere else. λ therefore holds the part of the
        squared residual that a step leaves over between `overfit` and three times that; beyond, it is `following`.
        """
        if left_over < self.overfit:
            return min(self.largest, level * self.rise)
        return level if left_over < 3 * self.overfit else following

    def pace(self, pace: float, trend: float, loss: float) -> tuple[float, float]:
        """The part of a step to take where every step sees few, other data, and the trend of their losses.

        The loss on data not seen before is an honest one. While it falls, whole steps are taken. Where it no longer
        does, steps fit what is peculiar to their batch: they then become smaller, and with momentum the direction
        gathers what many batches say.

        Parameters
        ----------
        pace
            The part taken so far.
        trend
            Geometric mean of the losses before each step, older ones weighing less; infinity before the first.
        loss
            Before this step.
        """
        if not 0 < loss < math.inf:
            return pace, trend
        if trend == math.inf:
            return pace, loss
        slower = max(self.slowest, 0.95 * pace) if loss > 0.9 * trend else pace
        return slower, trend**0.9 * loss**0.1

    def surprise(self, reached: float, loss: float) -> float:
        """The loss on data not seen before over the loss that the step before had `reached` on others."""
        return loss / reached if 0 < reached < math.inf else math.inf

    def alike(self, surprise: float) -> bool:
        """Whether the data of one step tell about those of the next."""
        return surprise <= self.known

    def exact(self, exact: bool, surprise: float, level: float, floor: float) -> bool:
        """Whether rounding of float32, which allows no relative λ below `floor`, now holds steps back.

        That is so where λ has come down to it and batches are alike; when it has once been so, batches may differ by
        ten times as much before float32 is enough again.
        """
        return level <= floor and surprise <= (10 * self.known if exact else self.known)

    def tolerance(self, previous: float, accepted: bool, ratio: float) -> float:
        """Return the accuracy to which an iteration is to solve the next equations, as a part of the right-hand side.

        A tenth of the factor by which the residual has just fallen, so that the solve is never what holds a step back
        (Eisenstat and Walker, SIAM J. Sci. Comput. 17, 1996); tighter after a step that did not lower the loss.

        Parameters
        ----------
        previous
            Of the step just taken.
        accepted
            Whether that lowered the loss.
        ratio
            Loss after it over loss before.
        """
        wanted = 0.1 * max(ratio, 0.0) ** 0.5 if accepted else 0.1 * previous
        return min(self.loosest, max(self.tightest, wanted))

    def after_failure(self, level: float, failures: int) -> float:
        """Return the next relative λ after a step that was too short or raised the loss, the n-th in a row.

        From the third failure on λ rises faster and faster: the start may be many powers of ten away from where it
        works.
        """
        return min(self.largest, level * self.rise ** max(1, failures - 1))
