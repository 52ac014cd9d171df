"""Integer spectral clustering against hand-worked cases, planted truth, scikit-learn, and hostile or empty matrices."""

import ast
import hashlib
import inspect
import struct
import time
import types

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score

from bflnode.consensus import clustering
from bflnode.consensus.clustering import (
    FRACTION_ONE,
    SIMILARITY_ONE,
    centroids,
    cluster,
    matrix_from_triangle,
    triangle_from_matrix,
)
from bflnode.consensus.rejection import Reason, Rejection

Matrix = npt.NDArray[np.int64]


def symmetric(upper: Matrix) -> Matrix:
    """The matrix whose strict upper triangle is given."""
    matrix = np.triu(np.clip(upper, -SIMILARITY_ONE, SIMILARITY_ONE), k=1)
    matrix = matrix + matrix.T
    np.fill_diagonal(matrix, SIMILARITY_ONE)
    return matrix


def noise(seed: int, clients: int, amplitude: int) -> Matrix:
    """Integers in [-amplitude, amplitude] from a hash, so that golden matrices don't hang on a generator."""
    stream = hashlib.shake_256(b"clustering test %d" % seed).digest(4 * clients * clients)
    words = np.frombuffer(stream, dtype=">u4").astype(np.int64).reshape(clients, clients)
    return words % (2 * amplitude + 1) - amplitude


def planted_labels(clients: int, clusters: int) -> list[int]:
    """Interleaved clusters, of which the first two are twice as large as the others."""
    return [index % (clusters + 2) % clusters for index in range(clients)]


def planted(
    labels: list[int], *, within: int = 6000, between: int = -2000, amplitude: int = 2000, seed: int = 0
) -> Matrix:
    label_of = np.array(labels)
    together = label_of[:, np.newaxis] == label_of
    return symmetric(np.where(together, within, between) + noise(seed, len(labels), amplitude))


