"""The application as a configuration file of Serve names it: built from settings alone, or refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray import serve
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

from serve_app.declared import application
from workflows.errors import InvalidSettings

pytestmark = pytest.mark.cluster

HERE = ["models.text_to_image=placeholder", "models.text_to_video=placeholder", "models.image_to_video=placeholder"]


def build_as_serve(*settings: str) -> serve.Application:
    """By Serve's own function, which makes of the file's `args` what the annotation says."""
    return call_user_app_builder_with_args_if_necessary(application, {"profile": "ci", "set": list(settings)})


@pytest.mark.usefixtures("cluster")
def test_it_is_built_from_a_profile_and_settings(tmp_path: Path) -> None:
    assert build_as_serve(f"data_dir={tmp_path}", *HERE)._bound_deployment.name == "ingress"


@pytest.mark.parametrize(("setting", "text"), [("ray.several_machines=true", "SQLite"),
                                               ("http.host=0.0.0.0", "asks for API keys, and there are none")])
@pytest.mark.usefixtures("cluster")
def test_what_reelray_serve_refuses_is_refused(tmp_path: Path, setting: str, text: str) -> None:
    with pytest.raises(InvalidSettings, match=text):
        build_as_serve(f"data_dir={tmp_path}", *HERE, setting)
