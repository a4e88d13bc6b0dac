"""A surrogate of a simulation: the period of a damped pendulum from its length, first angle and friction."""

import matplotlib.pyplot as plt
import numpy as np
from scipy.integrate import solve_ivp

from widefit import WideRegressor

RUNS, WIDTH = 400, 32768

generator = np.random.default_rng(0)
low, high = np.array([0.5, 0.2, 0.0]), np.array([2.0, 2.5, 0.5])  # metres, radians, 1/s


def period(length, angle, friction):
    """Time until the pendulum comes to rest for the second time."""

    def motion(_, state):
        return [state[1], -9.81 / length * np.sin(state[0]) - friction * state[1]]

    def turn(_, state):
        return state[1]

    turn.direction = -1
    found = solve_ivp(motion, (0, 20), [angle, -1e-9], events=turn, rtol=1e-8)
    return found.t_events[0][0]


X = generator.uniform(low, high, (RUNS, 3))
y = np.array([period(*row) for row in X])
half = len(X) // 2
model = WideRegressor(hidden_layer_sizes=(WIDTH,)).fit(X[:half], y[:half])
predicted = model.predict(X[half:])
error = np.sqrt(np.mean((predicted - y[half:]) ** 2))
print(f"RMS error {error:.1e} s of periods between {y.min():.1f} and {y.max():.1f} s")
shares = dict(zip(("length", "angle", "friction"), model.feature_importances_, strict=True))
print("importances:", {name: round(float(share), 2) for name, share in shares.items()})

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
left.plot(y[half:], predicted, ".")
left.axline((float(y.min()),) * 2, slope=1, color="gray", linestyle=":")
left.set(xlabel="simulated period in s", ylabel="predicted period in s")
angles = np.linspace(low[1], high[1], 100)
for length in (0.5, 1.0, 2.0):
    rows = np.stack([np.full(100, length), angles, np.full(100, 0.1)], axis=1)
    right.plot(angles, model.predict(rows), label=f"{length} m")
right.set(xlabel="first angle in radians", ylabel="period in s")
right.legend()
figure.savefig("surrogate.png", dpi=80)
