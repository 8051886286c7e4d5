"""The Jetstream v2 client of the Python SDK."""

import json
import sys

from atproto import JetstreamClient
from atproto_client.models.utils import get_model_as_dict

order = json.loads(sys.argv[1])
params = {name: order[name] for name in ("kinds", "collections", "dids") if order[name]}
params["cursor"] = order["cursor"]
client = JetstreamClient(params, base_uri=order["endpoint"] + "/xrpc", compress=order["compress"])
checked = False


def received(message):
    global checked
    if not checked:
        # It gives up on compression silently.
        assert client.compressed == order["compress"]
        checked = True
    print(json.dumps(get_model_as_dict(message)), flush=True)


def failed(error):
    print("error:", repr(error), file=sys.stderr, flush=True)


# It takes a server that says goodbye for the end, but goes on from its cursor.
while True:
    client.start(received, failed)
    print("ended", file=sys.stderr, flush=True)
