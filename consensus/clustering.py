"""Spectral clustering of clients by a matrix of correlations, in integers: the same labels on every machine.

This is a consensus rule: from the matrix that an AGGREGATE transaction carries every node derives the clusters and
their centroids. Here belong the matrix's byte form, the clustering and the centroids. Where the correlations come from
(prototypes, Pearson) and what the clusters are good for (averages, payouts, the packing queue) does not.

There is no float in this module, not even an intermediate one. Numbers are numpy int64, whose sums don't depend on
order, thread count, vector width or numpy's version as long as they don't overflow; every product says why it can't.

Fixed point: a *fraction* is an integer in units of 2^-30 ("Q30"). The affinity L = D^-1/2 A D^-1/2 has spectral radius
at most 1, so every row of L, every unit vector, every rotation and every row of a matrix with orthonormal columns has
Euclidean norm at most 1 (up to 2^-12 of rounding). By Cauchy and Schwarz each partial sum of a product of two such
rows is at most 2^60 * (1 + 2^-11) < 2^63, for any number of clients.
"""

import hashlib
from collections.abc import Sequence
from math import isqrt
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .rejection import Reason, Rejection

Integers: TypeAlias = npt.NDArray[np.int64]
SimilarityMatrix: TypeAlias = Integers | Sequence[Sequence[int]]

SIMILARITY_ONE = 10_000
"""A correlation of 1: a correlation r travels as the integer r * 10^4, rounded half to even."""

MAX_MATRIX_CLIENTS = 1024
"""Bounds time and the int64 sums below; an AGGREGATE transaction (128 KiB) can't carry more than 256 clients."""

FRACTION_BITS = 30
"""Two fractions multiply to 60 bits: the most that leaves room for rounding and a sign in int64."""

FRACTION_ONE = 1 << FRACTION_BITS

EXTRA_COLUMNS = 4
"""Columns iterated beyond those asked for, so that a close (C+1)-th eigenvalue doesn't slow convergence down."""

BASIS_PER_COLUMN = 5
"""Size of the Krylov basis in blocks: of 3 to 8, 5 and 6 were fastest where there is structure (1 or 2 restarts)."""

DENSE_LIMIT = 40
"""Up to so many clients the whole matrix is diagonalised: as fast as iterating, and convergence is no question."""

RESIDUAL_TOLERANCE = 1 << (FRACTION_BITS - 18)
"""|Lv - lambda v| <= 2^-18: what rounding correlations to 10^-4 does to L at 256 clients, so less would be noise."""

DEPENDENT_BELOW = 1 << (FRACTION_BITS - 22)
"""A unit vector that is shorter than 2^-22 outside the basis depends on it: rounding alone leaves up to 2^-25."""

RESTART_LIMIT = 24
"""Bounds the time on matrices without structure, where the C-th and the next eigenvalues can be arbitrarily close."""

SWEEP_LIMIT = 16
"""Jacobi converges quadratically: 7 to 11 sweeps were needed, also on random matrices."""

ROTATION_TOLERANCE = 1 << 4
"""Off-diagonal entries up to 2^-26 count as zero: just above what rounding itself leaves."""

POINT_BITS = 24
"""k-means in units of 2^-24: a squared distance is at most 4 * 2^48, and 1,024 of them sum to at most 2^60."""

START_LIMIT = 12
"""Farthest-first starts from so many first points, evenly spaced over the clients, besides the greedy start."""

LLOYD_LIMIT = 50
"""Passes of k-means; integer rounding could cycle, so there must be a bound. Up to 28 were seen at 256 clients."""

MOVE_LIMIT = 250
"""Moves of single clients after that, bounded for the same reason. Up to 182 were seen at 256 clients."""


def matrix_from_triangle(triangle: bytes, clients: int) -> Integers:
    """Decodes a similarity matrix from the form that travels in a block.

    Args:
        triangle: the strict upper triangle row by row, each entry a big-endian int16.
        clients: number of clients, at least 1; known from the chain, not from the sender.

    Returns:
        Symmetric matrix (clients, clients) int64 with SIMILARITY_ONE on the diagonal.

    Raises:
        Rejection: MALFORMED where the length isn't that of `clients`, or an entry is outside [-10^4, 10^4].
    """
    assert 1 <= clients <= MAX_MATRIX_CLIENTS, clients
    expected_bytes = clients * (clients - 1)
    if len(triangle) != expected_bytes:
        raise Rejection(Reason.MALFORMED, what="similarity matrix", size_bytes=len(triangle), expected=expected_bytes)
    entries = np.frombuffer(triangle, dtype=">i2").astype(np.int64)
    outside = np.flatnonzero(np.abs(entries) > SIMILARITY_ONE)
    if outside.size:
        first = int(outside[0])
        raise Rejection(
            Reason.MALFORMED, what="similarity", index=first, value=int(entries[first]), limit=SIMILARITY_ONE
        )
    matrix = np.zeros((clients, clients), dtype=np.int64)
    matrix[np.triu_indices(clients, k=1)] = entries
    matrix += matrix.T
    np.fill_diagonal(matrix, SIMILARITY_ONE)
    return matrix