def pearson(labels: list[int], *, spread: float, seed: int) -> Matrix:
    """Quantised correlations of prototypes (32 values) scattered around one centre a cluster."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(max(labels) + 1, 32))
    prototypes = centres[labels] + spread * generator.normal(size=(len(labels), 32))
    return symmetric(np.rint(np.corrcoef(prototypes) * SIMILARITY_ONE).astype(np.int64))


def by_first_appearance(labels: list[int]) -> tuple[int, ...]:
    return tuple(list(dict.fromkeys(labels)).index(label) for label in labels)


def uniform(clients: int, similarity: int) -> Matrix:
    return symmetric(np.full((clients, clients), similarity))


# A: 19,000 inside the pairs, 1,000 across, so every degree is 21,000. The eigenvectors of D^-1 A are (1,1,1,1) with 1,
# (1,1,-1,-1) with (19 - 2) / 21, and two with -19/21: two clusters split the clients by the sign of the second.
TWO_PAIRS = (
    (10000, -9000, 9000, -9000),
    (-9000, 10000, -9000, 9000),
    (9000, -9000, 10000, -9000),
    (-9000, 9000, -9000, 10000),
)


def test_two_pairs_worked_by_hand_are_two_clusters() -> None:
    assert cluster(TWO_PAIRS, 2) == (0, 1, 0, 1)


def test_eigenvalues_of_two_pairs_are_those_worked_by_hand() -> None:
    affinity = clustering._affinity(np.array(TWO_PAIRS))
    values, _ = clustering._eigen(clustering._normalised(affinity, clustering._root_degrees(affinity)))
    expected = [FRACTION_ONE, FRACTION_ONE * 17 // 21, -FRACTION_ONE * 19 // 21, -FRACTION_ONE * 19 // 21]
    assert np.abs(values - expected).max() < 2**14


def test_an_outsider_among_three_is_alone() -> None:
    assert cluster(((10000, -5000, 9000), (-5000, 10000, -5000), (9000, -5000, 10000)), 2) == (0, 1, 0)


def test_labels_are_numbered_by_first_appearance() -> None:
    truth = planted_labels(40, 5)
    assert cluster(planted(truth), 5) == by_first_appearance(truth)


def test_centroid_worked_by_hand() -> None:
    # One cluster, s = 3, column sums (20, 24, 18) thousand. Distances of 3 * row from them, in units of 10^6:
    # (10, 0, -12) -> 244, (4, 6, 0) -> 52, (-14, -6, 12) -> 376.
    matrix = ((10000, 8000, 2000), (8000, 10000, 6000), (2000, 6000, 10000))
    assert centroids(matrix, (0, 0, 0)) == (1,)


def test_centroid_counts_clients_outside_the_cluster() -> None:
    # Within {0, 1, 2} everything is symmetric; only the column of client 3 tells them apart: its mean is 4,000.
    matrix = ((10000, 5000, 5000, 0), (5000, 10000, 5000, 8000), (5000, 5000, 10000, 4000), (0, 8000, 4000, 10000))
    assert centroids(matrix, (0, 0, 0, 1)) == (2, 3)


def test_members_of_a_pair_tie_and_the_lowest_index_is_centroid() -> None:
    assert centroids(TWO_PAIRS, (0, 1, 0, 1)) == (0, 1)


@given(st.integers(1, 9), st.integers(0, 10**6), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_centroids_are_nearest_to_the_mean_in_exact_arithmetic(clients: int, seed: int, clusters: int) -> None:
    matrix = symmetric(noise(seed, clients, SIMILARITY_ONE))
    labels = by_first_appearance([int(value) for value in noise(seed + 1, clients, 50)[0] % clusters])
    rows = matrix.tolist()
    expected = []
    for label in range(max(labels) + 1):
        members = [index for index in range(clients) if labels[index] == label]
        sums = [sum(rows[k][j] for k in members) for j in range(clients)]
        expected.append(
            min(members, key=lambda i: sum((len(members) * rows[i][j] - sums[j]) ** 2 for j in range(clients)))
        )
    assert centroids(matrix, labels) == tuple(expected)


def test_centroid_sums_hold_at_the_largest_size() -> None:
    # Half correlate at +1 with everybody in their half and -1 across; client 0 alone agrees with both halves.
    clients = clustering.MAX_MATRIX_CLIENTS
    half = np.arange(clients) % 2
    matrix = symmetric(np.where(half[:, np.newaxis] == half, SIMILARITY_ONE, -SIMILARITY_ONE))
    rows = matrix.astype(object)
    distances = ((clients * rows - rows.sum(axis=0)) ** 2).sum(axis=1)
    assert centroids(matrix, (0,) * clients) == (int(np.argmin(distances)),)
    assert max(distances) < 2**63


@pytest.mark.parametrize("clusters", [1, 2, 3, 7])
@pytest.mark.parametrize("similarity", [SIMILARITY_ONE, 9999, 0, -1, -SIMILARITY_ONE])
def test_equally_similar_clients_are_one_cluster(similarity: int, clusters: int) -> None:
    matrix = uniform(8, similarity)
    assert cluster(matrix, clusters) == (0,) * 8
    assert centroids(matrix, (0,) * 8) == (0,)


@pytest.mark.parametrize("clients", [1, 2, 3, 5])
@pytest.mark.parametrize("similarity", [SIMILARITY_ONE, 0, -SIMILARITY_ONE])
def test_with_as_many_clusters_as_clients_each_is_its_own(clients: int, similarity: int) -> None:
    for clusters in (clients, clients + 1, 1000):
        assert cluster(uniform(clients, similarity), clusters) == tuple(range(clients))
        assert centroids(uniform(clients, similarity), range(clients)) == tuple(range(clients))


def test_one_cluster_holds_everybody() -> None:
    assert cluster(symmetric(noise(1, 20, SIMILARITY_ONE)), 1) == (0,) * 20


def test_identical_models_share_a_cluster() -> None:
    truth = [0, 1, 2, 0, 1, 0, 0, 2, 1]
    matrix = planted(truth, within=SIMILARITY_ONE, between=-3000, amplitude=0)
    for clusters in (3, 4, 8):
        assert cluster(matrix, clusters) == tuple(truth)


def test_constant_prototypes_correlate_with_nobody_and_are_clustered() -> None:
    truth = planted_labels(20, 3)
    matrix = planted(truth)
    matrix[5, :] = matrix[:, 5] = matrix[9, :] = matrix[:, 9] = 0
    matrix[5, 5] = matrix[9, 9] = SIMILARITY_ONE
    labels = cluster(matrix, 3)
    others = [index for index in range(20) if index not in (5, 9)]
    assert adjusted_rand_score([truth[index] for index in others], [labels[index] for index in others]) == 1


def test_client_without_affinity_is_a_cluster_of_its_own() -> None:
    truth = [*planted_labels(20, 3), 3]
    matrix = planted(truth)
    matrix[20, :20] = matrix[:20, 20] = -SIMILARITY_ONE
    assert cluster(matrix, 4) == by_first_appearance(truth)


def test_more_isolated_clients_than_clusters_still_give_labels() -> None:
    matrix = uniform(12, -SIMILARITY_ONE)
    matrix[0, 1] = matrix[1, 0] = 0
    labels = cluster(matrix, 3)
    assert len(labels) == 12
    assert labels[0] == labels[1]
    assert set(labels) <= {0, 1, 2}


@pytest.mark.parametrize("clients", [10, 20, 45, 64, 128])
def test_planted_clusters_are_found(clients: int) -> None:
    truth = planted_labels(clients, 4)
    assert cluster(planted(truth, amplitude=3000), 4) == by_first_appearance(truth)


@pytest.mark.parametrize(("clients", "clusters"), [(10, 3), (20, 5), (64, 5)])
def test_labels_of_clear_correlations_are_those_of_scikit_learn(clients: int, clusters: int) -> None:
    for seed in range(5):
        matrix = pearson(planted_labels(clients, clusters), spread=0.6, seed=seed)
        assert (matrix < 0).mean() > 0.1
        theirs = SpectralClustering(clusters, affinity="precomputed", random_state=0).fit_predict(
            matrix + SIMILARITY_ONE
        )
        assert cluster(matrix, clusters) == by_first_appearance(theirs.tolist())


def test_labels_of_noisy_correlations_are_as_good_as_those_of_scikit_learn() -> None:
    ours, theirs = [], []
    truth = planted_labels(20, 4)
    for seed in range(20):
        matrix = pearson(truth, spread=1.2, seed=seed)
        reference = SpectralClustering(4, affinity="precomputed", random_state=0).fit_predict(matrix + SIMILARITY_ONE)
        ours.append(adjusted_rand_score(truth, cluster(matrix, 4)))
        theirs.append(adjusted_rand_score(truth, reference))
    assert np.mean(ours) > np.mean(theirs) - 0.03


@pytest.mark.parametrize("clients", [20, 64])
def test_order_of_clients_does_not_change_the_partition(clients: int) -> None:
    matrix = planted(planted_labels(clients, 4), amplitude=3000)
    order = np.random.default_rng(7).permutation(clients)
    labels = np.array(cluster(matrix, 4))
    assert cluster(matrix[np.ix_(order, order)], 4) == by_first_appearance(labels[order].tolist())


@pytest.mark.parametrize("clients", [20, 64])
def test_a_thousandth_of_noise_does_not_change_clear_labels(clients: int) -> None:
    for seed in range(5):
        matrix = pearson(planted_labels(clients, 4), spread=0.8, seed=seed)
        assert cluster(symmetric(matrix + noise(seed, clients, 10)), 4) == cluster(matrix, 4)


# First half of SHA-256 over the labels of planted and of structureless matrices. A change here is a change of a
# consensus rule: nodes that run different versions would disagree about clusters and payouts.
GOLDEN = {
    (6, 2, 3000): "877bb339b53a0ac22a08f2778a9fe622",
    (20, 5, 3000): "5b512c99522ae7d7725cb654dda18d09",
    (20, 5, 8000): "60f933caa47c15fb1bc6870b025793bd",
    (41, 3, 9000): "094a75a990461877c7a74e43835fcd85",
    (64, 7, 8000): "33590d907e589abbbc838f4bb34f39a8",
    (100, 6, 10000): "41263ae4e5f6823a39cc19b0f3bee07f",
    (128, 30, 9000): "cc93c0528e91d5c5ec9b84890218fffc",
}


@pytest.mark.parametrize(("clients", "clusters", "amplitude"), GOLDEN)
def test_labels_are_the_golden_ones(clients: int, clusters: int, amplitude: int) -> None:
    digest = hashlib.sha256()
    for seed in range(2):
        matrix = planted(planted_labels(clients, clusters), amplitude=amplitude, seed=seed)
        digest.update(bytes(cluster(matrix, clusters)))
    assert digest.hexdigest()[:32] == GOLDEN[clients, clusters, amplitude]


def test_golden_labels_in_full() -> None:
    matrix = planted(planted_labels(20, 5), amplitude=8000, seed=3)
    assert cluster(matrix, 5) == (0, 1, 0, 2, 3, 4, 0, 4, 1, 1, 2, 3, 4, 1, 4, 1, 0, 2, 3, 4)
    assert centroids(matrix, cluster(matrix, 5)) == (16, 8, 3, 4, 19)


@given(st.integers(2, 14), st.integers(1, 6), st.integers(0, 10**6), st.sampled_from([1, 100, SIMILARITY_ONE]))
@settings(max_examples=60, deadline=None)
def test_any_matrix_gives_labels_by_first_appearance(clients: int, clusters: int, seed: int, amplitude: int) -> None:
    shift = (-SIMILARITY_ONE, 0, SIMILARITY_ONE)[seed % 3]
    matrix = symmetric(noise(seed, clients, amplitude) + shift)
    labels = cluster(matrix, clusters)
    assert len(labels) == clients
    assert labels == by_first_appearance(list(labels))
    assert max(labels) < max(clusters, 1) or clusters >= clients
    assert len(centroids(matrix, labels)) == max(labels) + 1


def with_unbounded_integers() -> types.ModuleType:
    """The module under test with Python's integers for int64: what it would compute if nothing ever overflowed."""
    source = inspect.getsource(clustering).replace("np.int64", "object").replace("from .", "from bflnode.consensus.")
    module = types.ModuleType("unbounded_clustering")
    exec(compile(source, "unbounded_clustering", "exec"), module.__dict__)  # noqa: S102 (our own source)
    return module


