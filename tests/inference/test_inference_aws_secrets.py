"""Credentials out of Secrets Manager and the Parameter Store, held by moto."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from bundlectl.inference.credentials import resolve_credential
from bundlectl.model.errors import BackendUnavailable, BundlectlError, NotFound, UsageError
from tests.support.aws import REGION, StandIn, stand_in

ENVIRON = {"AWS_REGION": REGION}


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    stand = stand_in("moto")
    for name, value in stand.environ.items():
        monkeypatch.setenv(name, value)
    yield stand


def secret(aws: StandIn, name: str, value: str | bytes) -> str:
    client = aws.client("secretsmanager")
    kind = "SecretString" if isinstance(value, str) else "SecretBinary"
    try:
        return str(client.create_secret(Name=name, **{kind: value})["ARN"])
    finally:
        client.close()


def parameter(aws: StandIn, name: str, value: str) -> None:
    client = aws.client("ssm")
    client.put_parameter(Name=name, Value=value, Type="SecureString", Overwrite=True)
    client.close()


def test_a_secret_by_name_by_arn_and_by_field(aws: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    arn = secret(aws, "models/vllm", " sk-1\n")
    secret(aws, "models/json", '{"key": "sk-2", "user": "u"}')
    assert resolve_credential("aws-sm:models/vllm", ENVIRON) == "sk-1"
    assert resolve_credential("aws-sm:models/json#key", ENVIRON) == "sk-2"
    # An ARN says its region itself.
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert resolve_credential(f"aws-sm:{arn}", {}) == "sk-1"
    with pytest.raises(UsageError):
        resolve_credential("aws-sm:models/vllm", {})


def test_an_encrypted_parameter(aws: StandIn) -> None:
    parameter(aws, "/models/vllm", "sk-3")
    assert resolve_credential("ssm:/models/vllm", ENVIRON) == "sk-3"


def test_what_is_not_there_or_no_value(aws: StandIn) -> None:
    secret(aws, "models/binary", b"\x00")
    secret(aws, "models/lines", "TOP\nSECRET")
    secret(aws, "models/number", '{"key": 7}')
    cases: list[tuple[str, type[BundlectlError]]] = [
        ("aws-sm:models/none", NotFound),
        ("ssm:/models/none", NotFound),
        ("aws-sm:models/binary", UsageError),
        ("aws-sm:models/lines", UsageError),
        ("aws-sm:models/number#key", NotFound),
    ]
    for reference, kind in cases:
        with pytest.raises(kind) as caught:
            resolve_credential(reference, ENVIRON)
        assert "TOP" not in str(caught.value)


def test_aws_is_away(aws: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(BackendUnavailable):
        resolve_credential("ssm:/models/vllm", ENVIRON)


def test_nothing_of_aws_is_loaded_until_it_is_named() -> None:
    """The router starts, resolves and answers without botocore when no bound model or credential is AWS's."""
    code = (
        "import sys; import bundlectl.router.router, bundlectl.router.assemble, bundlectl.inference.openai,"
        " bundlectl.resolver.resolver, bundlectl.cli.program;"
        "print([name for name in sys.modules if name.split('.')[0] in ('boto3', 'botocore')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
