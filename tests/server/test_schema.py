"""The field in the OpenAPI schema: on every route that takes it, and true to what is taken."""

import copy
import json

import jsonschema
import pytest
from vllm.entrypoints.launchers.app import build_app

from rlvr_decode.params import GATES, THRESHOLD_RANGES, Extrapolation, SettingError
from rlvr_decode.server.app import attach
from rlvr_decode.server.arguments import parse
from rlvr_decode.server.limits import Limits
from rlvr_decode.server.request import ROUTES, Served, translate
from rlvr_decode.server.schema import field_schema

TINY = Served(names=("tiny",), defaults=Extrapolation())


@pytest.fixture(scope="module")
def schema():
    pair, _, args = parse(["tiny", "--enable-scale-out"])
    app = build_app(args, ("generate",))
    attach(app, pair, TINY, Limits())
    made = copy.deepcopy(app.openapi())
    assert app.openapi() == made, "made once"
    return made


def body_of(schema, path):
    content = schema["paths"][path]["post"]["requestBody"]["content"]
    name = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
    return schema["components"]["schemas"][name]["properties"]


def test_every_route_that_takes_the_field_says_so(schema):
    present = ROUTES.keys() & schema["paths"].keys()  # some come with flags, or other vLLMs
    assert {"/v1/completions", "/v1/responses", "/inference/v1/generate"} < present
    for path in present:
        route = ROUTES[path]
        if "requestBody" not in schema["paths"][path]["post"]:
            assert path == "/invocations", "takes any JSON"
        elif route.extrapolates:
            [reference, null] = body_of(schema, path)["extrapolation"]["anyOf"]
            assert reference == {"$ref": "#/components/schemas/Extrapolation"}, path
            assert null == {"type": "null"}
        else:
            assert "extrapolation" not in body_of(schema, path), path
    assert schema["components"]["schemas"]["Extrapolation"] == field_schema()


def test_the_words_of_delta_are_in_its_schema(schema):
    body = body_of(schema, "/v1/delta")
    assert body["gate"]["enum"] == list(GATES)
    assert body["primary"]["enum"] == ["rlvr", "base", None]


def test_the_documents_are_those_of_this_vllm(schema):
    jsonschema.Draft202012Validator.check_schema(schema["components"]["schemas"]["Extrapolation"])
    assert json.loads(json.dumps(schema)) == schema


@pytest.mark.parametrize(
    ("value", "valid"),
    [
        (0.5, True),
        (-1, True),
        (10, True),
        (-1.001, False),
        (10.001, False),
        ("0.5", False),
        (True, False),
        ([], False),
        ({}, True),
        ({"strength": 2, "plausibility": 1}, True),
        ({"plausibility": 1.1}, False),
        ({"strenght": 1}, False),
        ({"gate": "Delta", "threshold": 0}, False),
        ({"gate": "all", "primary": "Base"}, False),
        ({"gate": "all", "threshold": None}, True),
        ({"gate": "delta", "threshold": -100.1}, False),
        *(({"gate": gate, "threshold": low}, True) for gate, (low, _) in THRESHOLD_RANGES.items()),
    ],
)
def test_what_the_schema_permits_is_what_the_server_takes(value, valid):
    found = jsonschema.Draft202012Validator(field_schema()).is_valid(value)
    assert found == valid
    body = json.dumps({"extrapolation": value}).encode()
    try:
        translate(body, ROUTES["/v1/completions"], TINY)
        taken = True
    except SettingError:
        taken = False
    assert taken == valid
