"""Where clients train: what is refused. That results are the same everywhere is in `test_run`."""

import socket

import pytest

from bflnode.node.experiments.file import ExperimentError
from bflnode.node.experiments.pool import make_pool


@pytest.mark.parametrize("form", ["{}:{}", "ray://{}:{}"])
def test_a_ray_cluster_where_nothing_listens_is_refused_at_once(form: str) -> None:
    pytest.importorskip("ray")
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = form.format(*bound.getsockname())

        with pytest.raises(ExperimentError, match=f"no Ray cluster at {address}: .*refused.*; start one, or use"):
            make_pool(None, 1, address)  # type: ignore[arg-type] - no data gets anywhere
