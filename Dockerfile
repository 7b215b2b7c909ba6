# Never built: no container engine was at hand. Its pip and megabase commands were tried in a fresh environment, without the
# wheel of the kernels and without PyTorch's index.
#   docker build -t megabase .
#   docker run --rm --user "$(id -u)" -v "$PWD:/data" megabase variants default in.vcf genome.fa -o out.vcf
FROM python:3.11-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN pip wheel --no-deps --wheel-dir /wheels /src /src/kernels

FROM python:3.11-slim
COPY --from=build /wheels /wheels
COPY constraints.txt /
# The CPU build of torch. For GPUs: without its index and the first requirement.
RUN pip install --no-cache-dir --constraint /constraints.txt \
      --extra-index-url https://download.pytorch.org/whl/cpu 'torch==2.13.0+cpu' \
      "$(ls /wheels/megabase-*.whl)[plots,tracks,anndata,attribute,motifs,lora,suites]" \
      /wheels/megabase_kernels-*.whl \
    && rm -r /wheels
# Whoever runs it may write there: models of the Hub, and that the kernels were compared on this processor.
ENV XDG_CACHE_HOME=/cache HF_HOME=/cache/huggingface MPLCONFIGDIR=/cache/matplotlib
RUN mkdir -m 1777 /cache /data && megabase doctor && rm -rf /cache/*
WORKDIR /data
ENTRYPOINT ["megabase"]