def triangle_from_matrix(similarity: SimilarityMatrix) -> bytes:
    """Encodes a similarity matrix for an AGGREGATE transaction: the inverse of `matrix_from_triangle`."""
    matrix = _checked(similarity)
    return matrix[np.triu_indices(len(matrix), k=1)].astype(">i2").tobytes()


def cluster(similarity: SimilarityMatrix, clusters: int) -> tuple[int, ...]:
    """Partitions clients by normalised spectral clustering (Shi and Malik, 2000), for BFLN's section 4.2.

    Clients are placed by the leading eigenvectors of D^-1 A and grouped by k-means. Deviations: the affinity is 1 + r
    with a zero diagonal, since a third of the correlations is negative in early rounds and raw r breaks the method; all
    arithmetic is fixed point; k-means is started deterministically.

    Where the matrix leaves nothing to decide no arithmetic is done: with `clusters >= clients` every client is its own
    cluster; clients with identical rows (identical models) share one, where that makes at most `clusters` of them; and
    if all pairs are equally similar all clients are one cluster, for any other partition would be arbitrary.

    Args:
        similarity: symmetric (clients, clients) integers in [-10^4, 10^4], SIMILARITY_ONE on the diagonal.
        clusters: how many clusters to look for, at least 1.

    Returns:
        A label for each client, numbered 0, 1, 2... by first appearance; at most `clusters` different ones.
    """
    assert clusters >= 1, clusters
    matrix = _checked(similarity)
    clients = len(matrix)
    if clusters >= clients:
        return tuple(range(clients))
    identical = _by_first_appearance([row.tobytes() for row in matrix])
    if max(identical) < clusters:
        return identical
    pairs = matrix[np.triu_indices(clients, k=1)]
    if clusters == 1 or np.all(pairs == pairs[0]):
        return (0,) * clients
    affinity = _affinity(matrix)
    roots = _root_degrees(affinity)
    eigenvectors = _leading_eigenvectors(_normalised(affinity, roots), clusters)
    return _by_first_appearance(_k_means(_points(eigenvectors, roots), clusters).tolist())


def centroids(similarity: SimilarityMatrix, labels: Sequence[int]) -> tuple[int, ...]:
    """Finds the client closest to the mean of each cluster: BFLN, eq. 4-6.

    A client's point is its row over *all* clients, the diagonal included. With s members, the sum over j of
    (s * S_ij - sum_k S_kj)^2 is s^2 times the squared distance of eq. 6: it orders clients alike, exactly.

    Args:
        similarity: as for `cluster`.
        labels: a label for each client, as `cluster` returns them.

    Returns:
        One client index for each label, in the order of labels; ties go to the lowest index (a pair always ties).
    """
    matrix = _checked(similarity)
    assert len(labels) == len(matrix), (len(labels), len(matrix))
    assert _by_first_appearance(labels) == tuple(labels), labels
    found = []
    label_of = np.asarray(labels, dtype=np.int64)
    for label in range(max(labels) + 1):
        members = np.flatnonzero(label_of == label)
        points = matrix[members]
        # |s*S - sum| <= 2 * 1024 * 10^4 < 2^25; the sum of 1,024 squares is below 2^60.
        offsets = len(members) * points - points.sum(axis=0)
        found.append(int(members[np.argmin((offsets * offsets).sum(axis=1))]))
    return tuple(found)


def _checked(similarity: SimilarityMatrix) -> Integers:
    """The matrix as int64. Bytes from a peer come through `matrix_from_triangle`, so a fault here is our own."""
    matrix = np.asarray(similarity)
    assert matrix.dtype.kind == "i", matrix.dtype
    matrix = matrix.astype(np.int64)
    assert matrix.shape == (len(matrix), len(matrix)), matrix.shape
    assert 1 <= len(matrix) <= MAX_MATRIX_CLIENTS, len(matrix)
    assert np.abs(matrix).max() <= SIMILARITY_ONE
    assert np.array_equal(matrix, matrix.T)
    assert (np.diagonal(matrix) == SIMILARITY_ONE).all()
    return matrix


