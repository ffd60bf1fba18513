# One image, many programs: `docker run IMAGE -m services.emergency`.
FROM python:3.11-slim-bookworm AS build
WORKDIR /app
COPY requirements.lock .
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r requirements.lock

FROM python:3.11-slim-bookworm
# What runs is code and schemas; the simulator, the laptop's issuer and the tests stay outside.
COPY --from=build /venv /venv
COPY libs/activation /app/libs/activation
COPY libs/buf /app/libs/buf
COPY libs/chassis /app/libs/chassis
COPY libs/contracts /app/libs/contracts
COPY libs/figures /app/libs/figures
COPY libs/media /app/libs/media
COPY libs/sightline /app/libs/sightline
COPY libs/tlog /app/libs/tlog
COPY services /app/services
ENV PYTHONPATH=/app/libs:/app PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /app
USER 10001:10001
EXPOSE 8080 8443 8444 8445 8446 8447 8448
ENTRYPOINT ["/venv/bin/python"]
