"""Kullback-Leibler divergences on logits, used by several losses."""

from __future__ import annotations

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
    gap = functional.softplus(student_logits) - functional.softplus(teacher_logits)
    return gap - (student_logits - teacher_logits) * target


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
