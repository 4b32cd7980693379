"""What is believed of a person's weights: a Gaussian, or a mixture of them.

A population is seldom one cloud, nor is what one person's few answers leave possible: each part of a mixture is a
hypothesis such as "one of those who like it short". Whoever takes a belief reads either kind through `weights` and
`parts`; a Gaussian is a mixture of one part.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from palate.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution over user weights, or a batch of them.

    Args:
        mean: (..., D) means.
        cov: (..., D, D) covariances, positive definite.
    """

    mean: Floats
    cov: Floats

    def __post_init__(self) -> None:
        dim = self.mean.shape[-1]
        if self.cov.shape != (*self.mean.shape[:-1], dim, dim):
            raise InputError(
                f"Covariance of shape {self.cov.shape} does not fit a mean of shape {self.mean.shape}; "
                "give one (D, D) matrix per mean"
            )

    @property
    def weights(self) -> Floats:
        """(..., 1) the weight of the only part: 1."""
        return np.ones((*self.mean.shape[:-1], 1))

    @property
    def parts(self) -> "Gaussian":
        """The only part: mean (..., 1, D), cov (..., 1, D, D)."""
        return Gaussian(self.mean[..., None, :], self.cov[..., None, :, :])

    def of(self, v: Floats) -> tuple[Floats, Floats]:
        """Mean and variance of λ · v.

        Args:
            v: (..., M, D) directions, batched like the means.

        Returns:
            Two (..., M) arrays.
        """
        mean = np.matmul(v, self.mean[..., None])[..., 0]
        variance = np.sum(np.matmul(v, self.cov) * v, axis=-1)
        return mean, variance

    def draw(self, rng: np.random.Generator) -> Floats:
        """(..., D) weights drawn at random."""
        root = np.linalg.cholesky(self.cov)
        noise = rng.standard_normal(self.mean.shape)
        return np.asarray(self.mean + np.matmul(root, noise[..., None])[..., 0], np.float64)

    def leading(self, dim: int) -> "Gaussian":
        """The belief about the first `dim` weights alone."""
        return Gaussian(self.mean[..., :dim], self.cov[..., :dim, :dim])

    def with_column(self, deviation: float) -> "Gaussian":
        """The belief with one more weight, independent of the others, of mean 0 and that standard deviation."""
        dim = self.mean.shape[-1]
        cov = np.zeros((*self.mean.shape[:-1], dim + 1, dim + 1))
        cov[..., :dim, :dim] = self.cov
        cov[..., dim, dim] = deviation**2
        return Gaussian(np.concatenate([self.mean, np.zeros((*self.mean.shape[:-1], 1))], axis=-1), cov)

    def affine(self, a: Floats, shift: Floats) -> "Gaussian":
        """The belief about a @ λ + shift, for a (D', D) and shift (D',)."""
        return Gaussian(self.mean @ a.T + shift, a @ self.cov @ a.T)

    def __getitem__(self, index: int | slice | Ints) -> "Gaussian":
        """One or some of a batch."""
        return Gaussian(self.mean[index], self.cov[index])


@dataclass(frozen=True)
class Mixture:
    """A mixture of K normal distributions over user weights, or a batch of them.

    Args:
        weights: (..., K) probabilities, summing to 1.
        parts: mean (..., K, D) and cov (..., K, D, D).

    Example:
        >>> two = Mixture(np.array([0.5, 0.5]), Gaussian(np.array([[-1.0], [1.0]]), np.ones((2, 1, 1))))
        >>> two.mean, two.cov
        (array([0.]), array([[2.]]))
    """

    weights: Floats
    parts: Gaussian

    def __post_init__(self) -> None:
        if self.weights.shape != self.parts.mean.shape[:-1]:
            raise InputError(
                f"Weights of shape {self.weights.shape} do not fit means of shape {self.parts.mean.shape}; "
                "give one weight per part"
            )

    @cached_property
    def mean(self) -> Floats:
        """(..., D) mean of the whole."""
        return np.asarray(np.sum(self.weights[..., None] * self.parts.mean, axis=-2), np.float64)

    @cached_property
    def cov(self) -> Floats:
        """(..., D, D) covariance of the whole: within the parts and between them."""
        apart = self.parts.mean - self.mean[..., None, :]
        each = self.parts.cov + apart[..., :, None] * apart[..., None, :]
        return np.asarray(np.sum(self.weights[..., None, None] * each, axis=-3), np.float64)

    def of(self, v: Floats) -> tuple[Floats, Floats]:
        """Mean and variance of λ · v under the whole; as `Gaussian.of`."""
        return Gaussian(self.mean, self.cov).of(v)

    def draw(self, rng: np.random.Generator) -> Floats:
        """(..., D) weights drawn at random: a part, then from it."""
        at = rng.random((*self.weights.shape[:-1], 1))
        part = np.minimum(np.sum(np.cumsum(self.weights, axis=-1) < at, axis=-1), self.weights.shape[-1] - 1)
        mean = np.take_along_axis(self.parts.mean, part[..., None, None], axis=-2)[..., 0, :]
        cov = np.take_along_axis(self.parts.cov, part[..., None, None, None], axis=-3)[..., 0, :, :]
        return Gaussian(mean, cov).draw(rng)

    def leading(self, dim: int) -> "Mixture":
        """The belief about the first `dim` weights alone."""
        return Mixture(self.weights, self.parts.leading(dim))

    def with_column(self, deviation: float) -> "Mixture":
        """As `Gaussian.with_column`, in every part."""
        return Mixture(self.weights, self.parts.with_column(deviation))

    def affine(self, a: Floats, shift: Floats) -> "Mixture":
        """As `Gaussian.affine`, part by part."""
        return Mixture(self.weights, self.parts.affine(a, shift))

    def __getitem__(self, index: int | slice | Ints) -> "Mixture":
        """One or some of a batch."""
        return Mixture(self.weights[index], self.parts[index])


Belief = Gaussian | Mixture
"""What is believed of a person's weights, or of many people's."""


def where(mask: NDArray[np.bool_], one: Belief, other: Belief) -> Belief:
    """One belief of each of U people where the (U,) mask holds, else the other; both of one kind."""
    if isinstance(one, Mixture) and isinstance(other, Mixture):
        return Mixture(np.where(mask[:, None], one.weights, other.weights), _where(mask, one.parts, other.parts))
    assert isinstance(one, Gaussian) and isinstance(other, Gaussian)
    return _where(mask, one, other)


def _where(mask: NDArray[np.bool_], one: Gaussian, other: Gaussian) -> Gaussian:
    def pick(a: Floats, b: Floats) -> Floats:
        return np.asarray(np.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b), np.float64)

    return Gaussian(pick(one.mean, other.mean), pick(one.cov, other.cov))
