"""A network that reads upright digits, adapted to ones turned by 90°, with 50 to 1000 of them."""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

import widefit

SIZES, WIDTH, EPOCHS = (50, 100, 200, 400, 1000), 256, 200

pixels, digit = load_digits(return_X_y=True)
X, y = torch.from_numpy(pixels).float() / 16, torch.from_numpy(digit)
turned = X.reshape(-1, 8, 8).rot90(dims=(1, 2)).flatten(1)

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, 10))
adam = torch.optim.Adam(model.parameters(), lr=3e-3)
for _ in range(EPOCHS):
    adam.zero_grad()
    torch.nn.functional.cross_entropy(model(X[:1000]), y[:1000]).backward()
    adam.step()


def accuracy(network, inputs):
    return float((network(inputs[1000:]).argmax(1) == y[1000:]).double().mean())


print(f"upright {accuracy(model, X):.1%}, turned {accuracy(model, turned):.1%}")
reached = []
for rows in SIZES:
    adapted = widefit.finetune(model, turned[:rows], y[:rows], loss="cross_entropy")
    reached.append(accuracy(adapted, turned))
    record = adapted.finetuning_
    stages = " then ".join(" and ".join(names) for names in record.stages)
    print(f"{rows} turned digits: {reached[-1]:.1%}, {record.history[-1].seconds:.2f} s, layer {stages}")

figure, panel = plt.subplots(figsize=(6, 3.4), layout="constrained")
panel.semilogx(SIZES, reached, "o-", label="adapted")
panel.axhline(accuracy(model, X), color="gray", linestyle=":", label="upright digits, before")
panel.axhline(accuracy(model, turned), color="gray", linestyle="--", label="turned digits, before")
panel.set(xlabel="turned digits to learn from", ylabel="accuracy on others")
panel.legend()
figure.savefig("finetune_digits.png", dpi=80)
