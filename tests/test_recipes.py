"""Recipes are read strictly; the shipped ones fit the pipeline."""

from pathlib import Path

import pytest

from posefoundry.errors import PosefoundryError
from posefoundry.params import load_params
from posefoundry.recipes import TIERS, load_recipe, recipe_files

ROOT = Path(__file__).parent.parent
SHIPPED = recipe_files(ROOT / "recipes")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipe_is_sound(name):
    recipe = load_recipe(SHIPPED[name])
    assert recipe.expected
    assert all(rule.tolerance < 0.2 for rule in recipe.expected.values())


def test_every_tier_has_a_recipe():
    assert {load_recipe(path).tier for path in SHIPPED.values()} == set(TIERS)


def test_short_cpu_is_what_the_pipeline_trains():
    """Its expected score was measured with `make pipeline`."""
    recipe, params = load_recipe(SHIPPED["short-cpu"]), load_params(ROOT / "params.yaml")
    assert recipe.train == params.train
    assert recipe.evaluate.model_copy(update={"overlay_images": 0}) == params.evaluate.model_copy(
        update={"overlay_images": 0}
    )
    # The project comes without corrections and tags, but with places for them.
    assert recipe.ingest == params.ingest.model_copy(update={"corrections": None, "tags": None})


def test_changes_take_the_place_of_settings():
    recipe = load_recipe(SHIPPED["short-cpu"], {"train.epochs": 2, "train.augment.flip_probability": 0.25})
    assert recipe.train.epochs == 2
    assert recipe.train.augment.flip_probability == 0.25
    assert recipe.train.augment.rotate_degrees == 5.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.epoch": 2}, r"short-cpu\.yaml: unknown setting 'train\.epoch'; did you mean 'epochs'"),
        ({"train.epochs.x": 2}, r"train\.epochs\.x: expected epochs to be a section of the recipe, it is 6"),
        ({"expected.oks_ap.as_at_start": True}, "expected either value or as_at_start"),
        ({"expected.oks_ap": {"as_at_start": True, "tolerance": 0.1}}, r"needs train\.weights"),
        ({"expected.oks_app": {"value": 0.1, "tolerance": 0.1}}, "oks_app"),
        ({"tier": "long"}, "tier"),
    ],
)
def test_faults_are_named(changes, message):
    with pytest.raises(PosefoundryError, match=message):
        load_recipe(SHIPPED["short-cpu"], changes)


@pytest.mark.parametrize("content", ["[1, 2]", "{", "\x00"])
def test_no_recipe(tmp_path, content):
    path = tmp_path / "broken.yaml"
    path.write_text(content)
    with pytest.raises(PosefoundryError, match=r"broken\.yaml: expected"):
        load_recipe(path)


def test_folder_without_recipes(tmp_path):
    with pytest.raises(PosefoundryError, match="expected recipes"):
        recipe_files(tmp_path)
