"""The files of deploy/: valid schemas, no secrets, and options that exist."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from shopee_mlflow.cli import cli
from shopee_mlflow.config import TrainConfig, TuneConfig, resolve

DEPLOY = Path(__file__).parents[1] / "deploy"
FILES = sorted(file for file in DEPLOY.iterdir() if not file.name.startswith("."))
JOB = {
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_JOB_ID": "123456",
    "SLURM_NNODES": "2",
    "SLURM_GPUS_ON_NODE": "4",
    "SLURM_CPUS_PER_TASK": "16",
}


def text(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


def checked(tool: str, *words: str) -> None:
    """A checker that is installed beside this Python finds nothing to say against a file."""
    found = [str(Path(sys.executable).with_name(tool)), *words]
    done = subprocess.run(found, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def services() -> dict[str, Any]:
    return dict(yaml.safe_load(text("compose.yaml"))["services"])


def objects() -> dict[str, Any]:
    """What kubernetes.yaml makes, by kind."""
    return {thing["kind"]: thing for thing in yaml.safe_load_all(text("kubernetes.yaml"))}


def container() -> dict[str, Any]:
    (only,) = objects()["Job"]["spec"]["template"]["spec"]["containers"]
    return dict(only)


def run_slurm(place: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run slurm.sh where Slurm's programs only tell what they were asked for."""
    stand_ins = {"srun": 'printf "%s\\n" "$@"', "scontrol": "printf 'node1\\nnode2\\n'"}
    for name, body in stand_ins.items():
        (place / name).write_text(f"#!/bin/sh\n{body}\n")
        (place / name).chmod(0o755)
    return subprocess.run(
        ["bash", str(DEPLOY / "slurm.sh"), *words],
        env={"PATH": f"{place}{os.pathsep}{os.environ['PATH']}", **JOB, **env},
        capture_output=True,
        text=True,
        check=False,
    )


def slurm_command(place: Path) -> list[str]:
    done = run_slurm(place, "--data", "/shared/shop", MLFLOW_TRACKING_URI="https://server")
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    return words[words.index("torchrun") :]


