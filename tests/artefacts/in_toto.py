"""Statements checked by in-toto's own library: the statement, every resource of it, and the
predicate as the protobuf message that its type names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.predicates.test_result.v0 import test_result_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
from in_toto_attestation.v1.statement import Statement


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def statement(path: Path) -> dict[str, Any]:
    """The statement of a file, which must be strict JSON and valid."""
    text = path.read_text()
    json.loads(text, parse_constant=_refused)
    found = statement_pb2.Statement()
    json_format.Parse(text, found)
    Statement.copy_from_pb(found).validate()
    return json.loads(text)


def provenance(path: Path) -> dict[str, Any]:
    """A SLSA provenance v1; fields that the message has not are an error."""
    document = statement(path)
    assert document["predicateType"] == "https://slsa.dev/provenance/v1"
    found = provenance_pb2.Provenance()
    json_format.ParseDict(document["predicate"], found)
    definition, run = found.build_definition, found.run_details
    assert definition.build_type and definition.external_parameters.fields and run.builder.id
    for resource in (*definition.resolved_dependencies, *run.byproducts):
        ResourceDescriptor.copy_from_pb(resource).validate()
    assert run.metadata.started_on.ToNanoseconds() <= run.metadata.finished_on.ToNanoseconds()
    return document


def test_result(path: Path) -> dict[str, Any]:
    """A test result v0.1; its readers pass over fields that they do not know."""
    document = statement(path)
    assert document["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    found = test_result_pb2.TestResult()
    json_format.ParseDict(document["predicate"], found, ignore_unknown_fields=True)
    assert found.result in ("PASSED", "WARNED", "FAILED") and found.configuration
    for resource in found.configuration:
        ResourceDescriptor.copy_from_pb(resource).validate()
    return document
