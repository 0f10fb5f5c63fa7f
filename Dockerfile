# dsctl with a CPU build of torch. Build: docker build -t dsctl .
# Run: docker run --rm --user "$(id -u)" -v /models:/models dsctl convert /models/DeepSeek-V3.2 /models/V3.2-bf16 --bf16
FROM python:3.12-slim
COPY . /tmp/dsctl
RUN pip install --no-cache-dir uv \
    && uv pip install --system --no-cache --torch-backend cpu "/tmp/dsctl[torch,report]" \
    && rm -rf /tmp/dsctl \
    && useradd --create-home dsctl
USER dsctl
VOLUME /models
WORKDIR /models
ENTRYPOINT ["dsctl"]
CMD ["--help"]
