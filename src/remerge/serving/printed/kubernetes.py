"""Kubernetes: a Deployment of one replica and a Service before it."""

from __future__ import annotations

from typing import Any

from remerge.serving.printed.contained import Container, Mount, contained
from remerge.serving.printed.form import Form, Printing, commented
from remerge.serving.printed.names import cluster_name
from remerge.serving.printed.yaml_text import as_yaml

# Loading a large model from a slow disk takes this long.
_START_SECONDS = 1800
_PERIOD = 5


def _write(printing: Printing) -> str:
    container = contained(printing)
    name = cluster_name(printing.served.name)
    labels = {"app.kubernetes.io/name": name, "app.kubernetes.io/managed-by": "remerge"}
    chosen = {"app.kubernetes.io/name": name}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": chosen},
            # Two of them would not fit on one GPU, or into one machine's memory.
            "strategy": {"type": "Recreate"},
            "template": {"metadata": {"labels": labels}, "spec": _pod(printing, container)},
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "selector": chosen,
            "ports": [{"name": "http", "port": printing.address.port, "targetPort": "http"}],
        },
    }
    notes = (
        f"{container.image}: {container.image_note}.",
        "The model is mounted from the node's own disk (hostPath): every node that may run this "
        "needs it there, or put a claim on shared storage in its place.",
    )
    return commented(printing, *notes) + as_yaml(deployment, service)


def _pod(printing: Printing, container: Container) -> dict[str, Any]:
    volumes = [_volume(number, mount) for number, mount in enumerate(container.mounts)]
    mounts: list[dict[str, Any]] = [
        {"name": f"model-{number}", "mountPath": mount.target, "readOnly": True}
        for number, mount in enumerate(container.mounts)
    ]
    # Processes of an engine speak through shared memory, of which a pod has 64 MiB.
    volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}})
    mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    get = {"path": printing.health, "port": "http"}
    return {
        "terminationGracePeriodSeconds": 60,
        "enableServiceLinks": False,
        "containers": [
            {
                "name": "server",
                "image": container.image,
                "command": list(container.program),
                # Kubernetes reads $(NAME) as a variable's.
                "args": [word.replace("$(", "$$(") for word in container.words],
                "env": [{"name": k, "value": v} for k, v in container.variables.items()],
                "ports": [{"name": "http", "containerPort": container.port}],
                "resources": _resources(printing),
                "startupProbe": {
                    "httpGet": get,
                    "periodSeconds": _PERIOD,
                    "failureThreshold": _START_SECONDS // _PERIOD,
                },
                "readinessProbe": {"httpGet": get, "periodSeconds": _PERIOD, "timeoutSeconds": 5},
                "livenessProbe": {
                    "httpGet": get,
                    "periodSeconds": 10,
                    "timeoutSeconds": 10,
                    "failureThreshold": 6,
                },
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }


def _volume(number: int, mount: Mount) -> dict[str, Any]:
    kind = "File" if mount.is_file else "Directory"
    return {"name": f"model-{number}", "hostPath": {"path": str(mount.source), "type": kind}}


def _resources(printing: Printing) -> dict[str, Any]:
    if printing.on_gpu:
        return {"limits": {"nvidia.com/gpu": 1}}
    memory = str(printing.memory)
    requests = {"memory": memory}
    if printing.settings.threads is not None:
        requests["cpu"] = str(printing.settings.threads)
    return {"requests": requests, "limits": {"memory": memory}}


KUBERNETES = Form("kubernetes", "a Deployment and a Service", _write)