def extreme_matrices() -> list[tuple[str, Matrix, int]]:
    generator = np.random.default_rng(3)
    signs = np.where(generator.random((48, 48)) < 0.5, SIMILARITY_ONE, -SIMILARITY_ONE)
    barely = np.full((20, 20), -SIMILARITY_ONE) + (generator.random((20, 20)) < 0.2)
    mixed = np.where(generator.random((48, 48)) < 0.5, SIMILARITY_ONE, -SIMILARITY_ONE + 1)
    mixed[:5] = -SIMILARITY_ONE + 1
    return [
        ("random signs", symmetric(signs), 3),
        ("degrees near zero", symmetric(barely), 3),
        ("huge and tiny degrees", symmetric(mixed), 3),
        ("all but identical", symmetric(SIMILARITY_ONE - np.abs(noise(1, 48, 1))), 3),
        ("planted", planted(planted_labels(48, 3), amplitude=8000), 3),
    ]


@pytest.mark.parametrize(("name", "matrix", "clusters"), extreme_matrices(), ids=lambda value: str(value)[:20])
def test_no_sum_overflows_64_bits(name: str, matrix: Matrix, clusters: int) -> None:
    assert cluster(matrix, clusters) == with_unbounded_integers().cluster(matrix, clusters), name


@pytest.mark.parametrize(("clients", "count"), [(30, 4), (120, 5), (300, 8)])
def test_eigenvectors_are_orthonormal_and_belong_to_the_largest_eigenvalues(clients: int, count: int) -> None:
    for matrix in (
        symmetric(noise(2, clients, SIMILARITY_ONE)),
        planted(planted_labels(clients, count), amplitude=6000),
    ):
        affinity = clustering._affinity(matrix)
        normalised = clustering._normalised(affinity, clustering._root_degrees(affinity))
        vectors = clustering._leading_eigenvectors(normalised, count) / FRACTION_ONE
        exact = np.linalg.eigvalsh(normalised / FRACTION_ONE)[::-1][:count]
        assert np.abs(vectors @ vectors.T - np.eye(count)).max() < 1e-6
        rayleigh = np.einsum("ij,jk,ik->i", vectors, normalised / FRACTION_ONE, vectors)
        assert np.abs(rayleigh - exact).max() < 1e-6


