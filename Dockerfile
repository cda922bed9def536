# CPU image: docker build -t seg .      GPU: docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 -t seg .
FROM python:3.12-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir torch torchvision --index-url ${TORCH_INDEX}
COPY . /src
RUN pip install --no-cache-dir /src && rm -rf /src
WORKDIR /data
ENTRYPOINT ["seg"]
