"""Requests to `aws-ssm-forward local` other than AWS's API, with the same signatures."""

import urllib.request


def control(variables, effect, keys=""):
    """Injects a fault now."""
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    key = Credentials(variables["AWS_ACCESS_KEY_ID"], variables["AWS_SECRET_ACCESS_KEY"])
    request = AWSRequest("POST", f"{variables['AWS_ENDPOINT_URL']}/control/{effect}", data=keys.encode())
    SigV4Auth(key, "ssm", variables["AWS_REGION"]).add_auth(request)
    sent = urllib.request.Request(request.url, keys.encode(), dict(request.headers))
    urllib.request.urlopen(sent, timeout=10).close()
