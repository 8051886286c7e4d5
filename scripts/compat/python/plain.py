"""Plain websockets and zstandard, as in a bot without a client library.

websockets offers permessage-deflate, as it does by default.
"""

import json
import struct
import sys
import time
import urllib.parse
import urllib.request

import zstandard
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

order = json.loads(sys.argv[1])
last = None


def decompressor(ws):
    dictionary_id = ws.response.headers.get("Zstd-Dictionary-Id")
    if dictionary_id is None:
        return None
    endpoint = order["endpoint"].replace("ws", "http", 1)
    with urllib.request.urlopen(f"{endpoint}/dictionary/{dictionary_id}") as response:
        dictionary = zstandard.ZstdCompressionDict(response.read())
    assert dictionary.dict_id() == int(dictionary_id)
    return zstandard.ZstdDecompressor(dict_data=dictionary)


def consume(ws):
    global last
    zstd = decompressor(ws)
    received = 0
    for message in ws:
        assert isinstance(message, bytes) == order["compress"]
        event = json.loads(zstd.decompress(message) if isinstance(message, bytes) else message)
        last = event["time_us"] if "time_us" in event else event["payload"]["seq"]
        print(json.dumps(event), flush=True)
        received += 1
        update = order.get("update")
        if update and received == update["after"]:
            payload = {"wantedCollections": update["collections"], "wantedDids": update["dids"]}
            ws.send(json.dumps({"type": "options_update", "payload": payload}))


while True:
    url = urllib.parse.urlsplit(order["url"])
    query = urllib.parse.parse_qsl(url.query)
    if last is not None:
        query = [(k, v) for k, v in query if k != "cursor"] + [("cursor", last)]
    try:
        with connect(url._replace(query=urllib.parse.urlencode(query)).geturl(), additional_headers=order["headers"]) as ws:
            assert ws.protocol.extensions == [], ws.protocol.extensions
            consume(ws)
    except (ConnectionClosed, OSError) as e:
        print("closed:", e, file=sys.stderr, flush=True)
    time.sleep(0.2)