def _by_first_appearance(keys: Sequence[object]) -> tuple[int, ...]:
    """Numbers equal keys alike: 0 for the first key, 1 for the first that differs, and so on."""
    numbers: dict[object, int] = {}
    return tuple(numbers.setdefault(key, len(numbers)) for key in keys)


def _product(left: Integers, right: Integers) -> Integers:
    """Product of fractions, `left @ right.T`, for matrices whose rows have norm at most 1.

    `einsum` sums integers with vector instructions; `@` on integers doesn't, and took twice as long.
    """
    return _rescaled(np.einsum("ij,kj->ik", left, right))


def _rescaled(products: Integers) -> Integers:
    """Takes sums of products of two fractions back to fractions, rounding to nearest."""
    return (products + (FRACTION_ONE >> 1)) >> FRACTION_BITS


def _affinity(matrix: Integers) -> Integers:
    """10^4 + S with a zero diagonal; a client without affinity to anybody (-1 with everybody) keeps its own.

    So no degree is zero, and such a client is a component like any other: it has an eigenvalue 1 of its own.
    """
    affinity = matrix + SIMILARITY_ONE
    np.fill_diagonal(affinity, 0)
    isolated = np.flatnonzero(affinity.sum(axis=1) == 0)
    affinity[isolated, isolated] = 2 * SIMILARITY_ONE
    return affinity


def _root_degrees(affinity: Integers) -> Integers:
    """Square roots of the row sums in units of 2^-16: row sums are in [1, 2^25), so these are in [2^16, 2^29)."""
    return np.array([isqrt(degree << 32) for degree in affinity.sum(axis=1).tolist()], dtype=np.int64)


