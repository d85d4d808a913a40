"""The cluster file: what Ray's launcher says to it, and two real nodes that it brings up."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.cluster_host import LoopbackHosts, RayCluster, end_processes, free_port, missing_tools

ROOT = Path(__file__).parent.parent
CLUSTER_FILE = ROOT / "cluster.yaml"
AWS_BLOCK = "# On AWS"


def validated(config: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` makes of a cluster file before it touches a machine."""
    prepared = prepare_config(config)
    validate_config(prepared)
    return prepared


def test_rays_own_validation_accepts_the_file() -> None:
    config = validated(yaml.safe_load(CLUSTER_FILE.read_text()))
    assert config["available_node_types"]["local.cluster.node"]["min_workers"] == 2


def test_rays_own_validation_refuses_a_wrong_key() -> None:
    config = yaml.safe_load(CLUSTER_FILE.read_text())
    with pytest.raises(Exception, match="worker_start_commands"):
        validated({**config, "worker_start_commands": []})


def test_the_commented_aws_part_is_valid_in_the_place_it_names() -> None:
    lines = CLUSTER_FILE.read_text().partition(AWS_BLOCK)[2].partition("\n#\n")[2].splitlines()
    commented = lines[: lines.index("")]
    aws = yaml.safe_load("\n".join(line.removeprefix("# ") for line in commented))
    config = validated({**yaml.safe_load(CLUSTER_FILE.read_text()), **aws})
    assert config["provider"]["type"] == "aws"
    assert set(config["available_node_types"]) == {"head", "gpu"}


def test_no_command_of_the_file_ends_other_rays() -> None:
    config = validated(yaml.safe_load(CLUSTER_FILE.read_text()))
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    assert sum("ray start" in command for command in starts) == 2
    assert not [command for command in starts if "ray stop" in command]


def test_only_named_processes_and_their_children_are_ended() -> None:
    def sleeper(text: str) -> subprocess.Popen[bytes]:
        code = "import subprocess, sys; subprocess.run(['sleep', '60'])"
        return subprocess.Popen([sys.executable, "-c", code, text])

    mine, other = sleeper("/tmp/reid-ours-1"), sleeper("/tmp/reid-theirs")
    try:
        end_processes("/tmp/reid-ours-1", [])
        assert mine.wait(timeout=5) < 0
        assert other.poll() is None
    finally:
        end_processes("/tmp/reid-ours-1", [])
        end_processes("/tmp/reid-theirs", [other.pid])
        other.wait(timeout=5)


# The stages that are submitted, in order, and the key of the answer that names what each has made.
STAGES = (("ingest", "blocks"), ("train", "checkpoint"))
# Two training workers fill one node, so the tasks that feed them run on the other.
NODE_SIZE = "--num-cpus=2 --object-store-memory=300000000"
HOST_SETTINGS = {
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "PYTHONPATH": str(ROOT),
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def loopback_config(hosts: LoopbackHosts, port: int, dashboard_port: int) -> dict[str, Any]:
    """The cluster file, filled in as its first lines ask, for two small hosts on one machine."""
    head, worker = hosts.addresses
    text = CLUSTER_FILE.read_text()
    for placeholder, value in {
        "MY_WORKER_1, MY_WORKER_2": worker,
        "MY_HEAD": head,
        "MY_USER": hosts.user,
        "MY_SSH_KEY": str(hosts.key),
        "6379": str(port),
    }.items():
        assert placeholder in text
        text = text.replace(placeholder, value)
    config: dict[str, Any] = yaml.safe_load(text)
    # The environment of the tests stands in for the one that the file would install.
    config["setup_commands"] = [c for c in config["setup_commands"] if "pip install" not in c]
    config["file_mounts"] = {"~/.ray/auth_token": "~/.ray/auth_token"}
    for home in hosts.homes:
        (home / "rayreid").mkdir()
        (home / "rayreid" / "venv").symlink_to(sys.prefix)
    # Of an option that is given twice, Ray takes the last. Other Rays may have its usual ports.
    agent_port = free_port(hosts.addresses)
    node = f"{NODE_SIZE} --dashboard-agent-listen-port={agent_port}"
    config["head_start_ray_commands"][-1] += (
        f" --dashboard-host={head} --dashboard-port={dashboard_port}"
        f" --ray-client-server-port={free_port([head])} {node}"
    )
    config["worker_start_ray_commands"][-1] += f" --node-ip-address={worker} {node}"
    return config


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """Two nodes on two loopback hosts."""
    if reason := missing_tools():
        pytest.skip(reason)
    with LoopbackHosts(2, HOST_SETTINGS) as hosts:
        port, dashboard_port = (free_port(hosts.addresses[:1]) for _ in range(2))
        config = loopback_config(hosts, port, dashboard_port)
        cluster = RayCluster(hosts, config, port=port, dashboard_port=dashboard_port)
        cluster.ray("get-auth-token", "--generate")
        cluster.up(nodes=2, timeout_s=300)
        yield cluster


@pytest.mark.cluster
def test_a_client_without_the_token_is_refused(cluster: RayCluster) -> None:
    with pytest.raises(AssertionError, match="[Tt]oken authentication"):
        cluster.ray("status", "--address", cluster.address, RAY_AUTH_MODE="disabled")


@pytest.mark.cluster
def test_stages_run_on_both_nodes_by_ray_submit(cluster: RayCluster, tiny: tuple[str, ...]) -> None:
    store = cluster.hosts.root / "store"
    for stage, made in STAGES:
        args = ["demo", *tiny, "train.workers=2", "--store", str(store), "--json"]
        output = cluster.submit(ROOT / "pipelines" / f"{stage}.py", args, timeout_s=600)
        answer = answer_of(output)
        assert answer["skipped"] == []
        assert Path(answer[made]).is_relative_to(store)
        assert Path(answer[made]).exists()
    assert len(cluster.nodes_that_worked()) == 2


def answer_of(output: str) -> dict[str, Any]:
    """The JSON object on the last line that the stage printed; ssh may have its own after it."""
    lines = [line for line in output.splitlines() if line.startswith("{")]
    assert lines, f"no answer in:\n{output}"
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer
