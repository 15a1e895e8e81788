"""Settings and cards: sources in order, errors with the nearest valid name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from configs.endpoint import Endpoint
from configs.explain import commented_yaml
from configs.load import (
    SettingsError,
    api_key,
    cards_in_use,
    casting,
    load_card,
    load_cards,
    load_settings,
    profile_names,
    story_card,
)
from configs.model_card import FILM_TASKS, FrameRule, ModelCard, SizeRule
from configs.settings import Settings
from workflows.types import NodeKind


@pytest.mark.parametrize("name", profile_names())
def test_every_shipped_profile_loads_and_names_itself(name: str) -> None:
    assert load_settings(name, environ={}).profile == name


def test_what_profile_show_prints_is_a_profile_that_gives_the_same_settings(tmp_path: Path) -> None:
    settings = load_settings("ci", ["models.by_card.sketch.replicas=4"], {})
    path = tmp_path / "mine.yaml"
    path.write_text(commented_yaml(settings))
    assert "# A Director that is silent for this long loses its jobs to another one." in path.read_text()
    assert load_settings(str(path), environ={}) == settings


def test_later_sources_win() -> None:
    environ = {"REELRAY_MODELS__TEXT_TO_VIDEO": "placeholder", "REELRAY_CPU_SLOTS": "3"}
    settings = load_settings("laptop", ["cpu_slots=5"], environ)
    assert settings.models.text_to_video == "placeholder"
    assert settings.cpu_slots == 5


def test_the_environment_names_the_profile_when_the_caller_does_not() -> None:
    assert load_settings(environ={"REELRAY_PROFILE": "ci"}).profile == "ci"
    assert load_settings("laptop", environ={"REELRAY_PROFILE": "ci"}).profile == "laptop"


def test_exceptions_by_card_can_be_set_from_the_command_line() -> None:
    settings = load_settings("laptop", ["models.by_card.sketch.replicas=4"], {})
    assert settings.models.replica_of("sketch").replicas == 4
    assert settings.models.replica_of("other").replicas == 2


def test_a_time_limit_of_one_kind_leaves_those_of_the_others() -> None:
    limits = load_settings("laptop", ["engine.timeout_s.clip=10"], {}).engine.timeout_s
    assert {kind: limits.of(kind) for kind in ("clip", "compose")} == {"clip": 10.0, "compose": 3600.0}
    assert all(limits.of(kind.value) > 0 for kind in NodeKind)


@pytest.mark.parametrize(("overrides", "text"), [
    (["engine.leese_s=3"], "--set engine.leese_s: no setting 'engine.leese_s'; did you mean 'lease_s'?"),
    (["engine"], "--set 'engine': expected key=value"),
    (["engine.lease_s=-1"], "engine.lease_s: Input should be greater than 0 (found -1)"),
    (["engine.heartbeat_s=20"], "heartbeat_s 20 must be at most a third of lease_s 9; nearest 3"),
    (["cpu_slots=many"], "cpu_slots: Input should be a valid integer"),
    (["models.device=tpu"], "models.device: Input should be 'auto', 'cpu' or 'cuda' (found 'tpu')"),
    (["a.b=[1"], "is not a value"),
    (["engine.timeout_s.clips=9"], "no setting 'engine.timeout_s.clips'; did you mean 'clip'?"),
    (["models.default_replicas={replicas: 2, min_replicas: 3}"], "min_replicas 3 is more than replicas 2; nearest 2"),
    (["ray.max_gpus=4"], "max_gpus is of a cluster that is joined, and none is"),
    (["models.by_card.sketch.replica=4"], "models.by_card.sketch.replica: Extra inputs are not permitted"),
], ids=["misspelt", "no value", "negative", "heartbeat over lease", "not a number", "not a choice", "bad yaml",
        "kind", "fewest over most", "grows here", "deep"])
def test_a_wrong_setting_is_refused_by_name(overrides: list[str], text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings("laptop", overrides, {})
    assert text in str(caught.value)


def test_an_unknown_profile_names_the_nearest() -> None:
    with pytest.raises(SettingsError, match="no profile 'labtop'; did you mean 'laptop'"):
        load_settings("labtop", environ={})


def test_a_misspelt_environment_variable_is_refused() -> None:
    with pytest.raises(SettingsError, match="REELRAY_ENGIN__LEASE_S: no setting 'engin'; did you mean 'engine'"):
        load_settings("laptop", environ={"REELRAY_ENGIN__LEASE_S": "3"})


def test_shipped_cards_load_and_answer_the_default_tasks() -> None:
    settings = Settings()
    cards = casting(settings, load_cards(settings))
    assert {task: card.name for task, card in cards.items()} == dict.fromkeys(FILM_TASKS, "sketch")


def test_a_users_card_wins_over_a_shipped_one(tmp_path: Path) -> None:
    shipped = load_cards(Settings())["placeholder"]
    (tmp_path / "placeholder.yaml").write_text(
        "name: placeholder\ntitle: mine\nloader: placeholder\npipelines: {text_to_video: placeholder}\n"
        "defaults: {width_px: 64, height_px: 64}\n")
    settings = load_settings("laptop", [f"models.card_dirs=[{tmp_path}]"], {})
    assert load_cards(settings)["placeholder"].title == "mine" != shipped.title


def test_casting_refuses_a_card_that_cannot_do_the_task(tmp_path: Path) -> None:
    (tmp_path / "only-video.yaml").write_text(
        "name: only-video\ntitle: t\nrepo: x\npipelines: {text_to_video: WanPipeline}\n"
        "defaults: {width_px: 64, height_px: 64}\n")
    settings = load_settings("laptop", [f"models.card_dirs=[{tmp_path}]", "models.text_to_image=only-video"], {})
    with pytest.raises(SettingsError, match=r"card 'only-video' does text_to_video only; cards that can: .*sketch"):
        casting(settings, load_cards(settings))
    misspelt = load_settings("laptop", ["models.text_to_image=skech"], {})
    with pytest.raises(SettingsError, match="no card 'skech'; did you mean 'sketch'"):
        casting(misspelt, load_cards(misspelt))


def test_a_broken_card_names_file_and_field(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("name: broken\ntitle: t\nrepo: x\npipelines: {text_to_video: W}\n"
                    "defaults: {width_px: 65, height_px: 64}\n")
    with pytest.raises(SettingsError, match=r"broken\.yaml: .*65 is not a multiple of 8"):
        load_card(path)


@pytest.mark.parametrize(("asked", "nearest"), [(80, (77, 81)), (81, (81,)), (1, (5,)), (500, (121,))])
def test_frame_rule_names_the_nearest_lengths(asked: int, nearest: tuple[int, ...]) -> None:
    rule = FrameRule(step=4, offset=1, min_frames=5, max_frames=121)
    assert rule.nearest(asked) == nearest
    assert all(not rule.problem(frames) for frames in nearest)


@pytest.mark.parametrize(("asked", "nearest"), [(100, (96, 112)), (96, (96,)), (5, (16,)), (9000, (4096,))])
def test_size_rule_names_the_nearest_sizes(asked: int, nearest: tuple[int, ...]) -> None:
    rule = SizeRule(multiple_px=16)
    assert rule.nearest(asked) == nearest
    assert all(not rule.problem(size) for size in nearest)


def test_the_card_digest_follows_what_changes_pictures_and_nothing_else() -> None:
    card = load_cards(Settings())["sketch"]
    assert card.model_copy(update={"title": "other", "notes": "other"}).digest() == card.digest()
    assert card.model_copy(update={"dtype": "float16"}).digest() != card.digest()
    assert isinstance(card, ModelCard)


@pytest.mark.parametrize(("overrides", "message"), [
    (["story.writer=llm"], "a language model needs story.api_url and story.model_name; nearest valid: writer rules"),
    (["story.enhance_prompts=true"], "a language model needs story.api_url and story.model_name"),
    (["story.writer=llm", "story.card=qwen3-4b-instruct", "story.api_url=http://127.0.0.1:9/v1", "story.model_name=x"],
     "story.card is a model that runs here and story.api_url and story.model_name a server; nearest valid: story.card"),
    (["story.card=qwen3-4b-instruct", "story.api_key_env=A_KEY"], "runs here and story.api_key_env a server"),
    (["story.api_key_env=sk-abc123"], "is the name of an environment variable, in capitals, never the key itself"),
    (["story.api_key_env=hf_skabc123"], "is the name of an environment variable, in capitals, never the key itself"),
    (["story.api_key_env=REELRAY_KEY"], "must not begin with REELRAY_: such variables are settings"),
    (["story.api_url=https://me:sk-abc123@example.com/v1"], "holds a user, a password or a query"),
    (["story.api_url=sk-abc123"], "is no address; nearest valid: https://api.openai.com/v1"),
])
def test_a_writer_that_cannot_be_asked_is_refused_and_no_key_repeated(overrides: list[str], message: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings("laptop", overrides, {})
    assert message in str(refused.value)
    assert "abc123" not in str(refused.value)


def test_a_key_under_a_name_that_is_no_setting_is_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("story: {api_key: sk-secret}\n")
    with pytest.raises(SettingsError, match=r"story\.api_key: Extra inputs are not permitted") as refused:
        load_settings(str(path), environ={})
    assert "sk-secret" not in str(refused.value)


def test_a_key_in_place_of_its_files_name_is_not_repeated() -> None:
    with pytest.raises(SettingsError, match="the file in api_key_file cannot be read: FileNotFoundError") as refused:
        api_key(Endpoint(api_key_file=Path("sk-secret")), {})
    assert "sk-secret" not in str(refused.value)


def test_a_key_comes_from_the_environment_or_a_file_and_from_nowhere_else(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk-file\n")
    assert api_key(Endpoint(api_key_env="FAR_KEY"), {"FAR_KEY": " sk-env "}) == "sk-env"
    assert api_key(Endpoint(api_key_file=file), {}) == "sk-file"
    assert api_key(Endpoint(), {"OPENAI_API_KEY": "sk-env"}) == ""


@pytest.mark.parametrize(("content", "message"), [
    (None, "cannot be read: FileNotFoundError"), (" \n", "holds no key; set it where"),
    ("key = sk-abc123", "does not hold a key alone"), ("sk-abc123\nsk-abc124", "does not hold a key alone")])
def test_a_file_without_a_key_is_said_so_without_what_is_in_it(tmp_path: Path, content: str | None, message: str,
                                                               ) -> None:
    if content is not None:
        (tmp_path / "key").write_text(content)
    with pytest.raises(SettingsError, match=message) as refused:
        api_key(Endpoint(api_key_file=tmp_path / "key"), {})
    assert "sk-abc" not in str(refused.value)


@pytest.mark.parametrize(("name", "message"), [
    ("qwen3-4b", "no card 'qwen3-4b'; did you mean 'qwen3-4b-instruct'?"),
    ("sketch", "card 'sketch' makes pictures, no stories")])
def test_a_story_card_that_cannot_write_is_refused_with_those_that_can(name: str, message: str) -> None:
    with pytest.raises(SettingsError) as refused:
        story_card(load_settings("laptop", ["story.writer=llm", f"story.card={name}"], {}))
    assert f"story.card: {message}; cards that can: qwen2.5-7b-instruct, qwen3-4b-instruct" in str(refused.value)


def test_a_story_card_is_in_use_only_where_it_is_asked_and_makes_no_pictures() -> None:
    asked = load_settings("laptop", ["story.writer=llm", "story.card=qwen3-4b-instruct"], {})
    assert [card.name for card in cards_in_use(asked)] == ["sketch", "qwen3-4b-instruct"]
    assert [card.name for card in cards_in_use(load_settings("laptop", ["story.card=none-such"], {}))] == ["sketch"]
    with pytest.raises(SettingsError, match="no card 'qwen3-4b-instruct'"):
        cards_in_use(load_settings("laptop", ["models.text_to_video=qwen3-4b-instruct"], {}))


@pytest.mark.parametrize(("changes", "message"), [
    ({"revision": "main"}, "revision: .*is not a commit"), ({"answer_tokens": 7000}, "nearest valid: 6000"),
    ({"pipelines": {"text_to_video": "x"}}, "pipelines: Extra inputs"), ({"repo": ""}, "repo: ")])
def test_a_wrong_chat_card_is_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    fields = {"name": "mine", "title": "x", "loader": "transformers", "repo": "a/b", "context_tokens": 8000,
              "answer_tokens": 2000, **changes}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(fields))
    with pytest.raises(SettingsError, match=message):
        load_card(tmp_path / "mine.yaml")