def _normalised(affinity: Integers, roots: Integers) -> Integers:
    """D^-1/2 A D^-1/2 as fractions, exactly symmetric."""
    # A_ij < 2^15, so A_ij << 44 < 2^59; A_ij <= D_ii, so the quotient is at most 2^28 * sqrt(D_ii) < 2^41.
    halfway = (affinity << 44) // roots[:, np.newaxis]
    # halfway << 18 < 2^59; A_ij <= sqrt(D_ii D_jj), so the quotient is at most 2^30.
    upper = np.triu((halfway << 18) // roots[np.newaxis, :])
    return upper + np.triu(upper, k=1).T


def _leading_eigenvectors(matrix: Integers, count: int) -> Integers:
    """The eigenvectors of the `count` largest eigenvalues, as rows (count, clients) of fractions.

    Block Krylov iteration with Rayleigh and Ritz's projection (Saad, Numerical Methods for Large Eigenvalue Problems,
    2011, ch. 6): a basis is grown from a block by multiplying with the matrix, the matrix is diagonalised within that
    basis, and the best vectors start the next one. It needs no shift and no bound on the spectrum, which peers choose.
    """
    clients = len(matrix)
    columns = count + EXTRA_COLUMNS
    basis_size = columns * BASIS_PER_COLUMN
    if clients <= max(DENSE_LIMIT, basis_size):
        return _eigen(matrix)[1][:count]
    block = _start_block(columns, clients)
    for _ in range(RESTART_LIMIT):
        basis, images = _krylov_basis(matrix, block, basis_size)
        projected = _product(images, basis)
        values, rotations = _eigen((projected + projected.T) >> 1)
        block = _product(rotations[:columns], np.ascontiguousarray(basis.T))
        block_images = _product(rotations[:columns], np.ascontiguousarray(images.T))
        residuals = block_images[:count] - _rescaled(values[:count, np.newaxis] * block[:count])
        # A residual's entries are at most 2^31 and its norm at most 2^31: the sum of squares is at most 2^62.
        if int((residuals * residuals).sum(axis=1).max()) <= RESIDUAL_TOLERANCE**2:
            break
    return block[:count]


def _start_block(columns: int, clients: int) -> Integers:
    """Fixed pseudo-random rows (columns, clients), below 2^20: any will do that no eigenvector is orthogonal to."""
    stream = hashlib.shake_256(b"bfl1:spectral-start").digest(columns * clients * 4)
    return (np.frombuffer(stream, dtype=">i4").astype(np.int64) >> 11).reshape(columns, clients)


def _krylov_basis(matrix: Integers, block: Integers, size: int) -> tuple[Integers, Integers]:
    """Grows an orthonormal basis from the rows of `block`; returns it and its images under `matrix`, both by rows.

    The basis ends early where the block spans an invariant subspace: then nothing is left to add.
    """
    basis = np.empty((0, len(matrix)), dtype=np.int64)
    images = np.empty((0, len(matrix)), dtype=np.int64)
    while len(basis) < size:
        grown = _extended(basis, block[: size - len(basis)])
        fresh = grown[len(basis) :]
        if not len(fresh):
            break
        block = _product(fresh, matrix)
        basis, images = grown, np.concatenate((images, block))
    return basis, images


def _extended(basis: Integers, vectors: Integers) -> Integers:
    """Appends to orthonormal rows what is new in `vectors`, by Gram and Schmidt's method run twice on each.

    The second run removes what rounding left (Giraud et al., 2005: twice is enough). What a vector
    has of its own must be more than rounding, or it is dropped.
    """
    rows = list(basis)
    for vector in vectors:
        candidate = _unit(vector)
        for _ in range(2):
            if candidate is None or not rows:
                break
            known = np.stack(rows)
            shares = _rescaled(known @ candidate)
            candidate = _unit(candidate - _rescaled(shares @ known), minimum=DEPENDENT_BELOW)
        if candidate is not None:
            rows.append(candidate)
    return np.stack(rows) if rows else basis


def _unit(vector: Integers, minimum: int = 1) -> Integers | None:
    """Scales a vector of norm at most 2^31 to norm 1, or gives None where its norm is below `minimum`."""
    norm = isqrt(int(vector @ vector))
    return None if norm < minimum else (vector << FRACTION_BITS) // norm


def _eigen(matrix: Integers) -> tuple[Integers, Integers]:
    """All eigenvalues, largest first, and eigenvectors by rows, of a symmetric matrix of fractions of norm at most 1.

    Jacobi's method with the rotations of a round-robin tournament: the pairs of one round are disjoint, so that they
    are applied together (Golub and Van Loan, Matrix Computations, 2013, section 8.5).
    """
    size = len(matrix)
    values = matrix.copy()
    vectors = np.eye(size, dtype=np.int64) * FRACTION_ONE
    rounds = _tournament(size)
    for _ in range(SWEEP_LIMIT):
        rotated = False
        for first, second in rounds:
            active = np.abs(values[first, second]) > ROTATION_TOLERANCE
            if active.any():
                _rotate(values, vectors, first[active], second[active])
                rotated = True
        if not rotated:
            break
    eigenvalues = np.diagonal(values)
    order = np.argsort(-eigenvalues, kind="stable")
    return eigenvalues[order], vectors[order]


def _tournament(size: int) -> list[tuple[Integers, Integers]]:
    """Rounds of disjoint pairs that together hold each pair of `size` indices once (the circle method)."""
    seats = list(range(size + size % 2))
    rounds = []
    for _ in range(len(seats) - 1):
        half = len(seats) // 2
        pairs = [pair for pair in zip(seats[:half], reversed(seats[half:]), strict=True) if max(pair) < size]
        rounds.append((np.array([min(pair) for pair in pairs]), np.array([max(pair) for pair in pairs])))
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return rounds


def _rotate(values: Integers, vectors: Integers, first: Integers, second: Integers) -> None:
    """Applies in place, for disjoint pairs, the rotations that make values[first, second] zero."""
    angles = [
        _rotation(upper, lower, off)
        for upper, lower, off in zip(
            values[first, first].tolist(), values[second, second].tolist(), values[first, second].tolist(), strict=True
        )
    ]
    cosine, sine = np.array(angles, dtype=np.int64).T[:, :, np.newaxis]
    for target in (values, vectors, values.T):
        # cosine * a + sine * b <= sqrt(2) * 2^60, as |a| and |b| are at most 2^30 and (cosine, sine) has norm 2^30.
        one, other = target[first], target[second]
        target[first] = _rescaled(cosine * one + sine * other)
        target[second] = _rescaled(cosine * other - sine * one)


def _rotation(upper: int, lower: int, off: int) -> tuple[int, int]:
    """Cosine and sine, as fractions, of the smaller rotation that diagonalises [[upper, off], [off, lower]].

    With d = upper - lower, h = sqrt(d^2 + 4 off^2): cos^2 = (1 + |d| / h) / 2 and sin = off / (h cos), with d's sign.
    """
    difference = upper - lower
    hypotenuse = isqrt((difference * difference + 4 * off * off) << 2 * FRACTION_BITS)
    cosine = isqrt((FRACTION_ONE * FRACTION_ONE + (abs(difference) << 3 * FRACTION_BITS) // hypotenuse) >> 1)
    sine = (off << 3 * FRACTION_BITS) // (hypotenuse * cosine)
    return cosine, sine if difference >= 0 else -sine


def _points(eigenvectors: Integers, roots: Integers) -> Integers:
    """The clients as points (clients, columns): D^-1/2 times the eigenvectors, in units of 2^-POINT_BITS.

    One common factor, the smallest root of a degree, makes every factor at most 1. Columns of a matrix with orthonormal
    rows have norm at most 1, so the points have too.
    """
    # Both factors are below 2^30.
    scaled: Integers = eigenvectors.T * roots.min() // roots[:, np.newaxis]
    return scaled >> (FRACTION_BITS - POINT_BITS)


def _k_means(points: Integers, clusters: int) -> Integers:
    """Labels (clients,) of the best of several k-means runs: the lowest inertia, of equal ones the earliest."""
    distances = _squared_distances(points, points)
    count = len(points)
    firsts = sorted({index * count // START_LIMIT for index in range(START_LIMIT)})
    starts = [_greedy_start(distances, clusters), *(_farthest_first(distances, first, clusters) for first in firsts)]
    runs = [_moved_singly(points, _lloyd(points, points[start]), clusters) for start in starts]
    return min(runs, key=lambda run: run[0])[1]


def _squared_distances(points: Integers, others: Integers) -> Integers:
    """Squared Euclidean distances (points, others) in units of 2^-48, at most 4 * 2^48."""
    total = np.zeros((len(points), len(others)), dtype=np.int64)
    for column, other_column in zip(points.T, others.T, strict=True):
        difference = column[:, np.newaxis] - other_column[np.newaxis, :]
        total += difference * difference
    return total


def _farthest_first(distances: Integers, first: int, clusters: int) -> list[int]:
    """Indices of start centres: each next is farthest from those chosen, ties to the lowest index (Gonzalez, 1985)."""
    chosen = [first]
    nearest = distances[first]
    while len(chosen) < clusters:
        chosen.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, distances[chosen[-1]])
    return chosen


def _greedy_start(distances: Integers, clusters: int) -> list[int]:
    """Indices of start centres: each next one lowers the inertia most; ties to the lowest index."""
    chosen = [int(np.argmin(distances.sum(axis=1)))]
    nearest = distances[chosen[0]]
    while len(chosen) < clusters:
        chosen.append(int(np.argmin(np.minimum(distances, nearest).sum(axis=1))))
        nearest = np.minimum(nearest, distances[chosen[-1]])
    return chosen


def _lloyd(points: Integers, centres: Integers) -> Integers:
    """Labels (clients,) by Lloyd's k-means from given centres. A cluster left empty keeps its centre."""
    centres = centres.copy()
    labels: Integers = np.argmin(_squared_distances(points, centres), axis=1)
    for _ in range(LLOYD_LIMIT):
        for label in range(len(centres)):
            members = points[labels == label]
            if len(members):
                centres[label] = members.sum(axis=0) // len(members)
        previous, labels = labels, np.argmin(_squared_distances(points, centres), axis=1)
        if np.array_equal(labels, previous):
            break
    return labels


def _moved_singly(points: Integers, labels: Integers, clusters: int) -> tuple[int, Integers]:
    """Improves a partition by the best move of one client until none helps (Hartigan, 1975): inertia and labels.

    Moving a client from a cluster of s to one of t members changes the inertia by t / (t + 1) times its squared
    distance to the new centre less s / (s - 1) times that to its own. It also fills clusters that Lloyd's method left
    empty.
    """
    everyone = np.arange(len(points))
    labels = labels.copy()
    distances = np.zeros((len(points), clusters), dtype=np.int64)
    outdated = sorted(set(labels.tolist()))
    for move in range(MOVE_LIMIT + 1):
        for label in outdated:
            members = points[labels == label]
            centre = members.sum(axis=0) // len(members)
            distances[:, label] = _squared_distances(points, centre[np.newaxis])[:, 0]
        sizes = np.bincount(labels, minlength=clusters).astype(np.int64)
        own_sizes = sizes[labels]
        # Squared distances are at most 2^50 and sizes at most 2^10.
        savings = distances[everyone, labels] * own_sizes // np.maximum(1, own_sizes - 1)
        changes = distances * sizes // (sizes + 1) - savings[:, np.newaxis]
        changes[everyone, labels] = 0
        client, label = divmod(int(np.argmin(changes)), clusters)
        if changes[client, label] >= 0 or move == MOVE_LIMIT:
            break
        outdated = [int(labels[client]), label]
        labels[client] = label
    return int(distances[everyone, labels].sum()), labels
