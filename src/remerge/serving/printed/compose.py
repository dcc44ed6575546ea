"""docker compose: one service, the model mounted read-only."""

from __future__ import annotations

from typing import Any

from remerge.serving.printed.contained import Container, contained
from remerge.serving.printed.form import Form, Printing, commented
from remerge.serving.printed.names import cluster_name
from remerge.serving.printed.tgi import tgi
from remerge.serving.printed.yaml_text import as_yaml


def _write_of_engine(printing: Printing) -> str:
    return _write(printing, contained(printing))


def _write_of_tgi(printing: Printing) -> str:
    return _write(printing, tgi(printing))


def _write(printing: Printing, container: Container) -> str:
    # Compose reads a dollar as a variable's.
    escaped = [word.replace("$", "$$") for word in container.words]
    service: dict[str, Any] = {
        "image": container.image,
        "entrypoint": list(container.program),
        "command": escaped,
        "ports": [f"{_host(printing)}{printing.address.port}:{container.port}"],
        "volumes": [
            {
                "type": "bind",
                "source": str(mount.source).replace("$", "$$"),
                "target": mount.target,
                "read_only": True,
            }
            for mount in container.mounts
        ],
        "environment": {k: v.replace("$", "$$") for k, v in container.variables.items()},
        "shm_size": "1gb",
        "healthcheck": {
            "test": ["CMD", *container.asks(printing.health)],
            "interval": "10s",
            "timeout": "10s",
            "retries": 3,
            "start_period": "600s",
        },
        "stop_grace_period": "60s",
        "restart": "unless-stopped",
        "deploy": {"resources": _resources(printing)},
    }
    document = {"services": {cluster_name(printing.served.name): service}}
    note = f"{container.image}: {container.image_note}."
    return commented(printing, note) + as_yaml(document)


def _host(printing: Printing) -> str:
    host = printing.address.host
    if host in ("0.0.0.0", "::", ""):
        return ""
    return f"[{host}]:" if ":" in host else f"{host}:"


def _resources(printing: Printing) -> dict[str, Any]:
    if printing.on_gpu:
        device = {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
        return {"reservations": {"devices": [device]}}
    limits: dict[str, Any] = {"memory": str(printing.memory)}
    if printing.settings.threads is not None:
        limits["cpus"] = str(printing.settings.threads)
    return {"limits": limits}


COMPOSE = Form("compose", "docker compose, of the engine's own image", _write_of_engine)
COMPOSE_TGI = Form("compose-tgi", "docker compose, of Text Generation Inference", _write_of_tgi)
