"""A million neurons on a thousand handwritten digits: steps that no longer look at all of them."""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

import widefit

WIDTH, ROWS = 2**20, 1000

pixels, digit = load_digits(return_X_y=True)
X = torch.nn.functional.normalize(torch.from_numpy(pixels - pixels.mean(axis=0)).float())
parity = torch.from_numpy(digit % 2 * 2.0 - 1)
network = widefit.nn.TwoLayer(in_features=64, width=WIDTH, seed=0)
history = widefit.train(network, X[:ROWS], parity[:ROWS], tol=1e-10)
for info in history:
    looked = "a pass over all neurons" if info.rebased or not info.step else "certificates alone"
    print(f"step {info.step}: loss {info.loss:.1e}, {info.flips or 0:,} flips, {looked}, {info.seconds:.1f} s")
right = torch.sign(network(X[ROWS:])[:, 0]) == parity[ROWS:]
print(f"{right.double().mean():.1%} of the other digits; {history.why}")

figure, (left, middle) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
left.semilogy([info.step for info in history], history.losses, "o-")
left.set(xlabel="step", ylabel="loss")
middle.semilogy([info.step for info in history[1:]], [max(info.flips or 0, 1) for info in history[1:]], "o-")
middle.set(xlabel="step", ylabel=f"flips, of {WIDTH * ROWS:.0e} pairs")
figure.savefig("million_neurons.png", dpi=80)
