# Build:    docker build -t open-supir .
# Train:    docker run --gpus all --ipc=host -v "$PWD/runs:/app/runs" open-supir make train
# Restore:  docker run --gpus all -v "$PWD/photos:/photos" -v "$PWD/restored:/restored" open-supir \
#               python -m src.restore input=/photos output=/restored
# --ipc=host: the data loader's workers share memory beyond Docker's default of 64 MB.
FROM nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04

RUN apt-get update \
    && apt-get install -y --no-install-recommends git libgl1 libglib2.0-0t64 make python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app
COPY . .
RUN make setup
ENV PATH=/app/.venv/bin:$PATH
CMD ["make", "help"]
