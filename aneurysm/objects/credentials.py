"""Credentials, region and endpoint, found as every AWS tool finds them (environment, profile, SSO, role), by boto3.

obstore itself reads no profile.
"""

from __future__ import annotations

import os
from typing import Any

from aneurysm.errors import StoreRefusedError


def aws_options(url: str) -> dict[str, Any]:
    """Return credentials, region and endpoint for a bucket of S3; raise `StoreRefusedError` if there are none."""
    import boto3
    import botocore.session
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider

    session = botocore.session.get_session()
    found: dict[str, Any] = {}
    try:
        profile = session.get_scoped_config()
        endpoint = (
            os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or profile.get("endpoint_url")
        )
        if endpoint:
            found["endpoint"] = endpoint
        found["region"] = os.environ.get("AWS_REGION") or session.get_config_variable("region") or "us-east-1"
        if os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true"):
            return found | {"skip_signature": True}
        credentials = session.get_credentials()
        if credentials is None:
            raise StoreRefusedError(
                f"{url}: there are no credentials. Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; "
                "AWS_SKIP_SIGNATURE=true for a public bucket"
            )
        credentials.get_frozen_credentials()  # an expired login shows here, in words
    except BotoCoreError as error:
        raise StoreRefusedError(f"{url}: {error}") from None
    return found | {"credential_provider": Boto3CredentialProvider(boto3.Session(botocore_session=session))}
