#!/bin/sh
# Starts the voice agent in a container: fetches what is missing of the models, then listens on all of the container's
# interfaces (the shipped configs say 127.0.0.1), which asks for VOICE_SERVE_API_KEYS or `access: {auth: none}`.
#   VOICE_SERVE_CONFIG  the Serve config        VOICE_SERVE_PULL=0  fetch nothing
set -eu
if [ "${VOICE_SERVE_PULL:-1}" = 1 ]; then
    # Without the hub a config with `engine: auto` still runs, and the others say what they lack.
    voice-serve models pull --config "$VOICE_SERVE_CONFIG" || true
fi
listening=$(mktemp --suffix .yaml)
sed 's/host: 127\.0\.0\.1/host: 0.0.0.0/' "$VOICE_SERVE_CONFIG" > "$listening"
exec serve run "$listening"
