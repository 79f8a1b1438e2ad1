"""Names and shapes of parameters are those of the published files, which the manifests list."""

import pytest
import torch

from repshift import load_model

KINDS = {"_retrieval": "retrieval", "_qa": "qa"}
MILLIONS = {"b": (85.64, 202.41, 254.44), "l": (303.08, 659.75, 775.02)}


def shapes_of(name):
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in load_model(name).state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", "bl")
def test_keys_are_those_of_the_files(manifest, size, kind):
    expected = {key: shape for key, shape in manifest(f"{KINDS[kind]}_{size}").items() if "position_ids" not in key}
    assert shapes_of(f"umt_{size}{kind}") == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", "bl")
def test_a_video_encoder_alone_has_those_of_its_part(manifest, size, kind):
    part = {key.removeprefix("vision_encoder."): shape for key, shape in manifest(f"{KINDS[kind]}_{size}").items()}
    own = shapes_of(f"umt_{size}")
    norm = {key for key in own if "pool_norm" in key}
    assert {key: own[key] for key in own.keys() - norm} == {
        key: part[key] for key in part if key.startswith("encoder.") and not key.startswith("encoder.layer")
    }


@pytest.mark.parametrize("size", "bl")
def test_as_many_parameters_as_published(size):
    with torch.device("meta"):
        models = [load_model(f"umt_{size}{kind}") for kind in ("", *KINDS)]
    counts = [round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) for model in models]
    assert tuple(counts) == MILLIONS[size]
