# SPDX-License-Identifier: Apache-2.0
"""What models are used for: generate, score and embed sequences, as generators over FASTA."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from performer.models.fasta import Record, Source, records
from performer.models.language_model import DecodeState, LanguageModel
from performer.models.vocabulary import Vocabulary


class Score(NamedTuple):
    """Log-likelihoods of one sequence: a number for each token, natural logarithm."""

    id: str
    tokens: list[int]
    log_probabilities: list[float]

    @property
    def total(self) -> float:
        """Their sum."""
        return math.fsum(self.log_probabilities)

    @property
    def mean(self) -> float:
        """Their mean; 0 for a sequence without tokens."""
        return self.total / len(self.log_probabilities) if self.log_probabilities else 0.0

    @property
    def perplexity(self) -> float:
        """exp(-mean)."""
        return math.exp(-self.mean)


class Embedding(NamedTuple):
    """One sequence: mean [width] over its tokens, and one row a token [length, width], both float32 on the CPU."""

    id: str
    mean: Tensor
    tokens: Tensor


class Generated(NamedTuple):
    """One sampled sequence: ids without markers, its text, and its log-likelihood under the model itself."""

    number: int  # from 0
    tokens: list[int]
    text: str
    log_likelihood: float
    sampled: int  # tokens that log_likelihood sums over
    ended: bool  # by the end marker, not by max_length


def _vocabulary(model: LanguageModel) -> Vocabulary:
    if model.vocabulary is None:
        raise ValueError("this model has no vocabulary: load it with from_pretrained(), or give one to its constructor")
    return model.vocabulary


@contextlib.contextmanager
def _evaluating(model: LanguageModel) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _check_length(model: LanguageModel, record: Record, markers: int) -> None:
    config = model.model_config
    if config.limits_length and len(record.tokens) + markers > config.max_length:
        raise ValueError(
            f"record {record.number} ('{record.id}') has {len(record.tokens)} tokens, but this model's positions cover "
            f"{config.max_length - markers}: leave it out, or use a model with rotary or sinusoidal positions"
        )


def _groups(model: LanguageModel, source: Source, batch_tokens: int, markers: int) -> Iterator[list[Record]]:
    """Records in order, as many as a batch may hold; a longer one is alone."""
    group: list[Record] = []
    size = 0
    for record in records(source, _vocabulary(model)):
        _check_length(model, record, markers)
        if group and size + len(record.tokens) > batch_tokens:
            yield group
            group, size = [], 0
        group.append(record)
        size += len(record.tokens)
    if group:
        yield group


def _packed(rows: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    tokens = torch.tensor([[token for row in rows for token in row]], dtype=torch.int64, device=device)
    return tokens, torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)


def _log_probabilities(
    model: LanguageModel, rows: list[list[int]], places: list[int], targets: list[int]
) -> list[float]:
    device = model.embedding.weight.device
    tokens, bounds = _packed(rows, device)
    hidden = model.hidden(tokens, cu_seqlens=bounds)[0, torch.tensor(places, dtype=torch.int64, device=device)]
    chosen = torch.tensor(targets, dtype=torch.int64, device=device).unsqueeze(1)
    found: list[float] = model.logits(hidden).float().log_softmax(-1).gather(1, chosen).squeeze(1).tolist()
    return found


def _score_masked(model: LanguageModel, vocabulary: Vocabulary, record: Record, batch_tokens: int) -> list[float]:
    """Copies of one sequence between its markers, each with one token hidden."""
    length = len(record.tokens)
    copies = max(1, batch_tokens // (length + 2))
    found: list[float] = []
    for first in range(0, length, copies):
        rows: list[list[int]] = []
        places: list[int] = []
        for hidden in range(first, min(first + copies, length)):
            inner = list(record.tokens)
            inner[hidden] = vocabulary.mask
            places.append(len(rows) * (length + 2) + 1 + hidden)
            rows.append([vocabulary.bos, *inner, vocabulary.eos])
        found += _log_probabilities(model, rows, places, record.tokens[first : first + len(rows)])
    return found


def score(model: LanguageModel, source: Source, *, batch_tokens: int = 16384) -> Iterator[Score]:
    """Log-likelihoods of sequences, in their order, as `performer score` gives them.

    Causal models: log p(x_i | x_1 .. x_{i-1}); masked ones: pseudo-likelihood, each token hidden alone. The end marker
    is not scored. Memory holds one batch.

    Args:
        source: a FASTA file, texts, or pairs of name and text.
        batch_tokens: tokens computed at a time; a longer sequence is alone in its batch.

    Raises:
        ValueError: naming the record, for what is no symbol and for sequences beyond the model's positions.
    """
    vocabulary = _vocabulary(model)
    causal = model.model_config.objective == "causal"
    for group in _groups(model, source, batch_tokens, 0 if causal else 2):
        with _evaluating(model):
            if causal:
                rows = [[vocabulary.bos, *record.tokens[:-1]] if record.tokens else [] for record in group]
                targets = [token for record in group for token in record.tokens]
                flat = iter(_log_probabilities(model, rows, list(range(len(targets))), targets))
                found = [[next(flat) for _ in record.tokens] for record in group]
            else:
                found = [_score_masked(model, vocabulary, record, batch_tokens) for record in group]
        for record, values in zip(group, found, strict=True):
            yield Score(record.id, record.tokens, values)


def embed(
    model: LanguageModel, source: Source, *, layer: int | None = None, batch_tokens: int = 16384
) -> Iterator[Embedding]:
    """Embeddings of sequences, in their order: the final norm's outputs at their tokens, without the markers.

    Args:
        source: a FASTA file, texts, or pairs of name and text.
        layer: the output of block `layer` (from 1; 0: the input) instead; None: after the final norm.
        batch_tokens: tokens computed at a time.

    Raises:
        ValueError: as score(), and for a layer that the model does not have.
    """
    vocabulary = _vocabulary(model)
    if layer is not None and not 0 <= layer <= model.model_config.layers:
        raise ValueError(f"layer must be between 0 and {model.model_config.layers}, not {layer}")
    masked = model.model_config.objective == "masked"
    for group in _groups(model, source, batch_tokens, 1 + masked):
        rows = [[vocabulary.bos, *record.tokens, *([vocabulary.eos] if masked else [])] for record in group]
        with _evaluating(model):
            tokens, bounds = _packed(rows, model.embedding.weight.device)
            if layer is None:
                values = model.hidden(tokens, cu_seqlens=bounds)
            else:
                made = model.represent(tokens, cu_seqlens=bounds)
                values = made.input if layer == 0 else made.layers[layer - 1]
            values = values[0].to("cpu", torch.float32)
        for record, begin in zip(group, bounds.tolist(), strict=False):
            own = values[begin + 1 : begin + 1 + len(record.tokens)]
            yield Embedding(record.id, own.mean(0), own.clone())


def _filtered(logits: Tensor, temperature: float, top_k: int, top_p: float, forbidden: list[int]) -> Tensor:
    """Log-probabilities [B, V] of what may be drawn."""
    values = logits.double()
    values = values / temperature if temperature > 0 else values
    values[:, forbidden] = -math.inf
    if temperature == 0:
        best = values.argmax(-1, keepdim=True)
        return torch.full_like(values, -math.inf).scatter_(1, best, 0.0)
    if 0 < top_k < values.shape[1]:
        threshold = values.topk(top_k).values[:, -1:]
        values = values.masked_fill(values < threshold, -math.inf)
    values = values.log_softmax(-1)
    if top_p < 1:
        ordered, order = values.exp().sort(dim=-1, descending=True, stable=True)
        drop = (ordered.cumsum(-1) - ordered) >= top_p
        values = values.masked_fill(drop.scatter(1, order, drop), -math.inf).log_softmax(-1)
    return values


def _check_sampling(temperature: float, top_k: int, top_p: float) -> None:
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be a finite number of at least 0, but is {temperature}")
    if top_k < 0:
        raise ValueError(f"top_k must be at least 0 (0: no limit), but is {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], but is {top_p}")


def generate(
    model: LanguageModel,
    count: int = 1,
    *,
    prompt: str = "",
    max_length: int = 512,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 32,
) -> Iterator[Generated]:
    """Samples sequences of a causal model, token by token at a constant cost each.

    Args:
        count: how many.
        prompt: what each begins with.
        max_length: symbols of a sequence at most, prompt included.
        temperature: divides the logits; 0: always the most probable token.
        top_k: keep the k most probable tokens; 0: all.
        top_p: keep the smallest set of tokens with at least this probability.
        seed: sequence i draws from a generator of its own, whatever the batch size.
        batch_size: sequences sampled at a time.

    Raises:
        ValueError: for a masked model, impossible options and a prompt that is no text of the vocabulary.
    """
    vocabulary = _vocabulary(model)
    _check_sampling(temperature, top_k, top_p)
    start = vocabulary.encode(prompt)
    if len(start) >= max_length:
        raise ValueError(f"the prompt has {len(start)} tokens, but max_length is {max_length}")
    for first in range(0, count, batch_size):
        indices = list(range(first, min(count, first + batch_size)))
        with _evaluating(model):
            finished = _generate_batch(model, vocabulary, start, indices, max_length, (temperature, top_k, top_p), seed)
        yield from finished


class _Row:
    def __init__(self, index: int, start: list[int], seed: int) -> None:
        self.index, self.tokens, self.likelihood, self.sampled, self.ended = index, list(start), 0.0, 0, False
        self.random = torch.Generator().manual_seed((seed * 1_000_003 + index) % 2**63)

    def made(self, vocabulary: Vocabulary) -> Generated:
        text = vocabulary.decode(self.tokens)
        return Generated(self.index, self.tokens, text, self.likelihood, self.sampled, self.ended)


def _generate_batch(
    model: LanguageModel,
    vocabulary: Vocabulary,
    start: list[int],
    indices: list[int],
    max_length: int,
    sampling: tuple[float, int, float],
    seed: int,
) -> list[Generated]:
    rows = [_Row(index, start, seed) for index in indices]
    device = model.embedding.weight.device
    state: DecodeState = model.begin(1)
    logits = model.advance(torch.tensor([[vocabulary.bos, *start]], device=device), state)[:, -1]
    copies = torch.zeros(len(rows), dtype=torch.int64, device=device)
    state, logits = state.select(copies), logits.index_select(0, copies)
    active = list(rows)
    while active:
        plain = logits.float().cpu()
        forbidden = [vocabulary.bos, vocabulary.pad, vocabulary.mask]
        if not active[0].tokens:
            forbidden.append(vocabulary.eos)  # no format has empty records
        allowed = _filtered(plain, *sampling, forbidden).exp()
        own = plain.double().log_softmax(-1)
        kept, places, tokens = [], [], []
        for place, row in enumerate(active):
            token = int(torch.multinomial(allowed[place], 1, generator=row.random))
            row.likelihood += float(own[place, token])
            row.sampled += 1
            row.ended = token == vocabulary.eos
            if not row.ended:
                row.tokens.append(token)
            if not row.ended and len(row.tokens) < max_length:
                kept.append(row)
                places.append(place)
                tokens.append(token)
        if not kept:
            break
        if len(kept) < len(active):
            state = state.select(torch.tensor(places, device=device))
        active = kept
        logits = model.step(torch.tensor(tokens, device=device), state)
    return [row.made(vocabulary) for row in rows]
