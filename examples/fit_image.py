"""A photograph from the coordinates of its pixels: SGD that touches only the neurons that fire."""

import math
import time

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_sample_image

from widefit.nn import TwoLayer
from widefit.rules import SGD
from widefit.trackers import HalfSpaceTree
from widefit.training.stream import Streaming

STRIDE, WIDTH, THRESHOLD, BATCH_SIZE, SHOWN = 5, 3 << 16, 2.0, 32, (1, 4, 12, 24)

picture = load_sample_image("flower.jpg")[::STRIDE, ::STRIDE] / 255
height, width, channels = picture.shape
# Rows and columns become angles, on circles that do not quite close: four features, all pixels on the unit sphere.
rows, columns = np.meshgrid(np.linspace(0, 5.6 * height / width, height), np.linspace(0, 5.6, width), indexing="ij")
circles = [wave(angle) for angle in (rows, columns) for wave in (np.cos, np.sin)]
pixels = np.stack(circles, axis=-1).reshape(-1, 4).astype(np.float32) / np.float32(math.sqrt(2))
mean = picture.mean((0, 1))
colours = picture.reshape(-1, channels) - mean


network = TwoLayer(4, WIDTH, channels, threshold=THRESHOLD, paired=True)
# A step of 1 / p cancels the error of a pixel, p the probability that a neuron fires; a stream counts in thousands.
p = math.erfc(THRESHOLD / math.sqrt(2)) / 2
rule = SGD(lr=0.4 / p, batch_size=BATCH_SIZE, schedule="cosine", period=math.ceil(SHOWN[-1] * len(pixels) / 1000))
streaming = Streaming(network, rule=rule, tracker=HalfSpaceTree())
generator, shown, spent = np.random.default_rng(0), {}, 0.0
for epoch in range(1, SHOWN[-1] + 1):
    order = generator.permutation(len(pixels))
    begun = time.perf_counter()
    streaming.learn(pixels[order], colours[order])
    spent += time.perf_counter() - begun
    if epoch in SHOWN:
        now = (streaming.evaluate(pixels) + mean).clip(0, 1)
        psnr = -10 * np.log10(np.mean((now.reshape(picture.shape) - picture) ** 2))
        some = torch.from_numpy(pixels[order[:256]])
        touched = (network.weight @ some.T > THRESHOLD).sum(dim=0).float().mean()
        title = f"epoch {epoch}: {psnr:.1f} dB"
        print(f"{title}, a pixel touches {touched:,.0f} of {WIDTH:,} neurons, {spent:.1f} s")
        shown[title] = now.reshape(picture.shape)

optimizer = torch.optim.SGD([network.weight], lr=1e-9)
batches = torch.from_numpy(pixels[: 12 * BATCH_SIZE]).split(BATCH_SIZE)
targets = torch.from_numpy(colours[: 12 * BATCH_SIZE]).split(BATCH_SIZE)
seconds = []
for batch, target in zip(batches, targets, strict=True):
    begun = time.perf_counter()
    optimizer.zero_grad()
    (network(batch) - target).square().sum().backward()
    optimizer.step()
    seconds.append(time.perf_counter() - begun)
steps = SHOWN[-1] * -(-len(pixels) // BATCH_SIZE)
dense = steps * float(np.median(seconds))
print(f"{spent:.0f} s; dense torch would take {dense:.0f} s, judging by the median of {len(seconds)} steps")

figure, panels = plt.subplots(1, len(SHOWN) + 1, figsize=(15, 2.6), layout="constrained")
for panel, (title, image) in zip(panels, {**shown, "original": picture}.items(), strict=True):
    panel.imshow(image)
    panel.set(title=title, xticks=[], yticks=[])
figure.savefig("fit_image.png", dpi=80)
