#!/bin/sh
# As in AWS's base images: on Lambda the runtime's address is given, elsewhere the emulator provides it.
if [ -z "${AWS_LAMBDA_RUNTIME_API:-}" ]; then
    exec /usr/local/bin/aws-lambda-rie /usr/bin/python3 -m awslambdaric "$@"
fi
exec /usr/bin/python3 -m awslambdaric "$@"
