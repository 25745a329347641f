# An image that serves nano, or a model of the Hub, at port 8080. A key is needed:
#   docker build --tag mobilemoe .
#   docker run --publish 8080:8080 --env MOBILEMOE_API_KEY mobilemoe
# The first stage compiles, the second has neither a compiler nor the sources.
FROM python:3.13-slim AS build
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY CMakeLists.txt LICENSE README.md constraints.txt pyproject.toml ./
COPY native native
COPY src src
RUN python -m venv /opt/mobilemoe \
    && /opt/mobilemoe/bin/pip install --no-cache-dir --constraint constraints.txt '.[serve]'

FROM python:3.13-slim
# The folder is the user's before a volume is mounted there, which takes over its owner.
RUN useradd --create-home --uid 1000 mobilemoe && install --directory --owner mobilemoe /home/mobilemoe/.cache
COPY --from=build /opt/mobilemoe /opt/mobilemoe
ENV PATH=/opt/mobilemoe/bin:$PATH PYTHONUNBUFFERED=1
USER 1000
WORKDIR /home/mobilemoe
EXPOSE 8080
HEALTHCHECK --start-period=10m --interval=30s --timeout=5s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health', timeout=4)"]
ENTRYPOINT ["mobilemoe"]
CMD ["serve", "nano", "--host", "0.0.0.0"]
