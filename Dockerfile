# Palate's server. `--build-arg TORCH=torch==2.13.0+cpu`, from an index that has it, makes a far smaller image.
FROM python:3.11-slim
RUN useradd --create-home palate && install -d -o palate /var/cache/palate
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
ARG TORCH=torch
RUN pip install --no-cache-dir "$TORCH" && pip install --no-cache-dir ".[minilm,serve]"
USER palate
ENV HF_HUB_OFFLINE=1 PALATE_CACHE=/var/cache/palate
EXPOSE 8600
HEALTHCHECK CMD python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:8600/health', timeout=5)"
ENTRYPOINT ["palate"]
CMD ["serve", "--host", "0.0.0.0"]
