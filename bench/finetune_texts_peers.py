"""Adapting a transformer as one would otherwise: AdamW on everything, LoRA of PEFT, AdamW behind kept states."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

RATES = {
    "AdamW, everything": (3e-5, 1e-4, 2e-4, 4e-4),
    "LoRA": (3e-4, 1e-3, 3e-3, 1e-2),
    "AdamW, kept states": (3e-5, 1e-4, 3e-4, 1e-3),
}
BATCH = 32
# Looks at the accuracy in an epoch; the clock stands still meanwhile.
LOOKS = 2
_LONGEST = 128


@dataclass(frozen=True)
class Texts:
    """Texts to adapt to with their class numbers, and others to measure on."""

    texts: list[str]
    labels: list[int]
    test_labels: list[int]
    test_texts: list[str]


@dataclass(frozen=True)
class Look:
    """Seconds so far, and accuracy in percent on the texts to measure on."""

    seconds: float
    accuracy: float


@dataclass(frozen=True)
class Opened:
    """A model with tokens."""

    model: Any
    tokenizer: Any
    inputs: dict[str, Tensor]
    targets: Tensor
    texts: Texts

    def tokens(self, texts: list[str]) -> dict[str, Tensor]:
        """Padded to the longest."""
        return dict(self.tokenizer(texts, padding=True, truncation=True, max_length=_LONGEST, return_tensors="pt"))

    @torch.no_grad()
    def accuracy(self, model: Any) -> float:
        """Right answers, in percent."""
        training = model.training
        model.eval()
        order = np.argsort([len(text) for text in self.texts.test_texts])
        right = 0
        for start in range(0, len(order), 64):
            rows = order[start : start + 64]
            wanted = torch.tensor([self.texts.test_labels[row] for row in rows])
            answers = model(**self.tokens([self.texts.test_texts[row] for row in rows])).logits.argmax(1)
            right += int((answers == wanted).sum())
        model.train(training)
        return 100 * right / len(order)


def opened(folder: str, texts: Texts, draw: int = 0) -> Opened:
    """The model of a folder with a head that begins anew, by a draw, and the tokens of the texts to adapt to."""
    import torch._dynamo  # the first step of an optimizer imports it, which is no part of the training
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(draw)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=max(texts.labels) + 1, local_files_only=True, trust_remote_code=False
    )
    found = Opened(model, tokenizer, {}, torch.tensor(texts.labels), texts)
    return Opened(model, tokenizer, found.tokens(texts.texts), found.targets, texts)


def peer(
    kind: str, folder: str, texts: Texts, rate: float, epochs: int, draw: int, clock: Callable[[], float]
) -> Iterator[Look]:
    """Looks of one way of adapting at one rate."""
    started = opened(folder, texts, draw)
    if kind == "LoRA":
        from peft import LoraConfig, get_peft_model

        begun = clock()
        names = ["query", "key", "value", "dense"]
        settings = LoraConfig(r=8, lora_alpha=16, target_modules=names, modules_to_save=["classifier"])
        model: nn.Module = get_peft_model(started.model, settings)
    else:
        begun = clock()
        model = started.model
    states = None
    if kind == "AdamW, kept states":
        states = _kept(model, started)
    spent = clock() - begun
    yield from _adamw(model, started, states, rate, epochs, draw, clock, spent)


def _kept(model: Any, started: Opened) -> list[Tensor]:
    """Hidden states in front of the last half of the blocks, without padding; the rest is frozen."""
    blocks = _blocks(model)
    half = len(blocks) // 2
    model.requires_grad_(False)
    for module in (*blocks[half:], model.classifier, model.bert.pooler):
        module.requires_grad_(True)
    model.eval()
    lengths = started.inputs["attention_mask"].sum(1)
    found: list[Any] = [None] * len(lengths)
    seen: list[Tensor] = []
    handle = blocks[half].register_forward_pre_hook(lambda module, args, kwargs: seen.append(args[0]), with_kwargs=True)
    for rows in torch.argsort(lengths).split(64):
        with torch.no_grad():
            model(**_trimmed(started.inputs, rows))
        for row, states in zip(rows.tolist(), seen.pop(), strict=True):
            found[row] = states[: int(lengths[row])].clone()
    handle.remove()
    return found


def _blocks(model: Any) -> Any:
    return model.bert.encoder.layer


def _trimmed(inputs: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    longest = int(inputs["attention_mask"][rows].sum(1).max())
    return {name: tensor[rows, :longest] for name, tensor in inputs.items()}


def _adamw(
    model: Any,
    started: Opened,
    states: list[Tensor] | None,
    rate: float,
    epochs: int,
    draw: int,
    clock: Callable[[], float],
    spent: float,
) -> Iterator[Look]:
    """AdamW in batches that are padded to their longest row, dropout on, as the library's trainer does it."""
    trained = [own for own in model.parameters() if own.requires_grad]
    optimizer = torch.optim.AdamW(trained, rate, fused=True)
    generator = torch.Generator().manual_seed(draw)
    count = len(started.targets)
    batches = -(-count // BATCH)
    model.train()
    for _ in range(epochs):
        for number, rows in enumerate(torch.randperm(count, generator=generator).split(BATCH), 1):
            begun = clock()
            optimizer.zero_grad()
            logits = _logits(model, started.inputs, rows, states)
            functional.cross_entropy(logits, started.targets[rows]).backward()
            optimizer.step()
            spent += clock() - begun
            if number * LOOKS % batches < LOOKS:
                yield Look(spent, started.accuracy(model))


def _logits(model: Any, inputs: dict[str, Tensor], rows: Tensor, states: list[Tensor] | None) -> Tensor:
    """Logits of a batch, from the kept states on where there are some."""
    batch = _trimmed(inputs, rows)
    if states is None:
        return model(**batch).logits
    blocks = _blocks(model)
    front = blocks[: len(blocks) // 2]
    given = nn.utils.rnn.pad_sequence([states[row] for row in rows.tolist()], batch_first=True)
    try:
        for block in front:
            block.forward = lambda *args, **kwargs: given
        return model(**batch).logits
    finally:
        for block in front:
            del block.forward


def frozen_features(folder: str, texts: Texts, clock: Callable[[], float]) -> Look:
    """Logistic regression on the mean of the last hidden states, its ridge by five parts left out."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    started = opened(folder, texts)
    encoder = started.model.bert.eval()

    def features(rows: list[str]) -> np.ndarray:
        order = np.argsort([len(text) for text in rows])
        found = np.zeros((len(rows), encoder.config.hidden_size))
        for start in range(0, len(rows), 64):
            chosen = order[start : start + 64]
            tokens = started.tokens([rows[row] for row in chosen])
            with torch.no_grad():
                states = encoder(**tokens).last_hidden_state
            mask = tokens["attention_mask"][..., None]
            found[chosen] = ((states * mask).sum(1) / mask.sum(1)).numpy()
        return found

    begun = clock()
    model = make_pipeline(StandardScaler(), LogisticRegressionCV(Cs=np.logspace(-4, 1, 6), max_iter=1000))
    model.fit(features(texts.texts), texts.labels)
    spent = clock() - begun
    return Look(spent, 100 * float(model.score(features(texts.test_texts), texts.test_labels)))