def test_source_holds_no_float() -> None:
    tree = ast.parse(inspect.getsource(clustering))
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Div), "true division makes floats"
        assert not (isinstance(node, ast.Constant) and isinstance(node.value, float)), node
        if isinstance(node, ast.Attribute):
            assert node.attr not in {"float64", "float32", "linalg", "random", "sqrt", "mean", "dot", "matmul"}, (
                node.attr
            )


def test_no_array_is_ever_float(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = set()
    for name in ("_product", "_rescaled", "_eigen", "_points", "_squared_distances", "_lloyd", "_moved_singly"):

        def recording(*arguments: object, original: object = getattr(clustering, name)) -> object:
            result = original(*arguments)  # type: ignore[operator]  # a function of the module
            for value in (*arguments, *(result if isinstance(result, tuple) else (result,))):
                if isinstance(value, np.ndarray):
                    kinds.add(value.dtype.str)
            return result

        monkeypatch.setattr(clustering, name, recording)
    cluster(planted(planted_labels(60, 4), amplitude=6000), 4)
    assert kinds == {np.dtype(np.int64).str}


def test_256_clients_take_less_than_a_block() -> None:
    matrix = pearson(planted_labels(256, 7), spread=1.5, seed=1)
    started = time.process_time()
    cluster(matrix, 7)
    assert time.process_time() - started < 2


def test_triangle_is_the_upper_half_row_by_row() -> None:
    triangle = struct.pack(">6h", 1, -2, 3, -4, 10000, -10000)
    expected = [[10000, 1, -2, 3], [1, 10000, -4, 10000], [-2, -4, 10000, -10000], [3, 10000, -10000, 10000]]
    assert matrix_from_triangle(triangle, 4).tolist() == expected
    assert triangle_from_matrix(expected) == triangle


@given(st.integers(1, 12), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_triangle_and_matrix_are_inverse(clients: int, seed: int) -> None:
    matrix = symmetric(noise(seed, clients, SIMILARITY_ONE))
    assert np.array_equal(matrix_from_triangle(triangle_from_matrix(matrix), clients), matrix)


@pytest.mark.parametrize("size", [0, 1, 11, 13, 24, 65536])
def test_triangle_of_wrong_length_is_rejected(size: int) -> None:
    with pytest.raises(Rejection) as caught:
        matrix_from_triangle(bytes(size), 4)
    assert caught.value.reason is Reason.MALFORMED
    assert caught.value.values == {"what": "similarity matrix", "size_bytes": size, "expected": 12}


@pytest.mark.parametrize("value", [10001, -10001, 32767, -32768])
def test_similarity_out_of_range_is_rejected(value: int) -> None:
    with pytest.raises(Rejection) as caught:
        matrix_from_triangle(struct.pack(">3h", 0, value, 0), 3)
    assert caught.value.reason is Reason.MALFORMED
    assert caught.value.values == {"what": "similarity", "index": 1, "value": value, "limit": 10000}


def test_one_client_has_an_empty_triangle() -> None:
    assert matrix_from_triangle(b"", 1).tolist() == [[10000]]
    assert triangle_from_matrix([[10000]]) == b""


@pytest.mark.parametrize(
    "matrix",
    [
        ((10000, 1), (2, 10000)),
        ((10000, 1), (1, 9999)),
        ((10000, 10001), (10001, 10000)),
        ((10000, 1, 2), (1, 10000, 3)),
        ((10000.0, 0.5), (0.5, 10000.0)),
    ],
    ids=["asymmetric", "diagonal", "range", "shape", "float"],
)
def test_a_broken_matrix_is_our_own_fault(matrix: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(AssertionError):
        cluster(matrix, 1)
