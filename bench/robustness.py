"""Accuracy under attack on digits, of normal and of adversarial training, and what the adversary costs."""

import statistics
import time
from pathlib import Path

import torch
from harness import describe_machine, entry, main
from two_layer_peers import largest_eigenvalue
from two_layer_problems import digits_parity
from two_layer_runs import dense_network

import widefit
from widefit.nn import TwoLayer
from widefit.rules import PGD, SGD, RobustAccuracy

BATCH_SIZE = 32
# The logistic loss bends by a quarter of the squared one at most.
CURVATURE = 0.25
EXPONENT = {"quick": 11, "default": 14, "full": 16}
EPOCHS = {"quick": 5, "default": 40, "full": 100}
ATTACK_STEPS = {"quick": 5, "default": 20, "full": 50}
# Radii on the unit sphere: of training, and of the attacks on what was trained.
TRAINING = {"linf": 0.05, "l2": 0.2}
ATTACKS = {"linf": (0.0, 0.02, 0.05, 0.1), "l2": (0.0, 0.1, 0.2, 0.4)}


def run(size: str, seeds: int = 1) -> dict:
    """Digits parity, n = 1000 and 797 to test, logistic loss, batches of 32; medians over seeds."""
    problem = digits_parity(200 if size == "quick" else 1000)
    test_targets = problem.test_targets[:, None]
    figures, records = [], []
    for norm, radius in TRAINING.items():
        seconds: dict[str, list[float]] = {}
        found: dict[tuple[str, float], list[float]] = {}
        for seed in range(seeds):
            for name, adversary in (("normal", None), ("adversarial", PGD(radius, 5, norm=norm))):
                network = TwoLayer(64, 1 << EXPONENT[size], seed=seed)
                dense = dense_network(network, network.weight.detach())
                lr = 1 / (CURVATURE * largest_eigenvalue(dense, torch.from_numpy(problem.inputs), BATCH_SIZE))
                rule = SGD(lr, BATCH_SIZE, loss="logistic", seed=seed, adversary=adversary)
                begun = time.perf_counter()
                widefit.train(
                    network, problem.inputs, problem.targets, rule=rule, tracker="dense", max_iter=EPOCHS[size], tol=0
                )
                seconds.setdefault(name, []).append(time.perf_counter() - begun)
                for attack in ATTACKS[norm]:
                    strong = PGD(attack, ATTACK_STEPS[size], norm=norm)
                    judge = RobustAccuracy(strong, problem.test_inputs, test_targets, "logistic")
                    found.setdefault((name, attack), []).append(judge(network))
        spent = {name: statistics.median(times) for name, times in seconds.items()}
        for (name, attack), accuracies in found.items():
            accuracy = statistics.median(accuracies)
            title = f"{norm}, {name} training" + (f" with radius {radius}" if name != "normal" else "")
            figures.append(
                entry(f"{title}, accuracy under attack with radius {attack}", accuracy, "of the test digits")
            )
            records.append({"norm": norm, "training": name, "radius": attack, "accuracy": accuracy})
        figures.append(entry(f"{norm}, normal training, time", spent["normal"], "s"))
        ratio = spent["normal"] / spent["adversarial"]
        figures.append(
            entry(f"{norm}, adversarial training, time", spent["adversarial"], "s", "normal training", ratio)
        )
    settings = {
        "size": size, "width": 1 << EXPONENT[size], "epochs": EPOCHS[size], "batch_size": BATCH_SIZE, "seeds": seeds,
        "attack_steps": ATTACK_STEPS[size], "training_steps": 5,
    }  # fmt: skip
    return {"machine": describe_machine(), "settings": settings, "figures": figures, "records": records}


def draw(result: dict, path: Path) -> None:
    """Accuracy against the radius of the attack, a panel a norm."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(ATTACKS), figsize=(9, 3.6), layout="constrained")
    for panel, norm in zip(panels, ATTACKS, strict=True):
        for training in ("normal", "adversarial"):
            lines = [r for r in result["records"] if (r["norm"], r["training"]) == (norm, training)]
            panel.plot([r["radius"] for r in lines], [r["accuracy"] for r in lines], "o-", label=f"{training} training")
        panel.axvline(TRAINING[norm], color="0.7", linestyle=":")
        panel.set(title=norm, xlabel="radius of the attack", ylabel="accuracy", ylim=(0, 1))
        panel.legend()
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    main("robustness", run, draw)
