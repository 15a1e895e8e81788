"""reelray as a Serve configuration file names it (`serve deploy`, KubeRay's RayService): `import_path:
serve_app.declared:application`. Serve calls it inside the cluster; nobody keeps a process beside it.

No `from __future__ import annotations` here: Serve looks at the annotation of `args` to know what to make of them.
"""

import ray
from pydantic import Field
from ray import serve

from configs.base import Frozen
from configs.load import load_settings
from serve_app.app import build
from serve_app.capacity import check_labels
from serve_app.gpus import with_gpu_memory
from serve_app.serving import require_keys
from serve_app.sharing import machines_of, require_shared
from serve_app.workplace import open_workplace


class Declared(Frozen):
    """The `args` of the configuration file."""

    profile: str = "cluster"
    """Shipped profile, or the path of one in the image."""
    set: tuple[str, ...] = Field(default=(), max_length=200)
    """`key=value`, as after --set. What is secret comes from the environment of the machines, as REELRAY_*."""


def application(args: Declared) -> serve.Application:
    """HTTP, Director and models for these settings; the application must be called `reelray`.

    Raises SettingsError, InvalidSettings, ImpossibleResources: Serve shows the text as the deployment's message.
    """
    settings = load_settings(args.profile, args.set)
    nodes = ray.nodes()
    require_shared(settings, machines=machines_of(nodes))
    check_labels(settings, nodes)
    require_keys(open_workplace(settings))
    cluster = ray.cluster_resources()
    return build(with_gpu_memory(settings, cluster), cluster=cluster, http=True)
