from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.cli import main


def stanza(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main(["affinity", "team-a/chat", *arguments]) == 0
    return yaml.safe_load(capsys.readouterr().out)


READY = {"key": "endpoint.prewarm.dev/team-a.chat", "operator": "In", "values": ["ready"]}
HEALTHY = {"key": "prewarm.dev/gpu", "operator": "In", "values": ["healthy"]}


def test_the_preference_has_the_greatest_weight(capsys: pytest.CaptureFixture[str]) -> None:
    assert stanza(capsys) == {
        "affinity": {
            "nodeAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {"weight": 100, "preference": {"matchExpressions": [READY]}}
                ]
            }
        }
    }


def test_healthy_gpus_are_preferred_by_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    terms = stanza(capsys, "--gpu")["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert terms[1] == {"weight": 50, "preference": {"matchExpressions": [HEALTHY]}}


def test_required_asks_for_all_of_it_in_one_term(capsys: pytest.CaptureFixture[str]) -> None:
    affinity = stanza(capsys, "--required", "--gpu")["affinity"]["nodeAffinity"]
    assert affinity == {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [READY, HEALTHY]}]
        }
    }


def test_a_preference_warns_of_taints_that_outweigh_it(capsys: pytest.CaptureFixture[str]) -> None:
    main(["affinity", "team-a/chat"])
    assert "# A PreferNoSchedule taint" in capsys.readouterr().out
    main(["affinity", "team-a/chat", "--required"])
    assert "PreferNoSchedule" not in capsys.readouterr().out


def test_a_patch_reaches_the_pod_template_and_says_how_to_apply_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["affinity", "team-a/chat", "--patch", "--kind", "statefulset", "--workload", "front"]) == 0
    text = capsys.readouterr().out
    assert "# kubectl patch statefulset front -n team-a --patch-file FILE" in text
    assert list(yaml.safe_load(text)["spec"]["template"]) == ["spec"]


def test_waiting_mounts_the_view_at_one_path_read_only_in_both_containers(capsys: pytest.CaptureFixture[str]) -> None:
    spec = stanza(capsys, "--wait", "--image", "prewarm:1", "--container", "server")
    (init,) = spec["initContainers"]
    (server,) = spec["containers"]
    view = {"name": "prewarm-view", "mountPath": "/var/lib/prewarm/views/team-a/chat", "readOnly": True}
    assert view in init["volumeMounts"]
    assert server == {"name": "server", "volumeMounts": [{"name": "prewarm-models", "mountPath": "/models"}, view]}
    assert (init["image"], init["args"]) == ("prewarm:1", ["wait", "--endpoint", "team-a/chat"])
    fields = {e["name"]: e["valueFrom"]["fieldRef"]["fieldPath"] for e in init["env"]}
    assert fields == {
        "POD_NAME": "metadata.name",
        "POD_NAMESPACE": "metadata.namespace",
        "POD_UID": "metadata.uid",
        "PREWARM_MODELS": "metadata.annotations['prewarm.dev/models']",
    }
    volumes = {v.pop("name"): v for v in spec["volumes"]}
    assert volumes == {
        "prewarm-models": {"emptyDir": {}},
        "prewarm-view": {"hostPath": {"path": "/var/lib/prewarm/views/team-a/chat", "type": "DirectoryOrCreate"}},
        "prewarm-run": {"hostPath": {"path": "/run/prewarm", "type": "DirectoryOrCreate"}},
    }
    assert {m["name"] for m in init["volumeMounts"]} == set(volumes)


def test_a_waiting_patch_sets_the_label_that_waiting_reads(capsys: pytest.CaptureFixture[str]) -> None:
    template = stanza(capsys, "--wait", "--patch", "--image", "prewarm:1")["spec"]["template"]
    assert template["metadata"] == {"labels": {"prewarm.dev/endpoint": "chat"}}
    assert template["spec"]["containers"][0]["name"] == "chat"


def test_yaml_has_no_aliases_and_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["affinity", "team-a/chat", "--wait", "--gpu", "--image", "prewarm:1"]
    main(arguments)
    text = capsys.readouterr().out
    main([*arguments, "--json"])
    assert json.loads(capsys.readouterr().out) == yaml.safe_load(text)
    assert "*id" not in text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["chat"], "'chat' is not NAMESPACE/NAME"),
        (["Team/chat"], "'Team' is not a Kubernetes namespace"),
        (["team-a/../x"], "endpoint name '../x'"),
        (["team-a/" + "x" * 60], "may have 63"),
        (["team-a/chat", "--wait"], "--wait needs --image"),
    ],
)
def test_what_makes_no_stanza_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert main(["affinity", *arguments]) == 2
    captured = capsys.readouterr()
    assert told in captured.err
    assert captured.out == ""


def test_the_example_workload_is_written_as_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    example = yaml.safe_load((Path(__file__).parents[3] / "deploy/examples/chat.yaml").read_text())
    spec = example["spec"]["template"]["spec"]
    image = spec["initContainers"][0]["image"]
    printed = stanza(capsys, "--wait", "--container", "server", "--image", image)
    assert {key: spec[key] for key in printed if key != "containers"} == {
        key: printed[key] for key in printed if key != "containers"
    }
    assert spec["containers"][0]["volumeMounts"] == printed["containers"][0]["volumeMounts"]