def test_each_file_stands_in_the_table_and_no_other() -> None:
    rows = [line for line in text("README.md").splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert sorted([*named, "README.md"]) == [file.name for file in FILES]


def test_kubernetes_knows_every_field() -> None:
    assert list(objects()) == ["NetworkPolicy", "Service", "Job"]
    for thing in objects().values():
        kubernetes_validate.validate(thing, kubernetes_validate.latest_version(), strict=True)


def test_pods_find_the_first_one_by_its_name() -> None:
    service, job = objects()["Service"], objects()["Job"]
    name, spec = job["metadata"]["name"], job["spec"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert spec["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert spec["completionMode"] == "Indexed"
    command = container()["command"]
    (port,) = service["spec"]["ports"]
    address = f"{name}-0.{service['metadata']['name']}.$(NAMESPACE).svc.cluster.local"
    assert f"--rdzv-endpoint={address}:{port['port']}" in command
    assert f"--nnodes={spec['completions']}" in command
    assert spec["completions"] == spec["parallelism"]
    used = re.findall(r"\$\((\w+)\)", " ".join(command))
    assert {"JOB_UID", "NAMESPACE"} == set(used) <= {item["name"] for item in container()["env"]}


def test_only_pods_of_the_job_reach_its_pods() -> None:
    policy, job = objects()["NetworkPolicy"]["spec"], objects()["Job"]
    pods = {"matchLabels": {"batch.kubernetes.io/job-name": job["metadata"]["name"]}}
    assert policy["podSelector"] == pods
    assert policy["policyTypes"] == ["Ingress"]
    # One rule, of one source; processes exchange gradients on any port.
    assert policy["ingress"] == [{"from": [{"podSelector": pods}]}]


def test_compose_knows_every_field() -> None:
    schema = ["--builtin-schema", "vendor.compose-spec"]
    checked("check-jsonschema", *schema, str(DEPLOY / "compose.yaml"))


def test_images_have_a_version() -> None:
    images = [service["image"] for service in services().values() if "image" in service]
    images += re.findall(r"^FROM (\S+)", text("Dockerfile"), re.MULTILINE)
    assert len(images) == 3
    for image in images:
        assert re.search(r":v?\d", image), image


def test_what_compose_needs_stands_in_the_example() -> None:
    needed = re.findall(r"\$\{(\w+)", text("compose.yaml"))
    # Without them nothing starts: none has a default.
    assert len(needed) == len(re.findall(r"\$\{\w+:\?", text("compose.yaml")))
    assert set(needed) == set(re.findall(r"^(\w+)=$", text("env.example"), re.MULTILINE))
    assert len(set(needed)) == 5


def test_the_server_finds_the_file_of_its_accounts() -> None:
    path = services()["server"]["environment"]["MLFLOW_AUTH_CONFIG_PATH"]
    assert f"COPY basic_auth.ini {path}\n" in text("Dockerfile")


def test_no_secret_stands_in_a_file() -> None:
    named = r"(?i)\w*(?:password|secret(?:_\w+)?)[ ]*[:=][ ]*[\"']?([^\s\"',)]*)"
    in_address = r"\w://[^\s/:]*:([^\s/]+)@"
    found = [
        (file.name, value)
        for file in FILES
        for value in re.findall(f"{named}|{in_address}", file.read_text(encoding="utf-8"))
    ]
    assert len(found) > 10
    for name, values in found:
        # Nothing, a variable's value, or what the reader is to put in.
        assert "".join(values).startswith(("$", "...")) or not any(values), (name, values)


def test_bash_and_shellcheck_find_nothing() -> None:
    subprocess.run(["bash", "-n", str(DEPLOY / "slurm.sh")], check=True)
    checked("shellcheck", str(DEPLOY / "slurm.sh"))


def test_slurm_starts_nothing_without_a_tracking_server(tmp_path: Path) -> None:
    done = run_slurm(tmp_path)
    assert done.returncode != 0
    assert "MLFLOW_TRACKING_URI: set it to the address of the tracking server" in done.stderr
    assert not done.stdout


def test_nodes_of_a_slurm_job_meet_at_the_first(tmp_path: Path) -> None:
    command = slurm_command(tmp_path)
    (port,) = re.findall(r"--rdzv-endpoint=node1:(\d+)\n", "\n".join(command))
    assert 1024 < int(port) < 65_536
    assert "--rdzv-id=123456" in command
    assert command[-2:] == ["--data", "/shared/shop"]


def test_a_slurm_jobs_port_does_not_follow_from_its_number(tmp_path: Path) -> None:
    ends = {next(w for w in slurm_command(tmp_path) if "endpoint" in w) for _ in range(4)}
    assert len(ends) > 1


def test_processes_that_are_started_again_meet_anew() -> None:
    name = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
    assert f"\nexport {name}=1\n" in text("slurm.sh")
    assert {"name": name, "value": "1"} in container()["env"]


@pytest.mark.parametrize("starter", ["slurm", "kubernetes"])
def test_torchrun_and_train_know_their_options(starter: str, tmp_path: Path) -> None:
    from torch.distributed.run import get_args_parser

    command = slurm_command(tmp_path) if starter == "slurm" else container()["command"]
    assert command[0] == "torchrun"
    parsed = get_args_parser().parse_args(command[1:])
    assert parsed.module
    assert parsed.training_script == "shopee_mlflow"
    assert parsed.nnodes == "2"
    verb, *options = parsed.training_script_args
    assert verb == "train"
    given = cli.commands[verb].make_context(verb, options).params
    chosen = {name: value for name, value in given.items() if value is not None}
    assert "data" in chosen
    resolve(TrainConfig, chosen)


def test_the_page_names_options_that_exist() -> None:
    configs = {"train": TrainConfig, "tune": TuneConfig}
    pattern = r"(?:shopee_mlflow |slurm\.sh|-e )(train|tune)?\b([^\n`]*)"
    found = []
    for verb, words in re.findall(pattern, text("README.md")):
        names = re.findall(r"(?<=--)[a-z][a-z-]*|(?<=-P )\w+", words)
        known = {field.name for field in dataclasses.fields(configs[verb or "train"])}
        mlflow_run = {"env_manager", "experiment_name"} if " -P " in words else set()
        found += [name.replace("-", "_") for name in names]
        assert {name.replace("-", "_") for name in names} <= known | mlflow_run, words
    assert {"data", "nproc", "resume", "storage"} <= set(found)
