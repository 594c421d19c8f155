"""The S3 server of the integration tests, for these tests, too."""

from tests.integration.conftest import aws_environment, seaweedfs

__all__ = ["aws_environment", "seaweedfs"]
