"""Kullback-Leibler divergences on logits, used by several losses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def binary_divergence(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return KL(Bernoulli(q) || Bernoulli(p)) = BCE(s, q) - H(q), elementwise.

    Zero at equality (cross-entropy alone is not); its gradient with respect to `student_logits` is p - q.

    Args:
        student_logits: s of any shape, p = sigmoid(s).
        teacher_logits: t of the same shape, q = sigmoid(t).
    """
    target = teacher_logits.sigmoid()
    # softplus(s) - s*q - (softplus(t) - t*q): exactly 0 at s = t, where two rounded entropies would not be.
    difference = functional.softplus(student_logits) - functional.softplus(teacher_logits)
    return difference - (student_logits - teacher_logits) * target


def binary_divergence_to(student_logits: Tensor, class_targets: Tensor) -> Tensor:
    """Return KL(Bernoulli(q) || Bernoulli(p)) = BCE(s, q) - H(q), elementwise, for a teacher without logits.

    Zero at equality up to rounding.

    Args:
        student_logits: s of any shape, p = sigmoid(s).
        class_targets: q in [0, 1], same shape.
    """
    loss = functional.binary_cross_entropy_with_logits(student_logits, class_targets, reduction="none")
    entropy: Tensor = torch.special.entr(class_targets) + torch.special.entr(1.0 - class_targets)
    return loss - entropy


def softmax_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return T^2 * KL(softmax(t/T) || softmax(s/T)) over the last dimension, of shape (...).

    T^2 keeps the size of the gradient, T * (p_s - p_t), roughly independent of T.

    Args:
        student_logits: s, (..., K).
        teacher_logits: t, (..., K).
        temperature: T > 0.
    """
    divergence = functional.kl_div(
        functional.log_softmax(student_logits / temperature, dim=-1),
        functional.log_softmax(teacher_logits / temperature, dim=-1),
        reduction="none",
        log_target=True,
    )
    return temperature**2 * divergence.sum(dim=-1)


def background_log_probs(logits: Tensor, background: Tensor, known: Tensor | None = None) -> Tensor:
    """Return the log-probabilities of a softmax head, (..., 1 + K): background, then the classes.

    A teacher predicts background for objects of classes that it never learned. The student's probability of such
    a class therefore counts as background, and the class's own column is -inf.

    Args:
        logits: (..., K).
        background: (...) logit of "no object".
        known: (K,) bool, classes that the teacher learned; None: all.
    """
    first = background[..., None]
    if known is not None:
        first = torch.cat([first, logits[..., ~known]], dim=-1).logsumexp(dim=-1, keepdim=True)
        logits = logits.masked_fill(~known, float("-inf"))
    return torch.cat([first, logits], dim=-1).log_softmax(dim=-1)


def with_background(probs: Tensor) -> Tensor:
    """Return (..., 1 + K) probabilities that sum to 1: background, with what the classes leave, then the classes.

    Args:
        probs: (..., K); where they sum to more than 1 they are divided by the sum.
    """
    total = probs.sum(dim=-1, keepdim=True)
    return torch.cat([(1.0 - total).clamp(min=0.0), probs / total.clamp(min=1.0)], dim=-1)


def categorical_divergence(log_probs: Tensor, class_targets: Tensor) -> Tensor:
    """Return KL(targets || probabilities) over the last dimension, of shape (...); 0 at equality.

    Args:
        log_probs: (..., K) log-probabilities; -inf is harmless where the target is 0.
        class_targets: (..., K) probabilities that sum to 1.
    """
    finite = log_probs.masked_fill(class_targets == 0, 0.0)
    entropy: Tensor = torch.special.entr(class_targets)
    return (-class_targets * finite - entropy).sum(dim=-1)
