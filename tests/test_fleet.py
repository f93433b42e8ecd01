"""How many workers fit a cluster: pure arithmetic."""

import pytest

from pipeline.cluster import Cluster, Fleet, fleet
from pipeline.config import Workers
from pipeline.errors import ConfigError


def sized(nodes, device="cuda", items=1000, **wanted):
    return fleet(Cluster(local=False, nodes=nodes), Workers(**wanted), device=device, items=items)


def test_there_is_one_worker_per_gpu_and_on_cpus_one_per_node():
    assert sized(((16, 8), (16, 8))) == Fleet(count=16, per_node=8, cpus=1, gpus=1, cores=2)
    assert sized(((16, 8), (16, 8)), gpus=0.5).count == 32
    assert sized(((4, 0), (4, 0)), "cpu") == Fleet(count=2, per_node=1, cpus=0, gpus=0, cores=4)


def test_there_are_no_more_workers_than_items():
    assert sized(((16, 8),), items=3).count == 3


def test_a_worker_does_not_span_nodes():
    assert sized(((8, 3), (8, 3)), gpus=2).count == 2
    with pytest.raises(ConfigError, match="2 GPUs now and a worker asks for 2"):
        sized(((8, 1), (8, 1)), gpus=2)


def test_a_cluster_that_grows_is_told_how_far():
    assert sized(((4, 0),), count=8).count == 8


def test_reading_the_plan_needs_a_cpu():
    assert sized(((1, 1),)).cpus == 0
    with pytest.raises(ConfigError, match=r"8 workers of 2 CPUs leave 0 .* 16 CPUs, 1 is needed"):
        sized(((16, 8),), cpus=2)


def test_a_laptop_computes_on_what_it_has_and_a_cluster_on_gpus():
    assert Cluster(local=True, nodes=((2, 0),)).device == "cpu"
    assert Cluster(local=True, nodes=((2, 1),)).device == "cuda"
    assert Cluster(local=False, nodes=((2, 0),)).device == "cuda"
