"""The product's image as it ships: what is in it, and that it starts."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.bed import images

BUDGET_BYTES = 120_000_000
DEPENDENCIES = (
    "aiobotocore.session, awscrt.checksums, cronsim, google.protobuf, grpc.aio, isal.isal_zlib, kubernetes.aio.client, "
    "kubernetes.aio.config, prometheus_client, pynvml, rich.progress, structlog, tzdata, yaml"
)

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("buildah") or not shutil.which("mmdebstrap"),
        reason="needs root, buildah and mmdebstrap",
    ),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def product() -> images.Image:
    return images.product_image()


def python(product: images.Image, code: str) -> str:
    return images.run(product, "/opt/prewarm/bin/python", "-W", "ignore", "-c", code).strip()


def test_a_fresh_node_pulls_at_most_the_budget(product: images.Image) -> None:
    assert 20_000_000 < product.compressed_bytes() <= BUDGET_BYTES


def test_a_second_build_of_the_same_sources_builds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    first = images.modelserver_image()
    monkeypatch.setenv("PATH", "")
    assert images.modelserver_image() == first


def test_the_command_starts(product: images.Image) -> None:
    assert "agent" in images.run(product, "prewarm", "--help")


def test_every_dependency_imports_after_trimming(product: images.Image) -> None:
    assert python(product, f"import {DEPENDENCIES}; print('imported')") == "imported"


def test_clients_of_s3_and_sts_can_be_made(product: images.Image) -> None:
    code = """
import botocore.session
session = botocore.session.Session()
print([session.create_client(name, region_name='eu-west-1').meta.endpoint_url for name in ('s3', 'sts', 'sso-oidc')])
"""
    assert "https://s3.eu-west-1.amazonaws.com" in python(product, code)


def test_no_installer_compiler_or_test_is_in_it(product: images.Image) -> None:
    code = """
import importlib.util, pathlib, shutil
site = pathlib.Path(importlib.util.find_spec('grpc').origin).parents[1]
print([name for name in ('pip', 'setuptools', 'pytest') if importlib.util.find_spec(name)],
      [name for name in ('pip', 'gcc', 'cc', 'curl', 'perl') if shutil.which(name)],
      [str(path) for path in site.rglob('tests')])
"""
    assert python(product, code) == "[] [] []"


def test_modules_are_compiled_beforehand(product: images.Image) -> None:
    code = """
import importlib.util, os
specs = [importlib.util.find_spec(name) for name in ('agent.cli', 'grpc', 'aiobotocore.session')]
print(all(os.path.exists(spec.cached) for spec in specs))
"""
    assert python(product, code) == "True"
