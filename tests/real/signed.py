"""Signed requests to `aws-ssm-forward local` that are not part of AWS's API."""

import urllib.request


def control(variables, effect, keys=""):
    """Injects a fault now."""
    post(variables, f"/control/{effect}", keys)


def add_fault(variables, fault):
    """Injects a fault from now on."""
    post(variables, "/faults", fault)


def post(variables, path, body):
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    key = Credentials(variables["AWS_ACCESS_KEY_ID"], variables["AWS_SECRET_ACCESS_KEY"])
    request = AWSRequest("POST", variables["AWS_ENDPOINT_URL"] + path, data=body.encode())
    SigV4Auth(key, "ssm", variables["AWS_REGION"]).add_auth(request)
    sent = urllib.request.Request(request.url, body.encode(), dict(request.headers))
    urllib.request.urlopen(sent, timeout=10).close()
