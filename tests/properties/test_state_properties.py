"""The state tree and its views against a plain dictionary, under random changes."""

from hypothesis import given, settings
from hypothesis import strategies as st

from bflnode.consensus.state import StateTree, StateView

KEYS = st.binary(max_size=3).map(lambda key: key.replace(b"\x00", b"\xff"))
VALUES = st.none() | st.binary(max_size=4)
CHANGES = st.dictionaries(KEYS, VALUES, max_size=12)


def changed(model: dict[bytes, bytes], changes: dict[bytes, bytes | None]) -> dict[bytes, bytes]:
    merged = {**model, **changes}
    return {key: value for key, value in merged.items() if value is not None}


@settings(max_examples=100, deadline=None)
@given(blocks=st.lists(CHANGES, max_size=5), prefix=KEYS)
def test_tree_after_any_changes_is_the_tree_built_anew(blocks: list[dict[bytes, bytes | None]], prefix: bytes) -> None:
    tree = StateTree()
    model: dict[bytes, bytes] = {}
    for changes in blocks:
        model = changed(model, changes)
        predicted = tree.root_after(changes)
        tree.apply(changes)
        assert predicted == tree.root == StateTree(model.items()).root
    assert list(tree.entries()) == sorted(model.items())
    assert list(tree.scan(prefix)) == [entry for entry in sorted(model.items()) if entry[0].startswith(prefix)]


@settings(max_examples=100, deadline=None)
@given(
    base=st.dictionaries(KEYS, st.binary(max_size=2), max_size=12),
    layers=st.lists(st.tuples(CHANGES, st.booleans()), max_size=4),
    prefix=KEYS,
)
def test_stacked_views_read_like_one_dictionary(
    base: dict[bytes, bytes], layers: list[tuple[dict[bytes, bytes | None], bool]], prefix: bytes
) -> None:
    """Each layer is a transaction that is tried on top: kept if valid, dropped otherwise."""
    tree = StateTree(base.items())
    block = StateView(tree)
    model = base
    for changes, is_kept in layers:
        attempt = block.nested()
        for key, value in changes.items():
            if value is None:
                attempt.delete(key)
            else:
                attempt.put(key, value)
        tried = changed(model, changes)
        assert list(attempt.scan(prefix)) == [entry for entry in sorted(tried.items()) if entry[0].startswith(prefix)]
        if is_kept:
            attempt.commit()
            model = tried
        assert list(block.scan(b"")) == sorted(model.items())
        assert all(block.get(key) == model.get(key) for key in changes)
    tree.apply(block.changes)
    assert dict(tree.entries()) == model
