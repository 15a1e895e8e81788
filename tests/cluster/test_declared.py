"""The application as a configuration file of Serve names it: built from settings alone, or refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.declared import Declared, application
from workflows.errors import InvalidSettings

pytestmark = pytest.mark.cluster

HERE = ["models.text_to_image=placeholder", "models.text_to_video=placeholder", "models.image_to_video=placeholder"]


@pytest.mark.usefixtures("cluster")
def test_it_is_built_from_a_profile_and_settings(tmp_path: Path) -> None:
    args = Declared(profile="ci", set=(f"data_dir={tmp_path}", *HERE))
    assert application(args)._bound_deployment.name == "ingress"


@pytest.mark.parametrize(("setting", "text"), [("ray.several_machines=true", "SQLite"),
                                               ("http.host=0.0.0.0", "asks for API keys, and there are none")])
@pytest.mark.usefixtures("cluster")
def test_what_reelray_serve_refuses_is_refused(tmp_path: Path, setting: str, text: str) -> None:
    with pytest.raises(InvalidSettings, match=text):
        application(Declared(profile="ci", set=(f"data_dir={tmp_path}", *HERE, setting)))
