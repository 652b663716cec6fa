#!/usr/bin/env python3
"""Reads cargo's JSON messages; prints "directory of the package<TAB>test program" for each test program. Benches, which
have a main function of their own, need no device."""

import json
import os
import sys

for line in sys.stdin:
    if not line.startswith("{"):
        continue
    message = json.loads(line)
    if "bench" in message.get("target", {}).get("kind", []):
        continue
    if message.get("executable") and message.get("profile", {}).get("test"):
        print(os.path.dirname(message["manifest_path"]), message["executable"], sep="\t")
